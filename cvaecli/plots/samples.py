"""Sampled futures and the truth, from predictions/*-futures.npz: one block of pictures per run.

The last row of a block shows how much the samples differ at each pixel. The curves below the blocks show how
much they differ in each frame.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .. import evaluations
from ..errors import UserError
from ..tables import AbsentError, Array
from . import style
from .pictures import Picture, draw_rows, row_height
from .runs import Request, Run

SHOWN = 4  # samples that are drawn; the spread is over all samples
COLUMNS = {1: 10, 2: 5}  # moments drawn, by the number of blocks across the page
_HEAT = mpl.colormaps["inferno"]


class Futures(NamedTuple):
    """A clip and N of its futures.

    Attributes:
        truth: uint8 ``[T, H, W, 3]``.
        samples: uint8 ``[N, T - first, H, W, 3]``.
        first: number of the first predicted frame.
    """

    truth: Picture
    samples: Picture
    first: int

    @property
    def spread(self) -> Array:
        """Standard deviation over the samples, mean over channels; white is 1: ``[T - first, H, W]``."""
        deviation: Array = (self.samples / 255.0).std(0, ddof=1).mean(-1)
        return deviation


def samples_figure(request: Request) -> Figure:
    """One block per run: truth, samples, spread; then the spread of every frame, one line per run.

    Raises:
        AbsentError: no run has sampled futures.
        UserError: a damaged file.
    """
    name = _common(request)
    found = request.each(lambda run: _read(run, name))
    runs, futures = [run for run, _ in found], [each for _, each in found]
    across = min(len(found), 2)
    down = -(-len(found) // across)
    shown = min(SHOWN, min(len(each.samples) for each in futures))
    titles = [_title(run, name, alone=across == 1) for run in runs]
    room = 0.5 + 0.13 * max(text.count("\n") + 1 for text in titles)
    block = (style.WIDTH / across - 0.65) * (shown + 2) * row_height(futures[0].truth, COLUMNS[across]) + room
    figure = Figure(figsize=(style.WIDTH, down * block + 2.2), layout="constrained")
    above, below = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=[down * block + 0.45, 1.75])))
    grid = above.subplots(down, across, squeeze=False)
    most = max(float(each.spread.max()) for each in futures) or 1.0
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    for axes, title, each in zip(grid.flat, titles, futures, strict=False):
        _draw(axes, each, COLUMNS[across], shown, most)
        axes.set_title(title, fontsize=7.5, loc="left", x=0)
    heat = ScalarMappable(Normalize(0, most), _HEAT)
    bar = above.colorbar(heat, ax=grid, location="bottom", shrink=0.4, aspect=40, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("spread: standard deviation over the samples (1 is white)", fontsize=7.5)
    _curves(below.subplots(), runs, futures)
    return figure


def _draw(axes: Axes, futures: Futures, columns: int, shown: int, most: float) -> None:
    """Draw truth, samples and spread at some moments; ``most`` is the spread of the brightest colour."""
    K = len(futures.samples[0])
    chosen = np.unique(np.linspace(0, K - 1, min(columns, K)).round().astype(int))
    heat = (_HEAT(futures.spread[chosen] / most)[..., :3] * 255).astype(np.uint8)
    samples = {f"sample {n + 1}": futures.samples[n, chosen] for n in range(shown)}
    rows = {"truth": futures.truth[futures.first :][chosen], **samples, "spread": heat}
    draw_rows(axes, rows, chosen + futures.first)


def _curves(axes: Axes, runs: Sequence[Run], found: Sequence[Futures]) -> None:
    """Draw the spread of every frame, one line per run."""
    for run, futures in zip(runs, found, strict=True):
        at = np.arange(futures.first, len(futures.truth), dtype=float)
        style.line(axes, at, futures.spread.mean((1, 2)), label=style.wrap(run.label, 34), **run.style)
    axes.set_ylim(bottom=0)
    style.show_hidden(axes)
    axes.set_ylabel("spread, mean over pixels", fontsize=7.5)
    style.x_axis(axes, "frame of this clip")
    if len(runs) > 1:
        axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))


# ---------------------------------------------------------------- files


def _common(request: Request) -> str:
    """The clip, as ``<split>-<sequence>``, that most runs have futures of; in a tie the last one sampled."""
    have: Counter[str] = Counter()
    when: dict[str, float] = {}
    for run in request.runs:
        for path in (run.folder / "predictions").glob(f"{request.split or '*'}-*-futures.npz"):
            name = path.name.removesuffix("-futures.npz")
            have[name] += 1
            when[name] = min(when.get(name, np.inf), path.stat().st_mtime)
    if not have:
        folders = " ".join(str(run.folder) for run in request.runs)
        raise AbsentError(f"no sampled futures in {folders}", f"run `cvae plot samples {folders}`")
    return max(sorted(have), key=lambda name: (have[name], when[name]))


def _read(run: Run, name: str) -> Futures:
    path = run.folder / "predictions" / f"{name}-futures.npz"
    if not path.is_file():
        raise AbsentError(f"there is no {path}", f"run `cvae plot samples {run.folder}`")
    try:
        with np.load(path) as file:
            return Futures(file["truth"], file["samples"], int(file["first"]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is damaged ({error})", "run `cvae plot samples` again") from error


def _title(run: Run, name: str, *, alone: bool) -> str:
    """The run, and the numbers of its last evaluation on the split."""
    lines = [run.title if alone else run.label, *_numbers(run, name.rpartition("-")[0])]
    return "\n".join(style.wrap(line, 96 if alone else 44) for line in lines)


def _numbers(run: Run, split: str) -> list[str]:
    """Numbers of the best, mean and worst sample; empty if there is no evaluation with several samples."""
    try:
        content = evaluations.read_summary(run.folder, split)
    except AbsentError:
        return []
    n, diversity, kl = content["protocol"].get("samples", 1), content.get("diversity"), content.get("kl")
    best, worst = content.get("psnr_best_of_samples"), content.get("psnr_worst_of_samples")
    if n < 2 or None in (best, worst, diversity, kl, content["psnr"]):
        return []
    return [
        f"{split}: best of {n} {best:.2f}, mean {content['psnr']:.2f}, worst {worst:.2f} dB",
        f"diversity {diversity:.4f}, KL {kl:.2f} nats",
    ]
