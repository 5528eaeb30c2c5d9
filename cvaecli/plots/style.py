"""The look of all figures: page width, fonts, colours, lines, markers and legend.

Figures are matplotlib ``Figure`` objects; pyplot and its global state are not used.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from ..tables import Array

WIDTH = 6.3  # inches: the text width of an A4 or letter page
RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "figure.titlesize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}
# Okabe and Ito's palette: colour-blind readers can tell the colours apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (6, 1, 1, 1, 1, 1)))
DASHED, DOTTED = LINES[1], LINES[2]
FREE, FORCED = COLOURS[0], COLOURS[1]

_LINE = 94  # characters of 9 point that fit the width
_TEXT_LINE = 0.17  # inches
_WIDE = 10.0  # ratio of largest to smallest value from which an axis is logarithmic
FEW = 40  # number of points up to which each is marked


def of(number: int) -> dict[str, Any]:
    """Colour and line style of the run or setting with this number, counted from 0."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}


def new_figure(height: float, rows: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """A page-wide figure of stacked axes with one x axis, ``height`` inches high without legend and title."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=list(rows))
    figure.align_ylabels()
    return figure, list(grid[:, 0])


def legend(figure: Figure, handles: Iterable[Line2D], title: str = "") -> None:
    """One legend above all axes, with as many columns as fit, below the lines of the title.

    The figure grows by the legend's height, so that the axes keep theirs.
    """
    handles = list(handles)
    for handle in handles:
        label = str(handle.get_label())
        if len(label) > _LINE - 15:
            handle.set_label(
                f"{label[: _LINE - 46]}…{label[-30:]}"
            )  # names are at one end, numbers at the other
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, min(len(handles), _LINE // (longest + 6)))
    title = wrap(title)
    lines = -(-len(handles) // columns) + len(title.splitlines())
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _TEXT_LINE * lines)
    figure.legend(
        handles=handles,
        title=title or None,
        title_fontsize=RC["legend.fontsize"],
        alignment="left",
        loc="outside upper left",
        ncols=columns,
        borderaxespad=0.2,
        borderpad=0.2,
    )


def wrap(text: str, width: int = _LINE) -> str:
    """Text in lines that fit the page; its own line breaks stay."""
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def show_hidden(*places: Axes) -> None:
    """Widen every line that others cover, so that both are visible. Call it when all lines are drawn."""
    for axes in places:
        axes.get_ylim()  # makes matplotlib compute the limits
        lines = [line for line in axes.lines if line.get_linestyle() != "None"]
        lines.sort(key=lambda line: float(line.get_zorder()))
        for n, under in enumerate(lines):
            if above := sum(_runs_over(axes, over, under) for over in lines[n + 1 :]):
                under.set(linewidth=under.get_linewidth() + 1.5 * min(above, 3), alpha=0.5)


def _runs_over(axes: Axes, over: Line2D, under: Line2D) -> bool:
    """Whether a third of ``under``'s points lie within a line's width of ``over``."""
    (x, y), (over_x, over_y) = points(under), points(over)
    if not len(over_x):
        return False
    there = np.interp(x, over_x, over_y, left=np.nan, right=np.nan)
    known = np.isfinite(there) & np.isfinite(y)
    if known.sum() < 2:
        return False
    height = [axes.transData.transform(np.column_stack([x[known], part[known]]))[:, 1] for part in (there, y)]
    return bool((np.abs(height[0] - height[1]) < 2.0).sum() > len(x) / 3)


def points(line: Line2D) -> tuple[Array, Array]:
    """(x, y) of a drawn line, each ``[N]``."""
    x, y = line.get_data()
    return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)


def x_axis(axes: Axes, label: str) -> None:
    """Label the x axis; its ticks are whole numbers with commas between thousands."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def epochs_axis(axes: Axes) -> None:
    """The x axis of figures over training: 0 is the start, and epoch number e ends at e + 1."""
    x_axis(axes, "epochs trained")
    axes.set_xlim(left=0)


def second_axis(axes: Axes, label: str) -> Axes:
    """A y axis on the right. Its lines lie below those of the left axis."""
    second = axes.twinx()
    axes.set_zorder(second.get_zorder() + 1)
    axes.patch.set_visible(False)
    second.spines["right"].set_visible(True)
    second.grid(False)
    second.set_ylabel(label)
    return second


def y_scale(axes: Axes, values: Iterable[Array], log: bool | None) -> None:
    """Make the y axis logarithmic if ``log`` (values <= 0 are then not shown); None: if all values are
    positive and far apart."""
    everything = np.concatenate([value[np.isfinite(value)] for value in values])
    positive = everything[everything > 0]
    if not len(positive):
        return
    wide = len(positive) == len(everything) and positive.max() > _WIDE * positive.min()
    if wide if log is None else log:
        axes.set_yscale("log")
        # Plain numbers, and enough of them: by default a span of 1.5 decades may have a single tick
        few_decades = positive.max() < 300 * positive.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def line(axes: Axes, x: Array, y: Array, **style: Any) -> Line2D:
    """A line through the points that have a value; if they are few they are also marked."""
    there = np.isfinite(y)
    points = int(there.sum())
    style = {"marker": "o" if points <= FEW else "", "markersize": marker_size(points)} | style
    return axes.plot(x[there], y[there], **style)[0]


def marker_size(points: int) -> float:
    """Size of a marker in typographic points, smaller if there are many."""
    return float(np.clip(140 / max(points, 1), 1.8, 3.5))


def mark_forced(
    axes: Axes, x: Array, y: Array, forced: Array, *, shape: str = "o", colour: str | None = None
) -> None:
    """Mark each point by whether more than half of its steps were teacher-forced.

    Args:
        axes: where to draw.
        x: ``[N]``.
        y: ``[N]``.
        forced: fraction of forced steps, ``[N]``; NaN: unknown, no mark.
        shape: matplotlib's marker.
        colour: a run's colour in a comparison: forced filled, free hollow. None: forced orange, free blue.
    """
    for is_forced in (False, True):
        chosen = np.isfinite(forced) & ((forced > 0.5) == is_forced)
        axes.plot(x[chosen], y[chosen], **_mark(is_forced, shape, colour, marker_size(len(x))))


def forced_keys(forced: Iterable[Array], *, comparison: bool) -> list[Line2D]:
    """Legend entries for what ``mark_forced`` drew, only for the kinds that occur."""
    known = np.concatenate(list(forced))
    known = known[np.isfinite(known)]
    # If the coin is tossed for every batch or step, few epochs are entirely forced or entirely free
    whole = bool(np.isin(known, (0.0, 1.0)).all())
    names = {True: "teacher-forced epoch", False: "free-running epoch"}
    if not whole:
        names = {True: "epoch more than half forced", False: "epoch at most half forced"}
    colour = "0.35" if comparison else None
    return [
        Line2D([], [], label=names[is_forced], **_mark(is_forced, "o", colour, 4.0))
        for is_forced in (True, False)
        if ((known > 0.5) == is_forced).any()
    ]


def _mark(is_forced: bool, shape: str, colour: str | None, size: float) -> dict[str, Any]:
    own = colour or (FORCED if is_forced else FREE)
    hollow = colour is not None and not is_forced
    return {
        "linestyle": "",
        "marker": shape,
        "markersize": size,
        "color": own,
        "markerfacecolor": "white" if hollow else own,
        "markeredgewidth": 0.7,
        "zorder": 3,
    }


def key(label: str, **style: Any) -> Line2D:
    """A legend entry for a line that is drawn elsewhere."""
    return Line2D([], [], label=label, **style)
