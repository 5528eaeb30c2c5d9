"""Loss and KL over training, from metrics.csv and steps.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..config.schema import KLConfig
from ..tables import Array
from . import style
from .runs import RECONSTRUCTIONS, Request, Run, differing
from .schedules import epochs_trained, moves_within_epochs


@dataclass(frozen=True)
class _Curves:
    """A run's training and validation values, as (epochs trained, value)."""

    run: Run
    train: tuple[Array, Array]
    val: tuple[Array, Array]
    forced: Array | None = None
    """Share of teacher-forced inputs at each point of both; None if there is no forcing to show."""


def loss_figure(request: Request) -> Figure:
    """Training and validation loss; points are coloured by whether the epoch was teacher-forced."""

    def read(run: Run) -> _Curves:
        table = run.table("metrics.csv", ["epoch", "train/loss"], ["val/loss", "forced", "step"])
        at = epochs_trained(run, table)
        return _Curves(run, (at, table["train/loss"]), (at, table["val/loss"]), forced_share(run, table))

    curves = [curve for _, curve in request.each(read)]
    return _train_and_val(curves, "loss", "recon + weighted KL", request, loss_remark(request))


def kl_figure(request: Request) -> Figure:
    """KL before weighting. If beta changes within epochs and the steps were logged, it is drawn per step.

    For one run, a second panel shows the weighted KL, if it was logged: its part of the loss.
    """
    found = request.each(lambda run: run.table("metrics.csv", ["epoch", "beta"]))
    by_step = all((run.folder / "steps.csv").is_file() for run, _ in found)
    by_step = by_step and any(moves_within_epochs(run) for run, _ in found)
    curves = [_kl_curves(run, "kl", by_step) for run, _ in found]
    weighted = _kl_curves(found[0][0], "kl_weighted", by_step)
    if request.comparison or not np.isfinite(weighted.train[1]).any():
        return _train_and_val(curves, "KL", "nats per frame, unweighted", request, "")
    figure, axes = style.new_figure(3.8, (1, 1))
    for place, curve, label in zip(
        axes, (curves[0], weighted), ("KL (nats per frame)", "weighted KL, in the loss"), strict=True
    ):
        handles = _both(place, curve, with_val=True)
        style.y_scale(place, [curve.train[1], curve.val[1]], request.log)
        place.set_ylabel(label)
    style.epochs_axis(axes[-1])
    style.legend(figure, handles, request.title())
    return figure


def _kl_curves(run: Run, column: str, by_step: bool) -> _Curves:
    """``kl`` or ``kl_weighted``; the second is all NaN if the log has no such column."""
    names = [f"train/{column}", f"val/{column}"]
    needed = names[:1] if column == "kl" else []
    epochs = run.table("metrics.csv", ["epoch", *needed], [*names, "step"])
    at = epochs_trained(run, epochs)
    train = (at, epochs[names[0]])
    if by_step:
        steps = run.table("steps.csv", ["step", "epoch"], [column])
        train = (epochs_trained(run, steps), steps[column])
    return _Curves(run, train, (at, epochs[names[1]]))


def forced_share(run: Run, table: dict[str, Array]) -> Array | None:
    """Each epoch's share of forced inputs; None if it is unknown or the model has no teacher forcing."""
    return None if run.parallel or not np.isfinite(table["forced"]).any() else table["forced"]


def loss_remark(request: Request) -> str:
    """The reconstruction term; for several runs the reason why their losses are not comparable, if any."""
    if not request.comparison:
        recon = request.runs[0].reconstruction
        return f"reconstruction term: {RECONSTRUCTIONS[recon]}" if recon else ""
    terms = differing(request.runs, lambda run: run.reconstruction)
    if terms:
        names = " and ".join(RECONSTRUCTIONS[name] for name in terms[0])
        return f"DIFFERENT RECONSTRUCTION TERMS ({names}): these losses are not comparable"
    if differing(request.runs, _kl_weighting):
        return "the KL is weighted differently: total losses are not comparable (see `plot training` or `kl`)"
    return ""


def _kl_weighting(run: Run) -> str:
    kl = run.section("kl", KLConfig)
    return kl.model_dump_json() if kl else ""


def _train_and_val(curves: Sequence[_Curves], name: str, unit: str, request: Request, remark: str) -> Figure:
    """One run: both curves in one axes. Several: training above validation, one colour and line style per
    run."""
    with_val = any(np.isfinite(curve.val[1]).any() for curve in curves)
    stacked = request.comparison and with_val
    figure, axes = style.new_figure(4.0, (1, 1)) if stacked else style.new_figure(2.4)
    handles: list[Line2D] = []
    for curve in curves:
        if request.comparison:
            handles.append(_one_of_several(axes, curve, with_val))
        else:
            handles += _both(axes[0], curve, with_val)
    if forced := [curve.forced for curve in curves if curve.forced is not None]:
        handles += style.forced_keys(forced, comparison=request.comparison)
    for place, part in zip(axes, ("training", "validation"), strict=False):
        place.set_ylabel(f"{part} {name}" if stacked else f"{name} ({unit})")
        style.y_scale(place, [each[1] for curve in curves for each in (curve.train, curve.val)], request.log)
    style.epochs_axis(axes[-1])
    style.show_hidden(*axes)
    lines = [f"{name}: {unit}" if stacked else "", remark]
    style.legend(figure, handles, request.title(*lines))
    return figure


def _both(axes: Axes, curve: _Curves, with_val: bool) -> list[Line2D]:
    """Training with a solid line and round points, validation with a dashed line and square points."""
    handles = []
    parts = [("training", curve.train, "o", "-")]
    parts += [("validation", curve.val, "s", style.DASHED)] if with_val else []
    for n, (part, (at, value), shape, dashes) in enumerate(parts):
        colour = style.COLOURS[n] if curve.forced is None else "0.35"
        look: dict[str, Any] = {"color": colour, "linestyle": dashes}
        if curve.forced is None:
            look |= {"marker": shape} if len(at) <= style.FEW else {}
            handles.append(style.line(axes, at, value, label=part, **look))
            continue
        style.line(axes, at, value, **look, marker="")
        style.mark_forced(axes, at, value, curve.forced, shape=shape)
        handles.append(style.key(part, **look, marker=shape, markersize=4))
    return handles


def _one_of_several(axes: Sequence[Axes], curve: _Curves, with_val: bool) -> Line2D:
    look = curve.run.style
    for place, (at, value) in zip(axes, (curve.train, curve.val)[: 1 + with_val], strict=True):
        style.line(place, at, value, **look, **({} if curve.forced is None else {"marker": ""}))
        if curve.forced is not None:
            style.mark_forced(place, at, value, curve.forced, colour=curve.run.colour)
    return style.key(curve.run.label, **look)
