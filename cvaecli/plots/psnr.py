"""PSNR of each predicted frame, from eval/<split>/per_frame.csv, with its protocol from metrics.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import UserError
from . import figures
from .figures import Request, Run
from .tables import Array, read_table

_Curve = tuple[str, str, dict[str, Any]]  # column, label, style

_BASELINES: list[_Curve] = [
    (
        "repeat_last_past",
        "repeat last past",
        {"color": "0.35", "linestyle": figures.DASHED, "linewidth": 0.7, "marker": ""},
    ),
    (
        "mean_frame",
        "mean frame",
        {"color": "0.55", "linestyle": figures.DOTTED, "linewidth": 0.9, "marker": ""},
    ),
]
_COMPANIONS: list[_Curve] = [
    ("psnr_best", "best sample", {"color": figures.COLOURS[2], "linewidth": 0.8}),
    ("psnr_worst", "worst sample", {"color": figures.COLOURS[2], "linewidth": 0.5, "marker": ""}),
    ("psnr_one_step", "one step", {"color": figures.COLOURS[1], "linewidth": 0.8}),
    *_BASELINES,
]
# What must agree before decibels are compared; device, seed and checkpoint may differ
_PROTOCOL = (
    "split",
    "n_past",
    "n_future",
    "samples",
    "prior",
    "conditions",
    "batch_norm",
    "psnr",
    "frame_size",
    "data_fingerprint",
)


def psnr_figure(request: Request) -> Figure:
    """PSNR against frame: of one run with its companions, of several runs side by side.

    Raises:
        AbsentError: a run has no per_frame.csv of the split.
        UserError: a damaged file.
    """
    split = request.split or common_split(request.runs)
    tables = [per_frame(run, split) for run in request.runs]
    figure, [axes] = figures.new_figure(3.2)
    handles = []
    for run, table in zip(request.runs, tables, strict=True):
        first = run.label if request.comparison else "rollout"
        # On top: where no step needs the one before, one step is the rollout.
        curves: list[_Curve] = [("psnr", first, {**run.style, "zorder": 2.5})]
        if not request.comparison:
            curves += _COMPANIONS
            _band(axes, table, run)
        handles += [_psnr_line(axes, table, *curve) for curve in curves]
    if request.comparison and _same_baselines(tables):
        handles += [_psnr_line(axes, tables[0], *curve) for curve in _BASELINES]
    axes.set_ylabel("PSNR (dB)")
    figures.x_axis(axes, "frame")
    title = protocols(request.runs, split, tables)
    title = f"{request.title}: {title}" if request.title else title
    figures.legend(figure, [handle for handle in handles if handle is not None], title)
    return figure


def _band(axes: Axes, table: dict[str, Array], run: Run) -> None:
    """From the worst to the best sample, mean over clips; for one sample from the worst to the best clip."""
    colour = run.colour
    frames, low, _, high = over_clips(table, "psnr")
    if np.isfinite(table["psnr_worst"]).all() and not np.allclose(table["psnr_worst"], table["psnr"]):
        colour = figures.COLOURS[2]
        low, high = over_clips(table, "psnr_worst")[2], over_clips(table, "psnr_best")[2]
    if (high > low).any():
        axes.fill_between(frames, low, high, color=colour, alpha=0.15, linewidth=0)


def _psnr_line(
    axes: Axes, table: dict[str, Array], column: str, label: str, style: dict[str, Any]
) -> Line2D | None:
    """One curve with its mean in the legend; None where the file has no such column, or a copy of psnr."""
    values = table[column]
    if not np.isfinite(values).any() or (
        column in ("psnr_best", "psnr_worst") and np.allclose(values, table["psnr"])
    ):
        return None
    frames, _, mean, _ = over_clips(table, column)
    label = f"{label} (mean {_data_set_mean(table, column):.2f} dB)"
    return figures.line(axes, frames, mean, label=label, **style)


def per_frame(run: Run, split: str) -> dict[str, Array]:
    optional = ["psnr_one_step", "psnr_best", "psnr_worst", "repeat_last_past", "mean_frame"]
    path = run.folder / "eval" / split / "per_frame.csv"
    remedy = f"run `cvae validate {run.folder}` first"
    return read_table(path, ["frame", "psnr"], optional, text="clip", remedy=remedy)


def common_split(runs: Sequence[Run]) -> str:
    """val if all runs have it, else another that they share; val too where none is, for the message."""
    have = [{path.parent.name for path in run.folder.glob("eval/*/per_frame.csv")} for run in runs]
    shared = sorted(set.intersection(*have))
    return "val" if "val" in shared or not shared else shared[0]


def over_clips(table: dict[str, Array], column: str) -> tuple[Array, Array, Array, Array]:
    """(frame numbers, lowest, mean, highest over the clips that reach the frame), each ``[frames]``."""
    known = np.isfinite(table[column])
    values = table[column][known]
    frames, index = np.unique(table["frame"][known], return_inverse=True)
    low, high = np.full(len(frames), np.inf), np.full(len(frames), -np.inf)
    np.minimum.at(low, index, values)
    np.maximum.at(high, index, values)
    mean = np.bincount(index, values) / np.bincount(index)
    return frames, low, mean, high


def _data_set_mean(table: dict[str, Array], column: str) -> float:
    """Mean over clips of each clip's mean over its predicted frames, dB."""
    clips = [table[column][table["clip"] == clip] for clip in np.unique(table["clip"])]
    return float(np.mean([np.nanmean(clip) for clip in clips if np.isfinite(clip).any()]))


def _same_baselines(tables: Sequence[dict[str, Array]]) -> bool:
    """Whether the runs were scored on the same frames: only then is one trivial predictor theirs all."""
    first = tables[0]["repeat_last_past"]
    return all(
        table["repeat_last_past"].shape == first.shape
        and np.allclose(table["repeat_last_past"], first, atol=0.01, equal_nan=True)
        for table in tables
    )


def protocols(runs: Sequence[Run], split: str, tables: Sequence[dict[str, Array]]) -> str:
    """What was measured and how, in a line; where runs were not measured alike, what differs."""
    found = [_protocol(run, split) for run in runs]
    protocol, table = found[0], tables[0]
    clips = len(np.unique(table["clip"]))
    words = [split, f"{len(table['psnr'])} predicted frames" + (f" of {clips} clips" if clips > 1 else "")]
    if "prior" in protocol:
        words.append(f"prior {protocol['prior']}")
    if "samples" in protocol:
        words.append(f"n = {protocol['samples']}")
    known = [each for each in found if each]
    differ = [key for key in _PROTOCOL if any(each.get(key) != known[0].get(key) for each in known)]
    return ", ".join(words) + (f"; PROTOCOLS DIFFER: {', '.join(differ)}" if differ else "")


def _protocol(run: Run, split: str) -> dict[str, Any]:
    path = run.folder / "eval" / split / "metrics.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: {error}", f"run `cvae validate {run.folder}` again") from error
    protocol = content.get("protocol") if isinstance(content, dict) else None
    return protocol if isinstance(protocol, dict) else {}
