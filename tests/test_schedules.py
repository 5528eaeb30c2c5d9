"""Schedules against tables written out by hand."""

from __future__ import annotations

import pytest

from cvaecli.config import loading as config
from cvaecli.config.schema import KLConfig, OptimConfig, TeacherForcingConfig
from cvaecli.engine.teacher_forcing import forced
from cvaecli.schedules import Scheduled, beta, learning_rate, tfr


def betas(kl: KLConfig, epochs: int, steps: int = 1) -> list[float]:
    """beta of every step of a training of ``epochs`` x ``steps``."""
    total = epochs * steps
    return [beta(kl, s, s // steps, total_steps=total, epochs=epochs) for s in range(total)]


def ratios(forcing: TeacherForcingConfig, epochs: int) -> list[float]:
    return [tfr(forcing, epoch) for epoch in range(epochs)]


# --- beta --------------------------------------------------------------------------------------------


def test_the_ramp_rises_with_every_step() -> None:
    # 0 upward by 1 / (period * ratio), period = all iterations / cycles: here 12 / 2 = 6, 6 * 0.5 = 3.
    cyclical = KLConfig(schedule="cyclical", cycles=2, ratio=0.5, unit="step")
    third = 1 / 3
    assert betas(cyclical, 3, 4) == pytest.approx(
        [0, third, 2 * third, 1, 1, 1, 0, third, 2 * third, 1, 1, 1]
    )
    monotonic = KLConfig(schedule="monotonic", ratio=0.5, unit="step")
    sixth = 1 / 6
    expected = [0, sixth, 2 * sixth, 3 * sixth, 4 * sixth, 5 * sixth, 1, 1, 1, 1, 1, 1]
    assert betas(monotonic, 3, 4) == pytest.approx(expected)


def test_the_ramp_rises_with_every_epoch() -> None:
    # min(k * step, 1), step = 1 / ((epochs // cycles) * ratio), k = epoch mod (epochs // cycles):
    # 11 epochs, 2 cycles: 5 epochs a cycle, ratio 0.8: a quarter an epoch, and an odd epoch at the end.
    cyclical = KLConfig(schedule="cyclical", period=5, ratio=0.8, unit="epoch")
    assert betas(cyclical, 11) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0, 0.25, 0.5, 0.75, 1, 0])
    monotonic = KLConfig(schedule="monotonic", period=5, ratio=0.8, unit="epoch")
    assert betas(monotonic, 11) == pytest.approx([0, 0.25, 0.5, 0.75, *[1] * 7])
    # A beta_min is added to the ramp, which then arrives early.
    listed = KLConfig(schedule="values", values=[0.1, 0.35, 0.6, 0.85, 1], repeat_from=0)
    assert betas(listed, 7) == [0.1, 0.35, 0.6, 0.85, 1, 0.1, 0.35]


def test_none_is_constant() -> None:
    assert betas(KLConfig(schedule="none", stop=0.5), 3, 2) == [0.5] * 6


def test_cyclical_by_step_and_by_epoch() -> None:
    by_step = KLConfig(schedule="cyclical", cycles=2, ratio=0.5, unit="step")
    assert betas(by_step, 4, 2) == [0, 0.5, 1, 1, 0, 0.5, 1, 1]
    by_epoch = KLConfig(schedule="cyclical", cycles=2, ratio=0.5, unit="epoch")
    assert betas(by_epoch, 4, 2) == [0, 0, 1, 1, 0, 0, 1, 1]


def test_monotonic_holds() -> None:
    kl = KLConfig(schedule="monotonic", ratio=0.4, unit="step")
    assert betas(kl, 10) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1])
    with_period = KLConfig(schedule="monotonic", ratio=1, period=2, unit="step")
    assert betas(with_period, 6) == [0, 0.5, 1, 1, 1, 1]


def test_period_overrides_cycles() -> None:
    kl = KLConfig(schedule="cyclical", cycles=7, period=3, ratio=1, unit="epoch")
    third = 1 / 3
    assert betas(kl, 7) == pytest.approx([0, third, 2 * third, 0, third, 2 * third, 0])


def test_a_period_need_not_be_whole() -> None:
    kl = KLConfig(schedule="cyclical", cycles=4, ratio=0.5, unit="epoch")  # 10 / 4 = 2.5 epochs
    assert betas(kl, 10) == pytest.approx([0, 0.8, 1, 0.4, 1, 0, 0.8, 1, 0.4, 1])


def test_start_and_stop() -> None:
    kl = KLConfig(schedule="cyclical", cycles=1, start=0.2, stop=0.6, ratio=0.5, unit="epoch")
    assert betas(kl, 8) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6])
    falling = KLConfig(schedule="monotonic", start=1, stop=0, ratio=0.5, unit="epoch")
    assert betas(falling, 4) == [1, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("ramp", "table"),
    [
        ("linear", [0, 0.25, 0.5, 0.75, 1]),
        ("cosine", [0, 0.1464466, 0.5, 0.8535534, 1]),
        ("sigmoid", [0, 0.0451767, 0.5, 0.9548233, 1]),
    ],
)
def test_ramp_shapes(ramp: str, table: list[float]) -> None:
    kl = KLConfig(schedule="monotonic", ramp=ramp, ratio=0.5, unit="epoch")
    values = betas(kl, 8)
    assert values[:5] == pytest.approx(table, abs=1e-6)
    assert values[0] == 0.0 and values[4:] == [1.0] * 4


