"""CUDA graphs: what is replayed is what was called. The recording itself needs a GPU."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cvaecli.engine.graph import MAX_RECORDINGS, WARM_UP, CudaGraphs, Replayed


class FakeRecorder:
    """Replays by calling again, with the arguments that were held when it was recorded, as a graph does."""

    def __init__(self) -> None:
        self.recorded = self.replayed = self.cleaned = 0

    def warm_up(self, function: Callable[[], Any]) -> Any:
        return function()

    def clean_up(self) -> None:
        self.cleaned += 1

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
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


def test_after_a_release_it_records_anew() -> None:
    recorder = FakeRecorder()
    replayed = Replayed(scaled, recorder)
    for count in (1, 2):
        for _ in range(WARM_UP + 2):
            assert float(replayed({"a": torch.ones(2)}, (), torch.tensor(1.0))["sum"]) == 2
        assert recorder.recorded == count
        replayed.release()
    assert recorder.cleaned == 2


# --- what is asked of CUDA ----------------------------------------------------------------------------


class FakeCuda:
    """Streams and graphs that only log what is done with them. A capture calls the function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.capturing, self.streams, self.current = False, 0, "main"
        self.main = SimpleNamespace(name="main", wait_stream=lambda other: self._wait("main", other))
        fakes = {
            "Stream": self.stream,
            "current_stream": lambda: self.main,
            "stream": self.on,
            "graph": self.graph,
            "graph_pool_handle": lambda: "pool",
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.log.append(("replay",))),
            "empty_cache": lambda: self.log.append(("empty cache",)),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def _wait(self, name: str, other: Any) -> None:
        self.log.append((name, "waits for", other.name))

    def stream(self) -> Any:
        self.streams += 1
        name = f"side {self.streams}"
        return SimpleNamespace(name=name, wait_stream=lambda other: self._wait(name, other))

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.current = stream.name
        yield
        self.current = "main"

    @contextlib.contextmanager
    def graph(self, graph: Any, pool: str, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.log.append(("capture", pool, stream.name, capture_error_mode))
        self.capturing, self.current = True, stream.name
        try:
            yield
        finally:
            self.capturing, self.current = False, "main"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_all_recordings_share_one_stream_and_one_pool(cuda: FakeCuda) -> None:
    """Other threads may go on meanwhile: the error mode is that of this thread."""
    called_on = []
    replayed = Replayed(lambda x: called_on.append(cuda.current) or x + 1, CudaGraphs())
    for _ in range(WARM_UP + 3):
        for size in (2, 3):
            replayed(torch.ones(size))
    assert cuda.streams == 1 and called_on == ["side 1"] * 2 * (WARM_UP + 1)
    assert [entry for entry in cuda.log if entry[0] == "capture"] == [
        ("capture", "pool", "side 1", "thread_local")
    ] * 2
    # A call on the side stream begins after what came before it, and what follows waits for it.
    assert cuda.log[:2] == [("side 1", "waits for", "main"), ("main", "waits for", "side 1")]
    assert cuda.log.count(("replay",)) == 2 * 3


class Activations:
    """What a failed recording must not keep; in a circle, so that only the collector can free it."""

    def __init__(self) -> None:
        self.circle = self


def test_goes_on_plainly_where_recording_fails(cuda: FakeCuda) -> None:
    """On the current stream, after everything that the failed call held was given back."""
    alive: list[weakref.ref[Activations]] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        assert not any(one() for one in alive), "kept from the failed recording"
        cuda.log.append(("call", cuda.current))
        if cuda.capturing:
            held = Activations()
            alive.append(weakref.ref(held))
            raise RuntimeError("operation not permitted when stream is capturing")
        return x + 1

    replayed = Replayed(function, CudaGraphs())
    for _ in range(WARM_UP):
        replayed(torch.ones(2))
    cuda.log.clear()
    with pytest.warns(UserWarning, match="not permitted"):
        assert replayed(torch.ones(2)).tolist() == [2, 2]
    assert cuda.log == [
        ("capture", "pool", "side 1", "thread_local"),
        ("call", "side 1"),
        ("empty cache",),
        ("call", "main"),
    ]
    assert replayed(torch.ones(3)).tolist() == [2, 2, 2], "and nothing else is recorded"
    assert cuda.log[4:] == [("call", "main")]


@pytest.mark.gpu
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
    replayed = Replayed(update)
    recorded = [float(replayed(x)) for x in batches]
    torch.testing.assert_close(recorded, plain, rtol=1e-5, atol=1e-7)
