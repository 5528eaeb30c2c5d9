"""Settings compared over seeds, from eval/<split>/: a figure, and the same numbers as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import replacing
from . import style
from .groups import Group, Scored, Section, protocol, sections
from .runs import Request

COLUMNS = {
    "psnr": ("PSNR (dB)", 2),
    "psnr_one_step": ("one step (dB)", 2),
    "psnr_per_channel": ("per channel (dB)", 2),
    "ssim": ("SSIM", 4),
    "psnr_best_of_samples": ("best sample (dB)", 2),
    "diversity": ("diversity", 4),
    "kl": ("KL (nats)", 3),
    "nan_frames": ("NaN frames", 0),
}
"""Numbers of metrics.json in the tables, with their headings and digits."""
_MIN_SPAN = 0.2  # dB; smallest span of the axis of the dots
_PROTOCOL_COLUMNS = (
    *("split", "n_future", "samples", "prior", "conditions", "data", "data_fingerprint", "precision"),
    *("checkpoint", "step"),
)


def compare_figure(request: Request) -> Figure:
    """Top: PSNR of each setting, with a dot per seed and a bar at their mean. Bottom: PSNR of each frame, the
    mean over the seeds with a band from the lowest to the highest. Each protocol has its own part.

    Raises:
        AbsentError: no run has an evaluation of the split.
        UserError: a damaged file.
    """
    parts = sections(request)
    heights = [4.0 + 0.33 * len(part.groups) for part in parts]
    figure = Figure(figsize=(style.WIDTH, sum(heights)), layout="constrained")
    places = np.ravel(np.asarray(figure.subfigures(len(parts), 1, height_ratios=heights)))
    for place, part in zip(places, parts, strict=True):
        _draw(place, part)
    return figure


def _draw(place: Any, part: Section) -> None:
    tall = 0.6 + 0.22 * len(part.groups)
    upper, lower = np.ravel(np.asarray(place.subfigures(2, 1, height_ratios=[tall + 0.55, 2.9])))
    dots, lines = upper.subplots(), lower.subplots()
    for row, group in enumerate(part.groups):
        _dots(dots, row, group)
        frames, values = group.curves()
        with_value = np.isfinite(values).any(0)
        frames, values = frames[with_value], values[:, with_value]
        style.line(lines, frames, np.nanmean(values, 0), marker="", label=group.label, **group.look)
        if len(values) > 1:
            band = {"color": group.look["color"], "alpha": 0.12, "linewidth": 0}
            lines.fill_between(frames, np.nanmin(values, 0), np.nanmax(values, 0), **band)
    names = [style.wrap(f"{group.label}: {_cell(group.values('psnr'), 2)}", 48) for group in part.groups]
    dots.set_yticks(range(len(part.groups)), names, fontsize=7.5)
    dots.set_ylim(len(part.groups) - 0.4, -0.6)
    low, high = dots.get_xlim()
    if high - low < _MIN_SPAN:  # differences in the last digits must not fill the axis
        dots.set_xlim((low + high - _MIN_SPAN) / 2, (low + high + _MIN_SPAN) / 2)
    dots.set_xlabel("PSNR (dB): a dot per seed, a bar at their mean")
    lines.set_ylabel("PSNR (dB)")
    style.x_axis(lines, "frame")
    style.show_hidden(lines)
    handles = [style.key(style.wrap(group.label, 58), **group.look) for group in part.groups]
    columns = 1 if any(len(group.label) > 52 for group in part.groups) else 2
    lower.legend(handles=handles, fontsize=7.5, ncols=columns, loc="outside lower center")
    place.suptitle(_title(part), x=0.01, ha="left", fontsize=8)


def _title(part: Section) -> str:
    most = max(len(group.runs) for group in part.groups)
    seeds = "1 seed" if most == 1 else f"up to {most} seeds"
    lines = [f"PROTOCOL: {part.heading} (not comparable with the others)"] if part.heading else []
    lines.append(f"{part.protocol}; {seeds} per setting")
    if part.groups[0].keys and len(part.groups) > 1:
        lines.append(f"the settings differ in {_first(part.groups[0].keys)}")
    return style.wrap("\n".join(lines), 108)


def _first(keys: str, most: int = 6) -> str:
    """The first few of the keys, and the number of the others."""
    named = keys.split(", ")
    more = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + more


def _dots(axes: Axes, row: int, group: Group) -> None:
    """One dot per run, hollow if the run has a remark, for example because it is not finished."""
    psnr, colour = group.values("psnr"), group.look["color"]
    face = "white" if group.runs[0].run.remark else colour
    axes.plot(
        psnr, np.full(len(psnr), row), "o", color=colour, markerfacecolor=face, markersize=3.5, alpha=0.75
    )
    if np.isfinite(psnr).any():
        axes.plot([np.nanmean(psnr)] * 2, [row - 0.32, row + 0.32], "-", color=colour, linewidth=1.6)


# ---------------------------------------------------------------- tables


def write_tables(request: Request, target: Path) -> list[Path]:
    """Write the numbers next to the figure: ``.md`` with a row per setting, ``.csv`` with a row per run."""
    parts = sections(request)
    written = []
    for suffix, text in ((".md", markdown(parts)), (".csv", as_csv(parts))):
        with replacing(target.with_suffix(suffix)) as part:
            part.write_text(text, encoding="utf-8")
        written.append(target.with_suffix(suffix))
    return written


def as_csv(parts: Sequence[Section]) -> str:
    """One row per run. ``protocol`` numbers the protocols; rows of different ones are not comparable."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    own = ["protocol", "setting", "seed", "run", "status", "steps", "remark"]
    writer.writerow([*own, *_PROTOCOL_COLUMNS[:-1], "checkpoint_step", *COLUMNS])
    for number, part in enumerate(parts, start=1):
        for group in part.groups:
            for seed, scored in zip(group.seeds, group.runs, strict=True):
                writer.writerow([number, group.label, seed, *_row(scored)])
    return buffer.getvalue()


