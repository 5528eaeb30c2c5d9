"""CUDA graphs: what is replayed is what was called. The recording itself needs a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cvaecli.engine.graph import MAX_RECORDINGS, WARM_UP, Replayed, record_cuda_graph


class FakeRecorder:
    """Replays by calling again, with the arguments that were held when it was recorded, as a graph does."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recorded += 1
        result = function()

        def replay() -> None:
            self.replayed += 1
            for held, new in zip(result.values(), function().values(), strict=True):
                held.copy_(new)

        return replay, result


def scaled(parts: dict[str, torch.Tensor], forced: tuple[bool, ...], weight: torch.Tensor) -> Any:
    return {"sum": sum(p.sum() for p in parts.values()) * weight + len(forced)}


def test_replays_see_each_calls_own_arguments() -> None:
    recorder = FakeRecorder()
    replayed = Replayed(scaled, recorder)
    for n in range(WARM_UP + 4):
        arguments = {"a": torch.full((2, 3), float(n)), "b": torch.ones(4)}, (True, False), torch.tensor(0.5)
        assert float(replayed(*arguments)["sum"]) == float(scaled(*arguments)["sum"])
    assert (recorder.recorded, recorder.replayed) == (1, 4)


def test_other_kinds_of_arguments_are_recorded_apart() -> None:
    recorder = FakeRecorder()
    replayed = Replayed(scaled, recorder)
    one = torch.tensor(1.0)
    for _ in range(WARM_UP + 1):
        for forced in ((True,), (False,)):
            for size in (2, 3):
                got = replayed({"a": torch.ones(size)}, forced, one)
                assert float(got["sum"]) == size + 1
    assert recorder.recorded == 4


def test_no_more_recordings_than_most() -> None:
    recorder = FakeRecorder()
    replayed = Replayed(scaled, recorder)
    for _ in range(WARM_UP + 2):
        for size in range(1, MAX_RECORDINGS + 3):
            got = replayed({"a": torch.ones(size)}, (), torch.tensor(1.0))
            assert float(got["sum"]) == size
    assert recorder.recorded == MAX_RECORDINGS


def test_goes_on_plainly_where_recording_fails() -> None:
    def refuse(function: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    replayed = Replayed(scaled, refuse)
    arguments = {"a": torch.ones(2)}, (), torch.tensor(1.0)
    for _ in range(WARM_UP):
        replayed(*arguments)
    with pytest.warns(UserWarning, match="not permitted"):
        assert float(replayed(*arguments)["sum"]) == 2
    assert float(replayed(*arguments)["sum"]) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_equals_the_plain_call() -> None:
    layer = torch.nn.Linear(8, 8, device="cuda")
    optimizer = torch.optim.AdamW(layer.parameters(), torch.tensor(1e-2), fused=True, capturable=True)

    def update(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = layer(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    torch.manual_seed(0)
    batches = torch.randn(WARM_UP + 6, 4, 8, device="cuda")
    first = {name: value.clone() for name, value in layer.state_dict().items()}
    plain = [float(update(x)) for x in batches]
    layer.load_state_dict(first)
    optimizer.state.clear()
    replayed = Replayed(update, record_cuda_graph)
    recorded = [float(replayed(x)) for x in batches]
    torch.testing.assert_close(recorded, plain, rtol=1e-5, atol=1e-7)
