"""PSNR of each predicted frame, from eval/<split>/per_frame.csv, with its protocol from metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import evaluations
from ..tables import Array
from . import protocols, style
from .runs import Request, Run

_Curve = tuple[str, str, dict[str, Any]]  # column, label, style

_BASELINES: list[_Curve] = [
    (
        "repeat_last_past",
        "repeating the last given frame",
        {"color": "0.35", "linestyle": style.DASHED, "linewidth": 0.7, "marker": ""},
    ),
    (
        "mean_frame",
        "the clip's mean frame",
        {"color": "0.55", "linestyle": style.DOTTED, "linewidth": 0.9, "marker": ""},
    ),
]
_COMPANIONS: list[_Curve] = [
    ("psnr_best", "best sample", {"color": style.COLOURS[2], "linewidth": 0.8}),
    ("psnr_worst", "worst sample", {"color": style.COLOURS[2], "linewidth": 0.5, "marker": ""}),
    ("psnr_one_step", "one step (true previous frame fed)", {"color": style.COLOURS[1], "linewidth": 0.8}),
    *_BASELINES,
]
_PER_CHANNEL: _Curve = (
    "psnr_per_channel",
    "rollout, mean of the channels' PSNRs",
    {"color": style.COLOURS[3], "linestyle": style.DASHED, "linewidth": 0.9},
)


def psnr_figure(request: Request) -> Figure:
    """PSNR of each frame: one run with its best and worst sample, one-step curve and trivial predictors, or
    several runs.

    PSNR comes from the error over all channels. The robot literature averages the PSNRs of the channels.
    For robot data that average is shown too: as a line, or for several runs as a number in the legend.

    Raises:
        AbsentError: no run has a per_frame.csv of the split.
        UserError: a damaged file.
    """
    split = request.split or protocols.best_split(request.runs)
    found = request.each(lambda run: evaluations.read_per_frame(run.folder, split))
    figure, [axes] = style.new_figure(2.4)
    handles = []
    for run, table in found:
        if request.comparison:
            handles.append(_line(axes, table, "psnr", run.label, run.style, _per_channel(run, table)))
            continue
        # On top: in a parallel model the one-step curve equals the rollout.
        handles.append(_line(axes, table, "psnr", "rollout", {**run.style, "zorder": 2.5}))
        companions = [_PER_CHANNEL, *_COMPANIONS] if is_robot(run) else _COMPANIONS
        handles += [_line(axes, table, *curve) for curve in companions]
        _band(axes, table, run)
    if request.comparison and _same_baselines([table for _, table in found]):
        handles += [_line(axes, found[0][1], *curve) for curve in _BASELINES]
    axes.set_ylabel("PSNR over all channels (dB)" if any(is_robot(run) for run, _ in found) else "PSNR (dB)")
    style.x_axis(axes, "frame")
    style.show_hidden(axes)
    style.legend(figure, [h for h in handles if h is not None], request.title(protocol_line(found, split)))
    return figure


def is_robot(run: Run) -> bool:
    """Whether the run was trained on robot data."""
    data = run.config.get("data")
    return isinstance(data, dict) and data.get("kind") == "robot"


def _per_channel(run: Run, table: dict[str, Array]) -> str:
    """The number that the robot literature quotes; empty for other data, or if it was not measured."""
    if not is_robot(run) or not np.isfinite(table["psnr_per_channel"]).any():
        return ""
    return f"; per channel {data_set_mean(table, 'psnr_per_channel'):.2f}"


def _band(axes: Axes, table: dict[str, Array], run: Run) -> None:
    """A band from the worst to the best sample, mean over clips; for one sample, from the worst to the best
    clip."""
    colour = run.colour
    frames, low, _, high = over_clips(table, "psnr")
    if np.isfinite(table["psnr_worst"]).all() and not np.allclose(table["psnr_worst"], table["psnr"]):
        colour = style.COLOURS[2]
        low, high = over_clips(table, "psnr_worst")[2], over_clips(table, "psnr_best")[2]
    if (high > low).any():
        axes.fill_between(frames, low, high, color=colour, alpha=0.15, linewidth=0)


def _line(
    axes: Axes, table: dict[str, Array], column: str, label: str, look: dict[str, Any], more: str = ""
) -> Line2D | None:
    """One curve with its mean in the legend; None if the column is missing or equal to psnr."""
    values = table[column]
    if not np.isfinite(values).any() or (
        column in ("psnr_best", "psnr_worst") and np.allclose(values, table["psnr"], equal_nan=True)
    ):
        return None
    frames, _, mean, _ = over_clips(table, column)
    label = f"{label} ({mean_in_words(table, column)}{more})"
    return style.line(axes, frames, mean, label=label, **look)


def over_clips(table: dict[str, Array], column: str) -> tuple[Array, Array, Array, Array]:
    """(frame numbers, lowest, mean and highest value over the clips with that frame), each ``[frames]``."""
    known = np.isfinite(table[column])
    values = table[column][known]
    frames, index = np.unique(table["frame"][known], return_inverse=True)
    low, high = np.full(len(frames), np.inf), np.full(len(frames), -np.inf)
    np.minimum.at(low, index, values)
    np.maximum.at(high, index, values)
    mean = np.bincount(index, values) / np.bincount(index)
    return frames, low, mean, high


def data_set_mean(table: dict[str, Array], column: str) -> float:
    """Mean over clips of each clip's mean over its predicted frames; NaN if any value is not finite."""
    clips = [table[column][table["clip"] == clip] for clip in np.unique(table["clip"])]
    return float(np.mean([clip.mean() for clip in clips]))


def mean_in_words(table: dict[str, Array], column: str) -> str:
    """``mean 24.10 dB``, or the number of frames without a finite value: then there is no mean."""
    lost = int((~np.isfinite(table[column])).sum())
    if lost:
        return f"not finite in {lost} of {len(table[column])} frames"
    return f"mean {data_set_mean(table, column):.2f} dB"


def _same_baselines(tables: Sequence[dict[str, Array]]) -> bool:
    """Whether the runs have the same trivial predictors, because they were scored on the same frames."""
    first = tables[0]["repeat_last_past"]
    return all(
        table["repeat_last_past"].shape == first.shape
        and np.allclose(table["repeat_last_past"], first, atol=0.01, equal_nan=True)
        for table in tables
    )


def protocol_line(found: Sequence[tuple[Run, dict[str, Array]]], split: str) -> str:
    """What was measured and how; if the runs' protocols differ, the differences."""
    known = [protocols.read_protocol(run, split) for run, _ in found]
    first = found[0][1]
    line = protocols.describe(split, known[0], len(first["psnr"]), len(np.unique(first["clip"])))
    differ = [protocols.against(key, values) for key, values in protocols.differing(known).items()]
    return line if not differ else f"PROTOCOLS DIFFER, these numbers are not comparable: {', '.join(differ)}"
