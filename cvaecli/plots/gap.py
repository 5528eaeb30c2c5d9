"""What knowing the target is worth: z from the posterior, which saw the frame, against z from the prior."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from . import evaluation, style
from .psnr import data_set_mean, over_clips, protocol_line
from .runs import Request, Run
from .tables import AbsentError, Array

_COLUMNS = ("psnr_one_step", "psnr_posterior")


def gap_figure(request: Request) -> Figure:
    """PSNR of each frame with z from the posterior and from the prior, both fed the true previous frame; below, KL.

    The distance between the two curves is what z carries and the prior does not know. Near zero, with a KL near
    zero, the latent has collapsed. Several runs: the distance above the KL, a line a run.

    Raises:
        AbsentError: no run has these columns in its per_frame.csv.
        UserError: a damaged file.
    """
    split = request.split or evaluation.best_split(request.runs)

    def read(run: Run) -> dict[str, Array]:
        table = evaluation.read_per_frame(run.folder, split)
        gap = table["psnr_posterior"] - table["psnr_one_step"]
        if not np.isfinite(gap).any():
            path = run.folder / "eval" / split / "per_frame.csv"
            raise AbsentError(
                f"{path} has no psnr_posterior and psnr_one_step",
                f"run again: {evaluation.command_for(run.folder, split)}",
            )
        both = {name: np.where(np.isfinite(gap), table[name], np.nan) for name in _COLUMNS}
        return table | both | {"gap": gap}

    found = request.each(read)
    with_kl = all(np.isfinite(table["kl"]).any() for _, table in found)
    figure, axes = style.new_figure(4.2 if with_kl else 3.0, (1.7, 1) if with_kl else (1,))
    handles = []
    for run, table in found:
        frames, _, gap, _ = over_clips(table, "gap")
        mean = data_set_mean(table, "gap")
        if request.comparison:
            label = f"{run.label} (mean {mean:+.2f} dB)"
            handles.append(style.line(axes[0], frames, gap, label=label, **run.style))
        else:
            for column, label, colour, dashes in (
                ("psnr_posterior", "z from the posterior", style.COLOURS[2], style.DASHED),
                ("psnr_one_step", "z from the prior", style.COLOURS[1], "-"),
            ):
                label = f"{label} (mean {data_set_mean(table, column):.2f} dB)"
                look = {"color": colour, "linestyle": dashes, "label": label}
                handles.append(style.line(axes[0], frames, over_clips(table, column)[2], **look))
            both = [over_clips(table, column)[2] for column in _COLUMNS]
            axes[0].fill_between(frames, *both, color="0.5", alpha=0.2, linewidth=0)
        if with_kl:
            look = run.style if request.comparison else {"color": "0.35"}
            style.line(axes[1], *_mean(table, "kl"), **look)
    axes[0].set_ylabel("posterior − prior (dB)" if request.comparison else "one-step PSNR (dB)")
    if request.comparison:
        axes[0].axhline(0, color="0.6", linewidth=0.6, zorder=1)
    if with_kl:
        axes[1].set_ylabel("KL (nats)")
        axes[1].set_ylim(bottom=0)
    style.x_axis(axes[-1], "frame")
    style.show_hidden(*axes)
    mean = data_set_mean(found[0][1], "gap")
    worth = "" if request.comparison else f"knowing the posterior's z is worth {mean:+.2f} dB"
    style.legend(figure, handles, request.title(protocol_line(found, split), worth))
    return figure


def _mean(table: dict[str, Array], column: str) -> tuple[Array, Array]:
    """(frame numbers, mean over the clips)."""
    frames, _, mean, _ = over_clips(table, column)
    return frames, mean
