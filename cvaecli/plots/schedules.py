"""Beta, the teacher-forcing ratio and the learning rate at every step, computed from the config.

The logs hold a schedule's values ten steps (or an epoch) apart. Lines between them would miss changes or draw
jumps as slopes. The schedules are functions of the config and the step, so they are computed here. The logged
values are only a check: if they disagree (a schedule changed by a resume, a run of another version), they are
drawn instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..config.schema import KLConfig, OptimConfig, RunConfig, TeacherForcingConfig, TrainConfig
from ..errors import UserError
from ..tables import AbsentError, Array
from . import style
from .runs import Request, Run

NAMES = {"beta": "KL weight β", "tfr": "teacher-forcing ratio", "lr": "learning rate"}
AS_LOGGED = " (as logged; the config gives other values)"
NOMINAL_STEPS = 100
"""Steps per epoch if the config does not say: then they depend on the amount of data."""
_POINTS = 4000  # points of a curve; more than the page can show


class Curve(NamedTuple):
    """A schedule over training: ``value[n]`` is valid from ``epochs[n]`` (epochs trained) to the next."""

    epochs: Array
    value: Array
    logged: bool = False
    """The values come from the logs, because the config does not give them."""


@dataclass(frozen=True)
class Plan:
    """The schedules of a training and the steps of each of its epochs."""

    kl: KLConfig
    forcing: TeacherForcingConfig | None
    optim: OptimConfig
    steps: Sequence[int]

    @classmethod
    def of(cls, config: RunConfig) -> Plan:
        """The plan of a config, with ``NOMINAL_STEPS`` steps per epoch if the config does not say."""
        train = config.train
        steps = [train.steps_per_epoch or NOMINAL_STEPS] * train.epochs
        return cls(config.kl, config.teacher_forcing, config.optim, steps)

    def value(self, column: str, step: int, epoch: int) -> float:
        """``beta``, ``tfr`` or ``lr`` of a step of an epoch, both counted from 0."""
        from .. import schedules

        total = sum(self.steps)
        if column == "beta":
            return schedules.beta(self.kl, step, epoch, total_steps=total, epochs=len(self.steps))
        if column == "lr":
            return schedules.learning_rate(self.optim, step, epoch, total_steps=total)
        return schedules.tfr(self.forcing, epoch) if self.forcing else 0.0

    def curve(self, column: str, last: int | None = None) -> Curve:
        """The schedule at every step, up to ``last`` steps done."""
        starts = [0, *accumulate(self.steps)]
        places = [
            (step, epoch)
            for epoch, n in enumerate(self.steps)
            for step in range(starts[epoch], starts[epoch] + n)
        ]
        places = places[:last]
        epochs = [epoch + (step - starts[epoch]) / self.steps[epoch] for step, epoch in places]
        value = [self.value(column, step, epoch) for step, epoch in places]
        end = float(trained(self.steps, [len(places)])[0])
        return _thinned(Curve(np.array([*epochs, end]), np.array([*value, value[-1]])))


def _thinned(curve: Curve) -> Curve:
    """At most about ``_POINTS`` points: the lowest and the highest of each block, so that no peak is lost."""
    block = len(curve.value) // (_POINTS // 2)
    if block < 2:
        return curve
    keep = {0, len(curve.value) - 1}
    for first in range(0, len(curve.value), block):
        part = curve.value[first : first + block]
        keep |= {first + int(part.argmin()), first + int(part.argmax())}
    chosen = sorted(keep)
    return Curve(curve.epochs[chosen], curve.value[chosen])


# ---------------------------------------------------------------- a run's schedules


def trained(steps: Sequence[int], done: Sequence[float] | Array) -> Array:
    """Epochs trained after ``done`` steps, if the epochs have these numbers of ``steps``."""
    ends = np.array([0, *accumulate(steps)], dtype=float)
    return np.asarray(np.interp(np.asarray(done, dtype=float), ends, np.arange(len(ends))))


def steps_of_epochs(run: Run) -> list[int]:
    """Steps of each planned epoch of a run: as run.json says, else from the epochs that are done."""
    table = run.table("metrics.csv", ["epoch"], ["step"])
    train = run.section("train", TrainConfig)
    epochs = max(train.epochs if train else 0, int(table["epoch"][-1]) + 1)
    if train is not None and train.steps_per_epoch is not None:
        return [train.steps_per_epoch] * epochs
    match run.info.get("epoch_steps"), train:
        case [int(fast), int(usual)], TrainConfig() if min(fast, usual) > 0:
            n = min(train.fast_epochs, epochs)
            return [fast] * n + [usual] * (epochs - n)
    if not np.isfinite(table["step"]).all():
        return [1] * epochs
    done = np.diff(
        np.interp(np.arange(table["epoch"][-1] + 2), [0, *(table["epoch"] + 1)], [0, *table["step"]])
    )
    steps = [max(1, round(n)) for n in done]
    if len(steps) > 1 and not (train and train.fast_epochs == len(steps) - 1):
        steps[-1] = max(steps[-1], steps[-2])  # the last epoch may have been cut short
    return steps + steps[-1:] * (epochs - len(steps))


def epochs_trained(run: Run, table: Mapping[str, Array]) -> Array:
    """The places of the rows of metrics.csv or steps.csv on the axis of epochs trained."""
    if "step" in table and np.isfinite(table["step"]).all():
        return trained(steps_of_epochs(run), table["step"])
    return table["epoch"] + 1


def plan_of(run: Run) -> Plan | None:
    """The run's plan; None if its config does not say."""
    kl, optim = run.section("kl", KLConfig), run.section("optim", OptimConfig)
    if kl is None or optim is None:
        return None
    return Plan(kl, run.section("teacher_forcing", TeacherForcingConfig), optim, steps_of_epochs(run))


