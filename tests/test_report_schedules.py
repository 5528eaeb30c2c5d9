"""The reports' schedules: beta and the teacher-forcing ratio of their configs, epoch by epoch."""

from __future__ import annotations

import pytest

from cvaecli.config import loading as config
from cvaecli.config.schema import KLConfig, RunConfig, TeacherForcingConfig
from cvaecli.engine.teacher_forcing import forced
from cvaecli.schedules import beta, tfr


def betas(kl: KLConfig, epochs: int, steps: int = 1) -> list[float]:
    """beta of every step of a training of ``epochs`` x ``steps``."""
    total = epochs * steps
    return [beta(kl, s, s // steps, total_steps=total, epochs=epochs) for s in range(total)]


def ratios(forcing: TeacherForcingConfig, epochs: int) -> list[float]:
    return [tfr(forcing, epoch) for epoch in range(epochs)]


# --- the pose reports: beta --------------------------------------------------------------------------

HALVES = [0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18]
IN_EPOCHS = [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]
BOTH_ENDS = [0.015, 0.5075, 1, 1, 1]

# fmt: off
REPORT_BETAS = {
    "pose-scheduled": [
        0, 0, 0.04, 0.08, 0.12, 0.16, 0, 0.04, 0.08, 0.12,
        0.16, 0, 0.04, 0.08, 0.12, 0.16, 0, 0.04, 0.08, 0.12,
        0.16, 0, 0.04, 0.08, 0.12, 0.16, 0, 0.04, 0.08, 0.12,
        0.16, 0, 0.04, 0.08, 0.12, 0.16, 0, 0.04, 0.08, 0.12,
        0.16, 0, 0.04, 0.08, 0.12, 0.16, 0, 0.04, 0.08, 0.12,
    ],
    "pose-scheduled-5cycles": [0, *HALVES, *HALVES, *HALVES, *HALVES, *HALVES[:9]],
    "pose-scheduled-monotonic": [0, 0, *[1] * 48],
    "pose-scheduled-none": [0, *[1] * 49],
    "pose-floor": IN_EPOCHS * 7,
    "pose-floor-monotonic": [0, 0.2, 0.4, 0.6, 0.8, *[1] * 65],
    "pose-floor-none": [0, *[1] * 69],
    "pose-mixing": [*BOTH_ENDS * 5, 0.015, 0.5075],
    "pose-mixing-tfr0": [*BOTH_ENDS * 5, 0.015, 0.5075],
    "pose-mixing-tfr1": [*BOTH_ENDS * 5, 0.015, 0.5075],
    "pose-mixing-no-interpolation": [*BOTH_ENDS * 5, 0.015, 0.5075],
    "pose-mixing-monotonic": [
        0.015, 0.080667, 0.146333, 0.212, 0.277667, 0.343333, 0.409, 0.474667,
        0.540333, 0.606, 0.671667, 0.737333, 0.803, 0.868667, 0.934333, *[1] * 12,
    ],
    "pose-mixing-none": [1] * 27,
}
# fmt: on


def test_every_report_config_has_its_table() -> None:
    names = {name.removeprefix("reports/") for name in config.builtin_names() if name.startswith("reports/")}
    # Those of the robot reports are formulas, see below.
    assert {name for name in names if not name.startswith("robot-")} == set(REPORT_BETAS)


@pytest.mark.parametrize("name", REPORT_BETAS)
def test_report_beta(name: str) -> None:
    run = config.load(f"reports/{name}")
    table = REPORT_BETAS[name]
    assert run.train.epochs == len(table)
    assert betas(run.kl, run.train.epochs) == pytest.approx(table, abs=5e-7)
    # It stays for a whole epoch, whatever the number of steps.
    assert betas(run.kl, run.train.epochs, steps=3)[::3] == betas(run.kl, run.train.epochs, steps=3)[2::3]


def test_report_beta_reaches_one_exactly_where_it_should() -> None:
    for name in ("pose-floor", "pose-floor-monotonic", "pose-mixing", "pose-mixing-monotonic"):
        run = config.load(f"reports/{name}")
        assert max(betas(run.kl, run.train.epochs)) == 1.0


def test_pose_scheduled_monotonic_at_another_ratio() -> None:
    run = config.load("reports/pose-scheduled-monotonic", ["kl.values=[0,0,0.5,1]"])
    assert betas(run.kl, 6) == [0, 0, 0.5, 1, 1, 1]


# --- the pose reports: teacher-forcing ratio ---------------------------------------------------------


def test_pose_scheduled_ratio() -> None:
    forcing = config.load("reports/pose-scheduled").teacher_forcing
    assert forcing is not None
    falling = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert ratios(forcing, 50) == [*[1.0] * 10, *falling, *[0.0] * 31]


def test_pose_floor_ratio() -> None:
    forcing = config.load("reports/pose-floor").teacher_forcing
    assert forcing is not None
    stairs = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    assert ratios(forcing, 80) == [ratio for ratio in stairs for _ in range(10)]
    assert ratios(forcing, 100)[80:] == [0.3] * 20, "the floor"


FALLING = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("", [*[0.5] * 10, *FALLING[5:], *[0.0] * 13]),
        ("-tfr0", [0.0] * 27),
        ("-tfr1", [*[1.0] * 10, *FALLING, *[0.0] * 8]),
    ],
)
def test_pose_mixing_ratio(name: str, table: list[float]) -> None:
    forcing = config.load(f"reports/pose-mixing{name}").teacher_forcing
    assert forcing is not None and ratios(forcing, 27) == table


