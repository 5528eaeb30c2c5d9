"""Prediction: causal, in pieces of any size, without memory of other calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from helpers import CPU, AddingCVAE, ReferenceToy, make_model
from torch import Tensor

from cvaecli.engine.rollout import Noise, prior_noise, rollout
from cvaecli.models.base import VideoCVAE
from cvaecli.seeding import frame_noise

SIZE = (8, 8)
MODELS: dict[str, Callable[[], VideoCVAE]] = {
    "pose": make_model,
    "with state": lambda: AddingCVAE().eval(),
    "parallel": lambda: ReferenceToy().eval(),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> VideoCVAE:
    return MODELS[request.param]()


def given(steps: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """past ``[B, 2, ...]``, its conditions, the conditions of K steps."""
    generator = torch.Generator().manual_seed(1)
    shape = (3, *SIZE)
    past, past_condition = (torch.rand(2, 2, *shape, generator=generator) for _ in range(2))
    return past, past_condition, torch.rand(2, steps, *shape, generator=generator)


def named_noise(model: VideoCVAE, *names: str) -> Noise:
    shapes = model.noise_shapes(SIZE)
    return lambda first, count: frame_noise(0, names, range(first, first + count), shapes)


def predicted(
    model: VideoCVAE,
    conditions: Tensor,
    noise: Noise,
    pieces: Sequence[int] | None = None,
    rows: slice | None = None,
) -> Tensor:
    past, past_condition, _ = given()
    rows = rows or slice(None)
    parts = conditions.split(list(pieces) if pieces else conditions.shape[1], 1)
    return torch.cat(list(rollout(model, past[rows], past_condition[rows], parts, noise, CPU)), 1)


def test_shapes_and_kind(model: VideoCVAE) -> None:
    past, past_condition, conditions = given()
    pieces = list(
        rollout(model, past, past_condition, conditions.split(4, 1), named_noise(model, "a", "b"), CPU)
    )
    assert [tuple(p.shape) for p in pieces] == [(2, k, 3, *SIZE) for k in (4, 4, 1)]
    assert all(p.dtype == torch.float32 for p in pieces)


def test_a_condition_changes_its_frame_and_no_earlier_one(model: VideoCVAE) -> None:
    *_, conditions = given()
    noise = named_noise(model, "a", "b")
    before = predicted(model, conditions, noise)
    edited = conditions.clone()
    edited[:, 5] = 1 - edited[:, 5]
    after = predicted(model, edited, noise)
    assert torch.equal(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5], before[:, 5], atol=1e-4)
    if not model.parallel:
        assert not torch.equal(after[:, 6], before[:, 6]), "frame 5 is fed back"


def test_the_first_frames_of_a_long_rollout_equal_a_short_one(model: VideoCVAE) -> None:
    *_, conditions = given(30)
    noise = named_noise(model, "a", "b")
    long = predicted(model, conditions, noise, [6] * 5)
    assert torch.equal(long[:, :12], predicted(model, conditions[:, :12], noise, [6, 6]))


@pytest.mark.parametrize("pieces", [[1] * 9, [2, 3, 4], [8, 1]])
def test_pieces_do_not_change_the_result(model: VideoCVAE, pieces: list[int]) -> None:
    *_, conditions = given()
    noise = named_noise(model, "a", "b")
    torch.testing.assert_close(
        predicted(model, conditions, noise, pieces), predicted(model, conditions, noise), atol=1e-5, rtol=1e-5
    )


def test_a_clip_alone_equals_the_same_clip_among_others(model: VideoCVAE) -> None:
    *_, conditions = given()
    both = predicted(model, conditions, named_noise(model, "a", "b"))
    for row, name in enumerate("ab"):
        one = slice(row, row + 1)
        alone = predicted(model, conditions[one], named_noise(model, name), rows=one)
        torch.testing.assert_close(alone, both[one], atol=1e-5, rtol=1e-5)


def test_no_state_leaks_between_calls(model: VideoCVAE) -> None:
    *_, conditions = given()
    noise = named_noise(model, "a", "b")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = predicted(model, conditions, noise)
    predicted(model, 1 - conditions, named_noise(model, "c", "d"), [2, 7])
    assert torch.equal(predicted(model, conditions, noise), first)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_two_rollouts_at_once_do_not_disturb_each_other(model: VideoCVAE) -> None:
    past, past_condition, conditions = given()
    noise = named_noise(model, "a", "b")
    alone = predicted(model, conditions, noise, [3] * 3)
    streams = [
        rollout(model, past, past_condition, conditions.split(3, 1), noise, CPU),
        rollout(model, past.flip(0), past_condition, conditions.split(3, 1), noise, CPU),
    ]
    mixed = torch.cat([mine for mine, _ in zip(*streams, strict=True)], 1)
    assert torch.equal(mixed, alone)


def test_an_endless_rollout_is_lazy(model: VideoCVAE) -> None:
    past, past_condition, conditions = given()
    asked = []

    def endless() -> Iterator[Tensor]:
        while True:
            asked.append(1)
            yield conditions[:, :2]

    stream = rollout(model, past, past_condition, endless(), named_noise(model, "a", "b"), CPU)
    for _ in range(3):
        next(stream)
    assert len(asked) == 3


def test_no_mode_leaks_to_the_consumer(model: VideoCVAE) -> None:
    past, past_condition, conditions = given()
    stream = rollout(model, past, past_condition, conditions.split(3, 1), named_noise(model, "a", "b"), CPU)
    for _ in stream:
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
    stream = rollout(model, past, past_condition, conditions.split(3, 1), named_noise(model, "a", "b"), CPU)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_predictions_are_fed_back() -> None:
    """The toy's recursion written out: x_t = w (x_{t-1} + c_t) + t / 1000."""
    past, _, conditions = given(4)
    x, expected = past[:, -1], []
    for k in range(4):
        x = 0.5 * (x + conditions[:, k]) + k / 1000
        expected.append(x)
    model = AddingCVAE().eval()
    torch.testing.assert_close(
        predicted(model, conditions, named_noise(model, "a", "b")), torch.stack(expected, 1)
    )


def test_the_priors_mean_is_no_noise(model: VideoCVAE) -> None:
    noise = prior_noise(model, ["a", "b"], SIZE, prior="mean", seed=0, n_past=1)(5, 3)
    assert [tuple(n.shape) for n in noise] == [(2, 3, *shape) for shape in model.noise_shapes(SIZE)]
    assert not any(n.any() for n in noise)


def test_noise_is_a_function_of_clip_frame_level_sample_and_seed() -> None:
    shapes = [(2, 3), (4,)]
    base = frame_noise(7, ["a", "b"], range(10, 16), shapes)
    assert [tuple(n.shape) for n in base] == [(2, 6, 2, 3), (2, 6, 4)]
    later = frame_noise(7, ["b"], range(13, 15), shapes)
    for level in (0, 1):
        assert torch.equal(later[level][0], base[level][1, 3:5])
    for other in (
        frame_noise(8, ["a", "b"], range(10, 16), shapes),
        frame_noise(7, ["a", "b"], range(10, 16), shapes, sample=1),
        frame_noise(7, ["c", "d"], range(10, 16), shapes),
        frame_noise(7, ["a", "b"], range(16, 22), shapes),
    ):
        assert not (other[0] == base[0]).any()
    flat = frame_noise(0, ["a"], range(4000), [(4,)])[0].flatten()
    assert abs(flat.mean().item()) < 0.03 and abs(flat.std().item() - 1) < 0.03
