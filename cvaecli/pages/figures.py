"""The figures of a comparison. A setting has one colour and line style in all of them.

Curves of setting k are SVG groups whose ids begin with ``series-k-``, so that a page's legend can hide them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluations import read_per_frame
from ..tables import AbsentError, Array, read_table
from .folders import RunFolder
from .from_plots import one_run_figures, style
from .paired import Difference
from .settings import Group, Setting
from .svg import RC

Curve = tuple[Array, Array]  # x, y


def look(number: int) -> dict[str, Any]:
    """Colour and line style of the setting of this rank."""
    colours, lines = style.COLOURS, style.LINES
    return {"color": colours[number % len(colours)], "linestyle": lines[number // len(colours) % len(lines)]}


def comparison_figures(
    group: Group, by_key: Sequence[Difference], between: Sequence[Difference]
) -> dict[str, Figure]:
    """The figures that the runs' files allow, by name: seeds, by_key, between, epochs, frames."""
    with mpl.rc_context(RC):
        found = {
            "seeds": _seeds(group),
            "by_key": _differences(by_key),
            "between": _differences(between),
            "epochs": _curves(group, epoch_curve, "epochs trained", "validation PSNR (dB)"),
            "frames": _curves(group, frame_curve, "frame", "PSNR (dB)"),
        }
    return {name: figure for name, figure in found.items() if figure is not None}


def run_figures(run: RunFolder) -> dict[str, Figure]:
    """The figures of one run that its files allow, by ``cvae plot``'s names."""
    with mpl.rc_context(RC):
        return dict(one_run_figures(run.path, run.split))


def _seeds(group: Group) -> Figure | None:
    """One row per setting: a dot for each seed, a thick mark at their mean, a line over their range."""
    settings = group.ranked
    if not settings:
        return None
    figure, [axes] = style.new_figure(0.75 + 0.24 * len(settings))
    for row, setting in enumerate(settings):
        values, colour = setting.numbers("psnr"), look(row)["color"]
        axes.plot([values.min(), values.max()], [row, row], "-", color=colour, linewidth=1, alpha=0.5)
        axes.plot(values, [row] * len(values), "o", color=colour, markersize=4, alpha=0.8)
        axes.plot([values.mean()] * 2, [row - 0.3, row + 0.3], "-", color=colour, linewidth=2)
    _rows(axes, [_cut(setting.label, 58) for setting in settings])
    axes.set_xlabel("PSNR (dB)")
    return figure


def _differences(differences: Sequence[Difference]) -> Figure | None:
    """One row per difference: a dot for each seed, the mean with its 95 % interval, and a line at zero."""
    measured = [each for each in differences if len(each.values)]
    if not measured:
        return None
    figure, [axes] = style.new_figure(0.75 + 0.36 * len(measured))
    axes.axvline(0, color="0.35", linewidth=0.8)
    for row, each in enumerate(measured):
        colour = style.COLOURS[0] if each.verdict in ("settled", "equal") else "0.55"
        axes.plot(each.values, [row] * len(each.values), "o", color=colour, markersize=4, alpha=0.7)
        axes.plot([each.mean] * 2, [row - 0.3, row + 0.3], "-", color=colour, linewidth=2)
        if len(each.values) > 1:
            interval = [each.mean - each.margin, each.mean + each.margin]
            axes.plot(interval, [row, row], "-", color=colour, linewidth=1)
    # The interval of two seeds is so wide that it would squeeze all others: it may leave the figure
    ends = np.concatenate([[0.0], *(_extent(each) for each in measured)])
    room = 0.06 * np.ptp(ends) or SMALLEST
    axes.set_xlim(ends.min() - room, ends.max() + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    _rows(axes, [f"{_cut(each.left, 58)}\n− {_cut(each.right, 58)}" for each in measured])
    axes.set_xlabel("difference in PSNR (dB)")
    return figure


SMALLEST = 0.01  # dB


def _extent(difference: Difference) -> Array:
    """The part of a row that must be visible: its dots and, from three seeds on, its interval."""
    ends = [difference.mean - difference.margin, difference.mean + difference.margin]
    return np.array([*difference.values, *(ends if len(difference.values) > 2 else [])])


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=7.5)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def _curves(group: Group, read: Callable[[RunFolder], Curve], x: str, label: str) -> Figure | None:
    """One line per setting, the mean over its seeds, in a band from the lowest seed to the highest."""
    figure, [axes] = style.new_figure(3.0)
    drawn = False
    for number, setting in enumerate(group.ranked):
        known = _known(setting, read)
        if known is None:
            continue
        at, values = known
        drawn, own = True, look(number)
        style.line(axes, at, values.mean(0), **own, label=setting.label, gid=f"series-{number}-mean")
        if len(values) > 1:
            band = axes.fill_between(
                at, values.min(0), values.max(0), color=own["color"], alpha=0.12, linewidth=0
            )
            band.set_gid(f"series-{number}-band")
    axes.set_ylabel(label)
    style.x_axis(axes, x)
    return figure if drawn else None


def _known(setting: Setting, read: Callable[[RunFolder], Curve]) -> tuple[Array, Array] | None:
    """(x ``[K]``, y ``[runs, K]``) at the x that all runs have; None if a run has no curve."""
    try:
        curves = [read(run) for run in setting.counted]
    except AbsentError:
        return None
    common = curves[0][0]
    for at, _ in curves[1:]:
        common = np.intersect1d(common, at)
    if not len(common):
        return None
    return common, np.stack([value[np.isin(at, common)] for at, value in curves])


def epoch_curve(run: RunFolder) -> Curve:
    """(epochs trained, PSNR) of each validation during training."""
    table = read_table(run.path / "metrics.csv", ["epoch"], ["val/psnr"])
    there = np.isfinite(table["val/psnr"])
    return table["epoch"][there] + 1, table["val/psnr"][there]


def frame_curve(run: RunFolder) -> Curve:
    """(frame, PSNR of the rollout), mean over the clips that reach the frame."""
    table = read_per_frame(run.path, run.split)
    return over_clips(table["frame"], table["psnr"])


def over_clips(frame: Array, values: Array) -> Curve:
    """(distinct frame numbers, mean of the finite values of each)."""
    there = np.isfinite(values)
    frames, index = np.unique(frame[there], return_inverse=True)
    return frames, np.bincount(index, values[there]) / np.maximum(np.bincount(index), 1)


def add_legend(figure: Figure) -> None:
    """Name the curves of a figure within it. A page has a legend of its own, which also hides them."""
    curves = [line for line in figure.axes[0].lines if str(line.get_gid()).startswith("series-")]
    if curves:
        style.legend(figure, curves)


def legend(group: Group) -> list[dict[str, Any]]:
    """For each ranked setting: its number, label, CSS colour and dash pattern."""
    entries = []
    for number, setting in enumerate(group.ranked):
        own = look(number)
        dashes = "" if own["linestyle"] == "-" else " ".join(str(1.5 * d) for d in own["linestyle"][1])
        colour = "var(--ink)" if own["color"] == "#000000" else own["color"]
        entries.append({"number": number, "label": setting.label, "colour": colour, "dashes": dashes})
    return entries
