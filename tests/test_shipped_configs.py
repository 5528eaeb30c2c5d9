"""Every shipped config takes a training step, and its settings do what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import SMALL_MODELS, predicted
from torch import Tensor

from cvaecli import models
from cvaecli.config import loading as config
from cvaecli.config.schema import RunConfig
from cvaecli.data.clip import Clip
from cvaecli.engine.device import Device
from cvaecli.engine.events import EpochEvent, StepEvent
from cvaecli.engine.fit import Trainer
from cvaecli.terms import TRAIN_TERMS

NAMES = config.builtin_names()
REPORTS = [name for name in NAMES if name.startswith("reports/pose-")]
SIZE = 8
WINDOW = 4
ROBOT_SIZE = 16  # the smallest that svg takes
CPU = Device(torch.device("cpu"), bf16=False)


def clips(n: int = 2, length: int = 20, kind: str = "dance") -> list[Clip]:
    """Noise: no two frames are alike, so that a test sees which one was fed."""
    random = np.random.default_rng(0)
    if kind == "robot":
        shape = (length, 3, ROBOT_SIZE, ROBOT_SIZE)
        vectors = [random.standard_normal((length, 7), np.float32) for _ in range(n)]
        return [
            Clip(f"train/{k}", random.integers(0, 256, shape, np.uint8), v) for k, v in enumerate(vectors)
        ]
    shape = (length, 3, SIZE, SIZE)
    return [
        Clip(f"train/{k}", random.integers(0, 256, shape, np.uint8), random.integers(0, 256, shape, np.uint8))
        for k in range(n)
    ]


def small(name: str, *overrides: str) -> RunConfig:
    """A shipped config at a size for tests."""
    run = config.load(name)
    window = min(run.train.window, WINDOW)
    size = ROBOT_SIZE if run.data.kind == "robot" else SIZE
    return config.load(
        name,
        [
            *SMALL_MODELS[run.model_name],
            f"data.height={size}",
            f"data.width={size}",
            f"train.window={window}",
            "train.batch_size=2",
            "eval.frames=2",
            "eval.clips=1",
            *overrides,
        ],
    )


def trainer(run: RunConfig, data: Sequence[Clip] | None = None) -> Trainer:
    torch.manual_seed(0)
    data = clips(kind=run.data.kind) if data is None else data
    model = models.load(run.model_name)(run.model, data[0].condition.shape[1:])
    return Trainer(model, run, CPU, data, data[:1])


class Fed(NamedTuple):
    """One call of ``step``: what it was fed, and what it predicted."""

    x: Tensor
    x_hat: Tensor


def record_steps(trained: Trainer) -> list[Fed]:
    """Fill the returned list with every step that the model is asked for; steps asked for together, as in
    `unroll`, are one entry of a batch of all of them."""
    record: list[Fed] = []
    step, unroll = trained.model.step, trained.model.unroll

    def recorded(state, x_prev, features, noise, posterior):  # type: ignore[no-untyped-def]
        one, state = step(state, x_prev, features, noise, posterior)
        record.append(Fed(x_prev, one.x_hat))
        return one, state

    def recorded_together(state, x_prev, features, noise, posterior):  # type: ignore[no-untyped-def]
        steps, state = unroll(state, x_prev, features, noise, posterior)
        record.append(Fed(x_prev.flatten(0, 1), steps.x_hat.flatten(0, 1)))
        return steps, state

    trained.model.step = recorded  # type: ignore[method-assign]
    trained.model.unroll = recorded_together  # type: ignore[method-assign]
    return record


def first_step(trained: Trainer) -> StepEvent:
    event = next(trained.events())
    assert isinstance(event, StepEvent)
    return event


def first_windows(data: Sequence[Clip], n: int = 2) -> Tensor:
    """Frames of the first batch where nothing is shuffled, ``[B, T, C, H, W]``."""
    frames = np.stack([data[0].frames[k * WINDOW : (k + 1) * WINDOW] for k in range(n)])
    return torch.from_numpy(frames).float() / 255


def rows(frames: Tensor) -> set[tuple[float, ...]]:
    """The frames ``[N, ...]`` whatever their order."""
    return {tuple(frame.flatten().tolist()) for frame in frames}


@pytest.mark.parametrize("name", NAMES)
def test_config_takes_a_step(name: str) -> None:
    run = small(name)
    trained = trainer(run)
    before = [p.detach().clone() for p in trained.model.parameters()]
    event = first_step(trained)
    assert event.terms is not None and set(event.terms) == set(TRAIN_TERMS)
    assert all(np.isfinite(value) for value in event.terms.values())
    assert event.terms["grad_norm"] > 0 and event.terms["kl"] >= 0
    assert event.terms["loss"] == pytest.approx(
        event.terms["recon"] + event.terms["kl_weighted"], rel=1e-5, abs=1e-6
    )
    if run.kl.reduction == "sum" and not run.kl.free_bits:
        weighted = event.beta * run.kl.weight * event.terms["kl"]
        assert event.terms["kl_weighted"] == pytest.approx(weighted, rel=1e-4)
    assert any(not torch.equal(a, b) for a, b in zip(before, trained.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["reports/pose-mixing", "reports/pose-scheduled", "cyclical"])
def test_config_takes_an_epoch_and_validates(name: str) -> None:
    trained = trainer(small(name, "train.epochs=1", "train.max_steps=2"))
    *_, last = trained.events()
    assert isinstance(last, EpochEvent) and last.evaluation is not None
    assert np.isfinite(last.row["val/psnr"]) and np.isfinite(last.row["train/loss"])


# --- what a step is fed ------------------------------------------------------------------------------


def epoch_of(trained: Trainer, heads: bool) -> int:
    """The first epoch whose coin falls so; the trainer is put there."""
    forcing = trained.config.teacher_forcing
    assert forcing is not None
    for epoch in range(trained.config.train.epochs):
        trained.epoch = epoch
        if all(trained._forced(trained.step)) is heads:
            return epoch
    raise AssertionError("the coin never falls so")


@pytest.mark.parametrize(
    "name", [n for n in REPORTS if n.startswith("reports/pose-mixing") and not n.endswith(("0", "1"))]
)
def test_mixing_heads_blends_and_gradients_flow(name: str) -> None:
    data = clips()
    trained = trainer(small(name), data)
    record = record_steps(trained)
    epoch_of(trained, heads=True)
    event = first_step(trained)
    assert (event.tfr, event.forced) == (0.5, 1.0)
    true = first_windows(data)
    torch.testing.assert_close(record[0].x, true[:, 0])
    for k in range(1, WINDOW - 1):
        torch.testing.assert_close(record[k].x, 0.5 * true[:, k] + 0.5 * record[k - 1].x_hat)
        assert record[k].x.requires_grad


@pytest.mark.parametrize("name", ["reports/pose-mixing", "reports/pose-mixing-tfr0"])
def test_mixing_tails_feeds_the_detached_prediction(name: str) -> None:
    trained = trainer(small(name))
    record = record_steps(trained)
    epoch_of(trained, heads=False)
    assert first_step(trained).forced == 0.0
    for k in range(1, WINDOW - 1):
        torch.testing.assert_close(record[k].x, record[k - 1].x_hat)
        assert not record[k].x.requires_grad


def test_mixing_at_ratio_1_is_the_true_frame() -> None:
    data = clips()
    trained = trainer(small("reports/pose-mixing-tfr1"), data)
    record = record_steps(trained)
    event = first_step(trained)
    assert (event.tfr, event.forced) == (1.0, 1.0)
    fed = torch.cat([one.x for one in record])  # all steps together, or one by one
    assert rows(fed) == rows(first_windows(data)[:, :-1].flatten(0, 1))


def test_blend_weighs_the_true_frame_by_the_ratio() -> None:
    data = clips()
    trained = trainer(small("reports/pose-mixing", "teacher_forcing.ratio=0.8"), data)
    record = record_steps(trained)
    epoch_of(trained, heads=True)
    first_step(trained)
    torch.testing.assert_close(record[1].x, 0.8 * first_windows(data)[:, 1] + 0.2 * record[0].x_hat)


def test_pose_is_detached_and_cyclical_is_not() -> None:
    for name, attached in (("pose", False), ("cyclical", True), ("reports/pose-scheduled-5cycles", True)):
        trained = trainer(small(name))
        record = record_steps(trained)
        assert first_step(trained).forced == 0.0
        for k in range(1, WINDOW - 1):
            torch.testing.assert_close(record[k].x, record[k - 1].x_hat)
            assert record[k].x.requires_grad is attached


def test_detached_feedback_really_stops_gradients() -> None:
    """The loss of the last frame alone reaches the first prediction only where feedback is attached."""
    for detach, reaches in (("off", True), ("on", False)):
        trained = trainer(small("pose", f"teacher_forcing.detach={detach}"))
        record = record_steps(trained)
        batch = next(iter(trained.sampler.epoch(0)))
        predicted(trained, trained.frames.gather(*batch))
        (gradient,) = torch.autograd.grad(record[-1].x_hat.sum(), record[0].x_hat, allow_unused=True)
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) is reaches


@pytest.mark.parametrize("name", ["reports/pose-scheduled", "reports/pose-floor"])
def test_forced_epochs_compare_the_prediction(name: str) -> None:
    """Forced means fed, never scored: the reconstruction term is that of the prediction, not 0."""
    data = clips()
    trained = trainer(small(name), data)
    record = record_steps(trained)
    event = first_step(trained)
    assert (event.tfr, event.forced) == (1.0, 1.0)
    true = first_windows(data)
    fed = torch.cat([one.x for one in record])  # all steps together, or one by one
    assert rows(fed) == rows(true[:, :-1].flatten(0, 1))
    assert event.terms is not None and event.terms["recon"] > 0.01


@pytest.mark.parametrize("name", ["reports/pose-scheduled", "reports/pose-floor"])
def test_ratio_falls_over_the_epochs(name: str) -> None:
    run = small(name)
    trained = trainer(run)
    share = []
    for epoch in range(run.train.epochs):
        trained.epoch = epoch
        coins = trained._forced(trained.step)
        share.append(sum(coins) / len(coins))
    assert set(share) == {0.0, 1.0}, "one coin an epoch"
    assert share[:5] == [1.0] * 5
    if name.endswith("scheduled"):
        assert share[19:] == [0.0] * 31


# --- the other settings ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTS)
def test_posterior_sees_what_the_report_showed_it(name: str) -> None:
    run = small(name)
    told_target = "mu" in trainer(run).model.encode(*(torch.rand(1, 2, 3, SIZE, SIZE) for _ in range(2)))
    assert told_target is not name.startswith("reports/pose-scheduled")


@pytest.mark.parametrize("name", REPORTS)
def test_output_range(name: str) -> None:
    """A generator that says about 2 everywhere: a sigmoid keeps that in (0, 1), a linear output does not."""
    trained = trainer(small(name))
    record = record_steps(trained)
    with torch.no_grad():
        last = list(trained.model.parameters())[-1]
        last.fill_(2.0)  # the generator's last bias
    first_step(trained)
    assert bool((record[0].x_hat <= 1).all()) is name.startswith("reports/pose-mixing")


def test_mixing_uses_the_first_two_fifths_of_the_data() -> None:
    trained = trainer(small("reports/pose-mixing"), clips(1, 100))
    for epoch in (0, 26):
        frames = torch.cat([frame.flatten() for _, frame in trained.sampler.epoch(epoch)])
        assert frames.tolist() == list(range(40))  # 0.4 of 100 frames, in order, in windows of 4
    whole = trainer(small("reports/pose-floor"), clips(1, 100))
    frames = torch.cat([frame.flatten() for _, frame in whole.sampler.epoch(0)])
    assert frames.tolist() == list(range(96))  # the 25th window is an incomplete batch


def test_interpolation_moves_back_to_the_start() -> None:
    weights = {}
    for every in (5, 0):
        name = "reports/pose-mixing" if every else "reports/pose-mixing-no-interpolation"
        run = small(name, "eval.every=0", "optim.lr=0.05", "optim.schedule=constant")
        trained = trainer(run)
        assert run.train.interpolate_every == every
        for event in trained.events():
            if isinstance(event, EpochEvent) and event.epoch in (3, 4):
                moved = [(p - trained.initial[n]).norm().item() for n, p in trained.model.named_parameters()]
                weights[every, event.epoch] = sum(moved)
                if event.epoch == 4:
                    break
    assert weights[5, 3] == pytest.approx(weights[0, 3]), "the same before the fifth epoch's end"
    assert weights[5, 4] < 0.9 * weights[0, 4]


def test_annealing_moves_with_every_step() -> None:
    betas = {}
    for name in ("cyclical", "monotonic", "none", "pose"):
        schedule = ("train.epochs=4", "train.steps_per_epoch=4", "train.window=2", "eval.every=0")
        trained = trainer(small(name, *schedule))
        betas[name] = [e.beta for e in trained.events() if isinstance(e, StepEvent)]
    assert betas["cyclical"] == [0, 0.5, 1, 1] * 4
    assert betas["monotonic"] == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, *[1] * 8]
    assert betas["none"] == [1] * 16
    assert betas["pose"] == pytest.approx([1e-5, 0.500005, 1, 1] * 4) and betas["pose"][0] == 1e-5


def test_loss_is_the_sum_over_the_predicted_frames() -> None:
    """The gradient of the sum over K frames is K times that of their mean."""
    norms = {}
    for reduction in ("sum", "mean"):
        event = first_step(trainer(small("reports/pose-floor", f"train.time_reduction={reduction}")))
        assert event.terms is not None
        norms[reduction] = event.terms["grad_norm"]
    assert norms["sum"] == pytest.approx((WINDOW - 1) * norms["mean"], rel=1e-3)