def _row(scored: Scored) -> list[Any]:
    run, own = scored.run, protocol(scored)
    cells = [run.folder.resolve().name, run.info.get("status"), run.steps, run.remark]
    cells += [own.get(name) for name in _PROTOCOL_COLUMNS]
    cells += [scored.summary.get(name) for name in COLUMNS]
    return ["" if cell is None else cell for cell in cells]


def markdown(parts: Sequence[Section]) -> str:
    """A table for each protocol: mean ± standard deviation over the seeds (n - 1)."""
    return "\n".join(_table(part) for part in parts)


def _table(part: Section) -> str:
    """Columns without numbers are left out."""
    groups = part.groups
    known = {name: np.concatenate([group.values(name) for group in groups]) for name in COLUMNS}
    shown = [name for name, values in known.items() if np.isfinite(values).any()]
    if not np.nansum(known["nan_frames"]):
        shown = [name for name in shown if name != "nan_frames"]
    heads = [_escaped(_first(groups[0].keys, 3)) or "setting", "seeds", "status", "steps", "scored at step"]
    heads += [COLUMNS[name][0] for name in shown]
    lines = [f"### Protocol: {part.heading}", ""] if part.heading else []
    lines += [f"{part.protocol}.", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for group in groups:
        cells = [_escaped(group.label), ", ".join(map(str, group.seeds)), _status(group)]
        cells += [_range(scored.run.steps for scored in group.runs)]
        cells += [_range(protocol(scored).get("step") for scored in group.runs)]
        cells += [_cell(group.values(name), COLUMNS[name][1]) for name in shown]
        lines.append("| " + " | ".join(cells) + " |")
    trivial = np.array(
        [s.summary["baselines"]["repeat_last_past"]["psnr"] for g in groups for s in g.runs], float
    )
    if np.ptp(trivial) < 0.005:
        cells = ["repeating the last given frame", *[""] * 4, f"{trivial[0]:.2f}", *[""] * (len(shown) - 1)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _status(group: Group) -> str:
    return ", ".join(dict.fromkeys(str(scored.run.info.get("status", "")) for scored in group.runs))


def _range(values: Any) -> str:
    known = [int(value) for value in values if value is not None]
    if not known:
        return ""
    return str(known[0]) if min(known) == max(known) else f"{min(known)} to {max(known)}"


def _cell(values: np.ndarray, digits: int) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "not finite"
    spread = f" ± {finite.std(ddof=1):.{digits}f}" if len(finite) > 1 else ""
    lost = f" ({len(values) - len(finite)} of {len(values)} not finite)" if len(finite) < len(values) else ""
    return f"{finite.mean():.{digits}f}{spread}{lost}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