@pytest.mark.parametrize("ramp", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1e-5, 1.0), (0.015, 0.7), (0.03, 0.29)])
def test_each_cycle_starts_at_start_and_reaches_stop_exactly(ramp: str, start: float, stop: float) -> None:
    for cycles in range(1, 12):
        for tenths in range(1, 10):
            kl = KLConfig(
                schedule="cyclical", cycles=cycles, ratio=tenths / 10, ramp=ramp, start=start, stop=stop
            )
            values = betas(kl, cycles, 10)  # 10 steps a cycle
            for first in range(0, 10 * cycles, 10):
                assert values[first] == start
                assert values[first + tenths : first + 10] == [stop] * (10 - tenths)


def test_lists_hold_or_repeat() -> None:
    assert betas(KLConfig(schedule="values", values=[0.1, 0.2]), 5, 1) == [0.1, 0.2, 0.2, 0.2, 0.2]
    whole = KLConfig(schedule="values", values=[0.1, 0.2], repeat_from=0)
    assert betas(whole, 5) == [0.1, 0.2, 0.1, 0.2, 0.1]
    tail = KLConfig(schedule="values", values=[9, 0.1, 0.2, 0.3], repeat_from=2)
    assert betas(tail, 8) == [9, 0.1, 0.2, 0.3, 0.2, 0.3, 0.2, 0.3]
    assert betas(whole, 3, 2) == [0.1, 0.1, 0.2, 0.2, 0.1, 0.1]


# --- teacher-forcing ratio ---------------------------------------------------------------------------


def test_epoch_0_has_the_start_ratio() -> None:
    assert ratios(TeacherForcingConfig(ratio=1, decay=0.25), 6) == [1, 0.75, 0.5, 0.25, 0, 0]
    assert ratios(TeacherForcingConfig(ratio=1, decay=0.25, decay_start=1), 3) == [1, 0.75, 0.5]


def test_every_counts_multiples_not_epochs_since_the_start() -> None:
    forcing = TeacherForcingConfig(ratio=1, decay=0.25, decay_start=3, every=4)
    assert ratios(forcing, 14) == [*[1] * 4, *[0.75] * 4, *[0.5] * 4, *[0.25] * 2]
    at_multiple = TeacherForcingConfig(ratio=1, decay=0.5, decay_start=4, every=2)
    assert ratios(at_multiple, 8) == [1, 1, 1, 1, 0.5, 0.5, 0, 0]


def test_a_floor_never_raises() -> None:
    low = TeacherForcingConfig(ratio=0.2, decay=0.1, floor=0.3)
    assert ratios(low, 4) == [0.2] * 4
    high = TeacherForcingConfig(ratio=0.45, decay=0.1, floor=0.3)
    assert ratios(high, 4) == [0.45, 0.35, 0.3, 0.3]


def test_no_decay_is_constant() -> None:
    assert ratios(TeacherForcingConfig(ratio=0.7, decay_start=2, floor=0.1), 5) == [0.7] * 5


def test_ratio_falls_to_exactly_zero() -> None:
    forcing = TeacherForcingConfig(ratio=1.0, decay=0.1)
    assert tfr(forcing, 10) == 0.0 and tfr(forcing, 3) == 0.7


# --- coins -------------------------------------------------------------------------------------------


def toss(forcing: TeacherForcingConfig, step: int, epoch: int, seed: int = 1, n: int = 15) -> list[bool]:
    return forced(forcing, seed, step, epoch, time_steps=n)