def curve_of(run: Run, column: str) -> Curve:
    """A schedule of a run as far as it was trained: computed, or as logged if the log disagrees.

    Raises:
        AbsentError: no log, or ``tfr`` for a model without teacher forcing.
    """
    if column == "tfr" and run.parallel:
        raise AbsentError(
            f"{run.folder}: the model predicts all frames at once and has no teacher forcing",
            "plot the other runs",
        )
    table = _logged(run, column)
    plan = plan_of(run)
    if plan is not None:
        due = [
            plan.value(column, int(s) - 1, int(e)) for s, e in zip(table["step"], table["epoch"], strict=True)
        ]
        known = np.isfinite(table[column])
        if np.allclose(table[column][known], np.array(due)[known], rtol=1e-5, atol=1e-9):
            return plan.curve(column, run.logged_steps)
    at, value = epochs_trained(run, table), table[column]
    first = np.r_[0.0, at[:-1]]  # a row is written at the end of the steps that it describes
    return Curve(np.r_[first, at[-1]], np.r_[value, value[-1]], logged=True)


def _logged(run: Run, column: str) -> dict[str, Array]:
    """The rows with the schedule: from steps.csv, else from metrics.csv."""
    run.table("metrics.csv", ["epoch"])  # must exist: it says how long an epoch is
    try:
        return run.table("steps.csv", ["step", "epoch", column])
    except AbsentError:
        return run.table("metrics.csv", ["step", "epoch", column])


def moves_within_epochs(run: Run) -> bool:
    """Whether beta changes from step to step, not only from epoch to epoch."""
    curve = curve_of(run, "beta")
    same_epoch = np.diff(np.floor(curve.epochs[:-1] + 1e-9)) == 0
    return bool((np.abs(np.diff(curve.value[:-1]))[same_epoch] > 1e-9).any())


# ---------------------------------------------------------------- figures


def beta_figure(request: Request) -> Figure:
    """KL weight over training."""
    return _figure("beta", request)


def tfr_figure(request: Request) -> Figure:
    """Teacher-forcing ratio over training, with the coin of each epoch."""
    return _figure("tfr", request)


def lr_figure(request: Request) -> Figure:
    """Learning rate over training."""
    return _figure("lr", request)


def planned_figure(column: str, plans: Mapping[str, Plan], title: str = "") -> Figure:
    """A schedule of configs that need not have been run; ``plans`` by name.

    Raises:
        UserError: ``tfr`` for a model that has no teacher forcing.
    """
    figure, [axes] = style.new_figure(2.0)
    handles = []
    for n, (name, plan) in enumerate(plans.items()):
        if column == "tfr" and plan.forcing is None:
            raise UserError(f"{name}: the model predicts all frames at once and has no teacher forcing")
        handles.append(draw(axes, plan.curve(column), label=name, **style.of(n)))
    return _finish(figure, axes, column, handles, [style.points(line)[1] for line in handles], None, title)


def _figure(column: str, request: Request) -> Figure:
    figure, [axes] = style.new_figure(2.0)
    handles, forced, curves, remark = [], [], [], ""
    for run, curve in request.each(lambda run: curve_of(run, column)):
        label = run.label + (" (as logged)" if curve.logged else "")
        remark = f"{NAMES[column]}{AS_LOGGED}" if curve.logged else ""
        handles.append(draw(axes, curve, label=label, **run.style))
        curves.append(curve.value)
        if column == "tfr":
            forced += _coins(axes, run)
    if forced:
        handles += style.forced_keys(forced, comparison=True)
    title = "" if request.comparison else request.title(remark)
    shown = handles if request.comparison else handles[1:]
    return _finish(figure, axes, column, shown, curves, request.log, title)


def _finish(
    figure: Figure,
    axes: Axes,
    column: str,
    handles: Sequence[Line2D],
    values: Sequence[Array],
    log: bool | None,
    title: str,
) -> Figure:
    if column == "lr":
        style.y_scale(axes, values, log)
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(NAMES[column])
    style.epochs_axis(axes)
    style.show_hidden(axes)
    style.legend(figure, handles, title)
    return figure


def _coins(axes: Axes, run: Run) -> list[Array]:
    """Mark each epoch's ratio by whether the epoch was forced; returns the shares of forced steps."""
    table = run.table("metrics.csv", ["epoch", "tfr"], ["forced"])
    if not np.isfinite(table["forced"]).any():
        return []
    style.mark_forced(axes, table["epoch"] + 0.5, table["tfr"], table["forced"], colour=run.colour)
    return [table["forced"]]


def draw(axes: Axes, curve: Curve, **look: Any) -> Line2D:
    """Draw a schedule as steps: each value lasts until the next, and drops are vertical."""
    line: Line2D = axes.plot(curve.epochs, curve.value, drawstyle="steps-post", **look)[0]
    return line
