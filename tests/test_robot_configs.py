"""The robot family's configs: beta and teacher forcing against the reports' formulas."""

from __future__ import annotations

import pytest

from cvaecli.config import loading as config
from cvaecli.config.schema import DataConfig, RunConfig
from cvaecli.data import KINDS
from cvaecli.engine.teacher_forcing import forced
from cvaecli.models.svg.model import SVGConfig
from cvaecli.schedules import beta, tfr

NAMES = config.builtin_names()
ROBOT = [name for name in NAMES if config.load(name).data.kind == "robot"]


def svg(run: RunConfig) -> SVGConfig:
    assert isinstance(run.model, SVGConfig)
    return run.model


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


def test_the_families_configs_are_all_here() -> None:
    reports = {f"reports/robot-annealed{kind}" for kind in ("", "-monotonic")}
    reports |= {f"reports/robot-tf1{kind}" for kind in ("", "-cyclical", "-learned-prior")}
    assert set(ROBOT) == {"robot", "quickstart-robot", "robot-futures", *reports}
    assert {name for name in NAMES if name.startswith("reports/robot-")} == reports


@pytest.mark.parametrize("name", ROBOT)
def test_two_frames_to_ten(name: str) -> None:
    run = config.load(name)
    assert (run.data.n_past, run.data.n_future, run.train.window) == (2, 10, 12)
    assert run.model_name == "svg" and svg(run).normalise and run.eval.prior == "sample"


@pytest.mark.parametrize(("name", "cycles"), [("robot-annealed", 3), ("robot-annealed-monotonic", 1)])
def test_annealed_beta_is_per_iteration(name: str, cycles: int) -> None:
    run = config.load(f"reports/{name}")
    betas = by_iteration(run)
    assert len(betas) == 120000 and betas == pytest.approx(annealed(120000, cycles, 0.5), abs=1e-9)
    assert betas[0] == 0 and betas[120000 // cycles // 2] == 1 == betas[-1]
    assert run.kl.weight == 1 and run.kl.reduction == "sum"


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
        assert run.kl.unit == "epoch" and run.kl.weight == 1 and run.kl.reduction == "sum"


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


@pytest.mark.parametrize("name", ["quickstart-robot", "robot-futures"])
def test_kl_is_on_the_reconstructions_scale(name: str) -> None:
    run = config.load(name)
    assert run.train.recon == "optimal_sigma" and run.train.time_reduction == "mean"
    assert (run.kl.reduction, run.kl.weight) == ("pixel", 1), "the lower bound at every frame size"


def test_a_kinds_own_defaults() -> None:
    robot = DataConfig(kind="robot")
    assert (robot.height, robot.width, robot.n_past, robot.n_future) == (64, 64, 2, 10)
    dance = DataConfig()
    assert (dance.height, dance.width, dance.n_past, dance.n_future) == (32, 64, 1, None)
    free = DataConfig.model_validate({"kind": "robot", "height": 32, "n_future": None})
    assert (free.height, free.width, free.n_future) == (32, 64, None)
    assert DataConfig.model_validate(free.model_dump()) == free
    for name, kind in KINDS.items():
        data = DataConfig.model_validate({"kind": name})
        assert (data.height, data.width) == (kind.height, kind.width)