@pytest.mark.parametrize("coin", ["epoch", "batch", "step"])
def test_ratios_0_and_1_are_certain(coin: str) -> None:
    for ratio, outcome in ((0.0, False), (1.0, True)):
        forcing = TeacherForcingConfig(ratio=ratio, coin=coin)
        assert all(toss(forcing, s, s // 10) == [outcome] * 15 for s in range(300))


@pytest.mark.parametrize("coin", ["epoch", "batch", "step"])
def test_coin_is_a_function_of_its_place(coin: str) -> None:
    forcing = TeacherForcingConfig(ratio=0.5, coin=coin)
    forwards = [toss(forcing, s, s // 10) for s in range(60)]
    backwards = [toss(forcing, s, s // 10) for s in reversed(range(60))]
    assert forwards == backwards[::-1]
    assert forwards != [toss(forcing, s, s // 10, seed=2) for s in range(60)]
    assert all(len(flags) == 15 for flags in forwards)


def test_epoch_coin_ignores_step_and_window() -> None:
    forcing = TeacherForcingConfig(ratio=0.5, coin="epoch")
    for epoch in range(20):
        outcome = toss(forcing, 0, epoch)[0]
        assert toss(forcing, 12345, epoch, n=40) == [outcome] * 40


def test_batch_coin_differs_within_an_epoch_but_not_within_a_batch() -> None:
    forcing = TeacherForcingConfig(ratio=0.5, coin="batch")
    flags = [toss(forcing, step, 0) for step in range(40)]
    assert all(len(set(batch)) == 1 for batch in flags)
    assert len({batch[0] for batch in flags}) == 2


def test_step_coin_differs_within_a_batch() -> None:
    forcing = TeacherForcingConfig(ratio=0.5, coin="step")
    assert len(set(toss(forcing, 0, 0, n=40))) == 2


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("coin", ["epoch", "batch", "step"])
def test_coin_frequency(coin: str, ratio: float) -> None:
    forcing = TeacherForcingConfig(ratio=ratio, coin=coin)
    flags = [toss(forcing, n, n)[-1] for n in range(1500)]
    # Four standard deviations of 1500 tosses at 0.5 are 0.052.
    assert sum(flags) / len(flags) == pytest.approx(ratio, abs=0.052)


def test_coin_follows_a_falling_ratio() -> None:
    forcing = TeacherForcingConfig(ratio=1.0, decay=0.5, coin="epoch")
    assert toss(forcing, 0, 0) == [True] * 15 and toss(forcing, 0, 2) == [False] * 15


# --- learning rate -----------------------------------------------------------------------------------


def rates(optim: OptimConfig, epochs: int, steps: int = 1) -> list[float]:
    total = epochs * steps
    return [learning_rate(optim, s, s // steps, total_steps=total) for s in range(total)]


def test_multistep_falls_at_epochs_2_and_5() -> None:
    expected = [1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-5, 1e-5, 1e-5]
    assert rates(OptimConfig(), 8) == pytest.approx(expected, rel=1e-12)
    assert rates(OptimConfig(), 8, 3) == pytest.approx([lr for lr in expected for _ in range(3)], rel=1e-12)
    assert rates(OptimConfig(milestones=[5, 2]), 8) == rates(OptimConfig(), 8)
    assert rates(OptimConfig(milestones=[0], gamma=0.5), 2) == [5e-4, 5e-4]
    assert rates(OptimConfig(milestones=[]), 2) == [1e-3, 1e-3]


def test_constant() -> None:
    assert rates(OptimConfig(schedule="constant", lr=0.2), 3, 2) == [0.2] * 6


def test_cosine_from_lr_to_min_lr() -> None:
    optim = OptimConfig(schedule="cosine", lr=1.0, min_lr=0.2)
    # Over 4 intervals: 0.2 + 0.8 * (1 + cos(k pi / 4)) / 2.
    assert rates(optim, 5) == pytest.approx([1.0, 0.8828427, 0.6, 0.3171573, 0.2], abs=1e-7)
    assert rates(optim, 1, 1) == [1.0]
    assert rates(OptimConfig(schedule="cosine", lr=1.0), 4, 5)[-1] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("schedule", ["constant", "multistep", "cosine", "polynomial"])
def test_warm_up_rises_linearly_and_arrives(schedule: str) -> None:
    optim = OptimConfig(schedule=schedule, lr=1.0, warmup_steps=4, milestones=[9])
    assert rates(optim, 1, 12)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(rates(optim, 1, 12)) == 1.0


def test_cosine_after_warm_up_ends_at_min_lr() -> None:
    optim = OptimConfig(schedule="cosine", lr=1.0, min_lr=0.1, warmup_steps=2)
    assert rates(optim, 7) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.8681981, 0.55, 0.2318019, 0.1], abs=1e-7)


def test_polynomial_from_lr_to_min_lr() -> None:
    optim = OptimConfig(schedule="polynomial", lr=1.0, min_lr=0.2)
    # Over 4 intervals: 0.2 + 0.8 * (1 - k / 4) ** 2.
    assert rates(optim, 5) == pytest.approx([1.0, 0.65, 0.4, 0.25, 0.2])
    assert rates(optim.model_copy(update={"power": 1.0}), 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert rates(optim.model_copy(update={"warmup_steps": 2}), 5)[2:] == pytest.approx([1.0, 0.4, 0.2])
    assert rates(optim, 1, 1) == [1.0]


# --- all of them --------------------------------------------------------------------------------------


def test_what_a_config_schedules_for_a_step() -> None:
    run = config.load("quickstart")
    for step in (0, 7, 120, 499):
        at = Scheduled.at(run, step, step // 50, 500)
        assert at.beta == beta(run.kl, step, step // 50, total_steps=500, epochs=10)
        assert at.lr == learning_rate(run.optim, step, step // 50, total_steps=500)
        assert run.teacher_forcing is not None and at.tfr == tfr(run.teacher_forcing, step // 50)
    reference = config.load("reference")
    assert reference.teacher_forcing is None and Scheduled.at(reference, 3, 0, 500).tfr == 0
