"""A training at a glance: the loss, the schedules, and the validation PSNR."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..tables import AbsentError, Array
from . import epochs, schedules, style
from .loss import forced_share
from .runs import RECONSTRUCTIONS, Request, Run, differing


def training_figure(request: Request) -> Figure:
    """One run: loss and reconstruction with beta and tfr on the right axis; below, validation PSNR.

    Several runs: reconstruction, beta, tfr and validation PSNR, one panel each. Total losses are not shown,
    because they are not comparable under different beta. The reconstruction is not shown if ``train.recon``
    differs.
    """
    return _compared(request) if request.comparison else _single(request)


def _table(run: Run) -> dict[str, Array]:
    table = run.table("metrics.csv", ["epoch", "train/loss", "train/recon"], ["val/recon", "forced", "step"])
    return table | {"at": schedules.epochs_trained(run, table)}


def _single(request: Request) -> Figure:
    (run,) = request.runs
    table, psnr = _table(run), _psnr(run)
    figure, axes = style.new_figure(4.2, (1.5, 1)) if psnr else style.new_figure(2.6)
    handles = _loss(axes[0], run, table)
    handles += epochs.schedule_lines(axes[0], run)
    style.y_scale(axes[0], [table["train/loss"], table["train/recon"], table["val/recon"]], request.log)
    axes[0].set_ylabel("loss per frame")
    if psnr:
        handles += epochs.psnr_lines(axes[1], psnr)
        axes[1].set_ylabel("val. PSNR (dB)")
    style.epochs_axis(axes[-1])
    style.show_hidden(*axes)
    recon = f"reconstruction term: {RECONSTRUCTIONS[run.reconstruction]}" if run.reconstruction else ""
    style.legend(figure, handles, request.title(recon, epochs.protocol([run]) if psnr else ""))
    return figure


def _loss(axes: Axes, run: Run, table: dict[str, Array]) -> list[Line2D]:
    """Draw the total loss with points coloured by the coin, and the reconstruction in training and
    validation."""
    forced = forced_share(run, table)
    at, loss = table["at"], table["train/loss"]
    look = {"color": "0.35", "linestyle": "-"}
    handles = [
        style.line(
            axes, at, loss, label="training loss", **look, **({"marker": ""} if forced is not None else {})
        )
    ]
    if forced is not None:
        style.mark_forced(axes, at, loss, forced)
    for column, label, colour in (
        ("train/recon", "training reconstruction", style.COLOURS[3]),
        ("val/recon", "validation reconstruction (rollout)", style.COLOURS[5]),
    ):
        if np.isfinite(table[column]).any():
            look = {"color": colour, "linestyle": style.DASHED, "marker": ""}
            handles.append(style.line(axes, at, table[column], label=label, **look))
    return handles + (style.forced_keys([forced], comparison=False) if forced is not None else [])


def _compared(request: Request) -> Figure:
    found = request.each(_table)
    runs = [run for run, _ in found]
    terms = differing(runs, lambda run: run.reconstruction)
    psnr = {run.label: table for run in runs if (table := _psnr(run))}
    rows = [*([] if terms else [2.0]), 1.0, 1.0, *([2.0] if psnr else [])]
    figure, axes = style.new_figure(0.5 + 0.9 * sum(rows), rows)
    if not terms:
        for run, table in found:
            style.line(axes[0], table["at"], table["train/recon"], **run.style)
        style.y_scale(axes[0], [table["train/recon"] for _, table in found], request.log)
        axes[0].set_ylabel("training recon")
    first = 0 if terms else 1
    epochs.schedule_panels(axes[first : first + 2], runs)
    for run in runs:
        if validated := psnr.get(run.label):
            style.line(axes[-1], validated["at"], validated["val/psnr"], **run.style)
            axes[-1].set_ylabel("val. PSNR (dB)")
    style.epochs_axis(axes[-1])
    style.show_hidden(*axes)
    remark = "reconstruction is not shown: train.recon differs" if terms else ""
    handles = [style.key(run.label, **run.style) for run in runs]
    shown = "\n".join(line for line in (remark, epochs.protocol(runs) if psnr else "") if line)
    style.legend(figure, handles, shown)
    return figure


def _psnr(run: Run) -> dict[str, Array]:
    """See ``epochs.validated``; empty if there was no validation."""
    try:
        return epochs.validated(run)
    except AbsentError:
        return {}