# --- the robot reports -------------------------------------------------------------------------------


def by_iteration(run: RunConfig) -> list[float]:
    epochs, steps = run.train.epochs, run.train.steps_per_epoch
    assert steps is not None
    total = epochs * steps
    return [beta(run.kl, t, t // steps, total_steps=total, epochs=epochs) for t in range(total)]


def by_epoch(run: RunConfig) -> list[float]:
    epochs = run.train.epochs
    return [beta(run.kl, 600 * e, e, total_steps=600 * epochs, epochs=epochs) for e in range(epochs)]


def annealed(total: int, cycles: int, ratio: float) -> list[float]:
    """As the report's code: upward by 1 / (period * ratio) until 1; a new cycle starts at 0."""
    period = total // cycles
    return [min((t % period) / (period * ratio), 1.0) for t in range(total)]


@pytest.mark.parametrize(("name", "cycles"), [("robot-annealed", 3), ("robot-annealed-monotonic", 1)])
def test_annealed_beta_is_per_iteration(name: str, cycles: int) -> None:
    run = config.load(f"reports/{name}")
    betas = by_iteration(run)
    assert len(betas) == 120000 and betas == pytest.approx(annealed(120000, cycles, 0.5), abs=1e-9)
    assert betas[0] == 0 and betas[120000 // cycles // 2] == 1 == betas[-1]


def test_annealed_ratio_falls_to_0() -> None:
    forcing = config.load("reports/robot-annealed").teacher_forcing
    assert forcing is not None
    ratios = [tfr(forcing, epoch) for epoch in range(200)]
    assert ratios[:100] == [1.0] * 100 and ratios[100] == 0.99 and ratios[199] == 0.0
    assert ratios == sorted(ratios, reverse=True)


def test_tf1_beta_is_per_epoch() -> None:
    """The code adds beta_min to the ramp; here the ramp starts at it, 1e-4 lower at most."""
    step = 1 / ((100 // 3) * 0.5)
    monotonic = [min(1e-4 + k * step, 1.0) for k in range(100)]
    cyclical = [min(1e-4 + k % 33 * step, 1.0) for k in range(100)]
    for name, table in (("", monotonic), ("-learned-prior", monotonic), ("-cyclical", cyclical)):
        run = config.load(f"reports/robot-tf1{name}")
        assert by_epoch(run) == pytest.approx(table, abs=1e-4)


def test_tf1_is_always_forced() -> None:
    forcing = config.load("reports/robot-tf1").teacher_forcing
    assert forcing is not None
    assert all(all(forced(forcing, 42, e, e, time_steps=10)) for e in range(100))


def test_kinds_of_a_report_differ_in_one_thing() -> None:
    def without(name: str, section: str) -> dict[str, object]:
        return {key: value for key, value in config.load(name).to_dict().items() if key != section}

    for name, other, section in (
        ("robot-annealed", "robot-annealed-monotonic", "kl"),
        ("robot-tf1", "robot-tf1-cyclical", "kl"),
        ("robot-tf1", "robot-tf1-learned-prior", "model"),
    ):
        assert without(f"reports/{name}", section) == without(f"reports/{other}", section)
