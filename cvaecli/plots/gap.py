"""The value of seeing the target: PSNR with z from the posterior, which sees the frame, and from the
prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import evaluations
from ..tables import AbsentError, Array
from . import protocols, style
from .psnr import data_set_mean, mean_in_words, over_clips, protocol_line
from .runs import Request, Run

_LOOKS: dict[str, tuple[str, dict[str, Any]]] = {
    "psnr_posterior": ("z from the posterior", {"color": style.COLOURS[2], "linestyle": style.DASHED}),
    "psnr_one_step": ("z from the prior", {"color": style.COLOURS[1]}),
}


def gap_figure(request: Request) -> Figure:
    """PSNR of each frame with z from the posterior and from the prior, both fed the true previous frame.

    The distance between the two curves is the information in z that the prior lacks. If it and the KL, drawn
    below, are near zero, the latent has collapsed. With several runs: the distance, one line per run.

    Raises:
        AbsentError: no run has these columns in its per_frame.csv.
        UserError: a damaged file.
    """
    split = request.split or protocols.best_split(request.runs)
    found = request.each(lambda run: _read(run, split))
    with_kl = all(np.isfinite(table["kl"]).any() for _, table in found)
    figure, axes = style.new_figure(3.5 if with_kl else 2.4, (1.7, 1) if with_kl else (1,))
    handles = _distances(axes[0], found) if request.comparison else _curves(axes[0], found[0][1])
    if with_kl:
        for run, table in found:
            look = run.style if request.comparison else {"color": "0.35"}
            style.line(axes[1], *_mean(table, "kl"), **look)
        axes[1].set_ylabel("KL (nats)")
        axes[1].set_ylim(bottom=0)
    style.x_axis(axes[-1], "frame")
    style.show_hidden(*axes)
    gain = "" if request.comparison else f"what the posterior's z adds: {_mean_gap(found[0][1])}"
    style.legend(figure, handles, request.title(protocol_line(found, split), gain))
    return figure


def _read(run: Run, split: str) -> dict[str, Array]:
    """per_frame.csv with the column ``gap``; the two columns it comes from are NaN where ``gap`` is."""
    table = evaluations.read_per_frame(run.folder, split)
    gap = table["psnr_posterior"] - table["psnr_one_step"]
    if not np.isfinite(gap).any():
        path = run.folder / "eval" / split / "per_frame.csv"
        raise AbsentError(
            f"{path} has no psnr_posterior and psnr_one_step",
            f"run again: {evaluations.command_for(run.folder, split)}",
        )
    parts = {name: np.where(np.isfinite(gap), table[name], np.nan) for name in _LOOKS}
    return table | parts | {"gap": gap}


def _curves(axes: Axes, table: dict[str, Array]) -> list[Line2D]:
    """One run: both PSNRs, and the area between them."""
    handles = []
    for column, (label, look) in _LOOKS.items():
        label = f"{label} ({mean_in_words(table, column)})"
        handles.append(style.line(axes, *_mean(table, column), label=label, **look))
    frames, posterior = _mean(table, "psnr_posterior")
    axes.fill_between(
        frames, _mean(table, "psnr_one_step")[1], posterior, color="0.5", alpha=0.2, linewidth=0
    )
    axes.set_ylabel("one-step PSNR (dB)")
    return handles


def _distances(axes: Axes, found: Sequence[tuple[Run, dict[str, Array]]]) -> list[Line2D]:
    """Several runs: the distance between the two PSNRs."""
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=1)
    axes.set_ylabel("posterior − prior (dB)")
    return [
        style.line(axes, *_mean(table, "gap"), label=f"{run.label} ({_mean_gap(table)})", **run.style)
        for run, table in found
    ]


def _mean_gap(table: dict[str, Array]) -> str:
    mean = data_set_mean(table, "gap")
    return f"mean {mean:+.2f} dB" if np.isfinite(mean) else "not finite in some frames"


def _mean(table: dict[str, Array], column: str) -> tuple[Array, Array]:
    """(frame numbers, mean over the clips)."""
    frames, _, mean, _ = over_clips(table, column)
    return frames, mean
