"""Validation PSNR over training, with the schedules that may explain it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..config.schema import EvalConfig
from ..tables import AbsentError, Array
from . import schedules, style
from .runs import Request, Run

SCHEDULES = {
    "beta": ("β", {"color": "0.35", "linestyle": style.DOTTED}),
    "tfr": ("tfr", {"color": style.COLOURS[2], "linestyle": style.LINES[3]}),
}
"""Labels and looks of the schedules drawn with a single run."""


def epochs_figure(request: Request) -> Figure:
    """Validation PSNR; beta and tfr on a second axis, or in panels below if runs are compared."""
    if request.comparison:
        return _compared(request)
    (run,) = request.runs
    figure, [axes] = style.new_figure(2.4)
    handles = psnr_lines(axes, validated(run)) + schedule_lines(axes, run)
    axes.set_ylabel("validation PSNR (dB)")
    style.epochs_axis(axes)
    style.show_hidden(axes)
    style.legend(figure, handles, request.title(protocol([run])))
    return figure


def _compared(request: Request) -> Figure:
    figure, axes = style.new_figure(4.1, (2.4, 1, 1))
    handles, found = [], request.each(validated)
    for run, table in found:
        label = f"{run.label}: {_best(table)}"
        handles.append(style.line(axes[0], table["at"], table["val/psnr"], label=label, **run.style))
    schedule_panels(axes[1:], [run for run, _ in found])
    axes[0].set_ylabel("validation PSNR (dB)")
    style.epochs_axis(axes[-1])
    style.show_hidden(*axes)
    style.legend(figure, handles, protocol([run for run, _ in found]))
    return figure


def psnr_lines(axes: Axes, table: dict[str, Array]) -> list[Line2D]:
    """A single run's rollout PSNR and, if measured, one-step PSNR."""
    look = {"color": style.COLOURS[0], "zorder": 2.5}
    handles = [style.line(axes, table["at"], table["val/psnr"], label=f"rollout: {_best(table)}", **look)]
    if np.isfinite(one_step := table["val/psnr_one_step"]).any():
        look = {"color": style.COLOURS[1], "linestyle": style.DASHED}
        handles.append(
            style.line(axes, table["at"], one_step, label="one step (true previous frame fed)", **look)
        )
    return handles


def schedule_lines(axes: Axes, run: Run) -> list[Line2D]:
    """A single run's beta and tfr on a second axis."""
    curves = schedule_curves(run)
    second = style.second_axis(axes, ", ".join(SCHEDULES[column][0] for column in curves))
    handles = []
    for column, curve in curves.items():
        name, look = SCHEDULES[column]
        handles.append(schedules.draw(second, curve, label=f"{name} (right)", **look))
    second.set_ylim(bottom=0)
    style.show_hidden(second)
    return handles


def schedule_curves(run: Run) -> dict[str, schedules.Curve]:
    """Beta and, if the model has teacher forcing, tfr."""
    columns = ("beta",) if run.parallel else ("beta", "tfr")
    return {column: schedules.curve_of(run, column) for column in columns}


def schedule_panels(axes: Sequence[Axes], runs: Sequence[Run]) -> None:
    """Beta in one panel and tfr in the next, one line per run."""
    for run in runs:
        for column, curve in schedule_curves(run).items():
            schedules.draw(axes[list(SCHEDULES).index(column)], curve, **run.style)
    for place, label in zip(axes, ("β", "tfr"), strict=True):
        place.set_ylabel(label)
        place.set_ylim(bottom=0)


def validated(run: Run) -> dict[str, Array]:
    """The validation columns of metrics.csv, and ``at``: their places on the axis.

    Raises:
        AbsentError: no validation during training had a finite PSNR.
    """
    table = run.table("metrics.csv", ["epoch"], ["val/psnr", "val/psnr_one_step", "step"])
    if not np.isfinite(table["val/psnr"]).any():
        raise AbsentError(
            f"{run.folder / 'metrics.csv'} has no validation PSNR", "train with eval.every above 0"
        )
    return table | {"at": schedules.epochs_trained(run, table)}


def _best(table: dict[str, Array]) -> str:
    best = int(np.nanargmax(table["val/psnr"]))
    return f"best {table['val/psnr'][best]:.2f} dB after {table['at'][best]:.3g} epochs"


def protocol(runs: Sequence[Run]) -> str:
    """What the validations during training scored; if the runs are not scored in the same way, their
    differences."""
    known = [each for run in runs if (each := _protocol(run))]
    if not known:
        return ""
    differ = [key for key in known[0] if len({each[key] for each in known}) > 1]
    if differ:
        values = [
            f"{key} ({' / '.join(dict.fromkeys(each[key] or 'no' for each in known))})" for key in differ
        ]
        return f"PROTOCOLS DIFFER, these validations are not comparable: {', '.join(values)}"
    first = {key: text for key, text in known[0].items() if key != "data"}
    scored = f"{first.pop('frames')} {first.pop('clips')}"
    line = "validations: " + ", ".join([scored, *(text for text in first.values() if text)])
    changed = [run.label for run in runs if run.info.get("eval_changes")]
    if changed:
        line += (
            f"\nA RESUME CHANGED HOW {', '.join(changed)} VALIDATES: do not compare points before and after"
        )
    return line


def _protocol(run: Run) -> dict[str, str]:
    """The parts of the protocol in words, by topic; empty if the config does not say."""
    settings = run.section("eval", EvalConfig)
    if settings is None:
        return {}
    data = run.config.get("data")
    n_future = data.get("n_future") if isinstance(data, dict) else None
    frames = min((n for n in (settings.frames, n_future) if n), default=None)
    n, prior = settings.samples, settings.prior
    return {
        "frames": f"the first {frames} predicted frames" if frames else "all frames",
        "clips": f"of {settings.clips} clips" if settings.clips else "of each clip",
        "z": "z at the prior's mean" if prior == "mean" else "z sampled from the prior",
        "samples": f"mean of {n} samples" if n > 1 else "1 sample",
        "flips": "averaged over flips" if settings.average_flips else "",
        "data": _data(run),
    }


def _data(run: Run) -> str:
    data = run.info.get("data")
    fingerprint = data.get("fingerprint") if isinstance(data, dict) else None
    return f"data {str(fingerprint)[:8]}" if fingerprint else ""
