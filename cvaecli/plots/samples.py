"""Sampled futures beside the truth, from predictions/*-futures.npz: one block of pictures a run.

Below the samples, how far they differ from pixel to pixel; below the blocks, how far from frame to frame.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..errors import UserError
from . import figures
from .figures import Request, Run
from .tables import AbsentError, Array

Picture = npt.NDArray[np.uint8]

SHOWN = 4  # samples that are drawn; all of them count in the spread
COLUMNS = {1: 10, 2: 5}  # moments drawn, by how many blocks share the page's width
_HEAT = mpl.colormaps["inferno"]
_GAP = 2  # white pixels between pictures


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
        """Standard deviation over the samples, mean over channels, white being 1: ``[T - first, H, W]``."""
        deviation: Array = (self.samples / 255.0).std(0, ddof=1).mean(-1)
        return deviation


def samples_figure(request: Request) -> Figure:
    """One block a run: truth, samples, spread; then the spread of every frame, a line a run.

    Raises:
        AbsentError: a run has no sampled futures that the others have too.
        UserError: a damaged file.
    """
    name = _common(request.runs, request.split)
    found = [_read(run.folder / "predictions" / f"{name}-futures.npz") for run in request.runs]
    across = min(len(found), 2)
    down = -(-len(found) // across)
    height, width = found[0].truth.shape[1:3]
    shown = min(SHOWN, min(len(each.samples) for each in found))
    block = (figures.WIDTH / across - 0.65) * (shown + 2) * height / (COLUMNS[across] * width) + 0.65
    figure = Figure(figsize=(figures.WIDTH, down * block + 2.2), layout="constrained")
    above, below = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=[down * block + 0.45, 1.75])))
    grid = above.subplots(down, across, squeeze=False)
    most = max(float(each.spread.max()) for each in found) or 1.0
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    for axes, run, each in zip(grid.flat, request.runs, found, strict=False):
        _draw(axes, each, COLUMNS[across], shown, most)
        title = (run.label, *_numbers(run, name.rpartition("-")[0]))
        axes.set_title("\n".join(title), fontsize=7.5, loc="left", x=-0.2 if across > 1 else -0.1)
    heat = ScalarMappable(Normalize(0, most), _HEAT)
    bar = above.colorbar(heat, ax=grid, location="bottom", shrink=0.4, aspect=40, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("spread: standard deviation over the samples, white being 1", fontsize=7.5)
    _curves(below.subplots(), request.runs, found)
    return figure


def _draw(axes: Axes, futures: Futures, columns: int, shown: int, most: float) -> None:
    """Rows of pictures as one image; ``most`` is the spread that the brightest colour stands for."""
    K = len(futures.samples[0])
    chosen = np.unique(np.linspace(0, K - 1, min(columns, K)).round().astype(int))
    heat = (_HEAT(futures.spread[chosen] / most)[..., :3] * 255).astype(np.uint8)
    rows = [futures.truth[futures.first :][chosen], *futures.samples[:shown, chosen], heat]
    H, W = rows[0].shape[1:3]
    page = np.full((len(rows) * (H + _GAP), len(chosen) * (W + _GAP), 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            page[r * (H + _GAP) :, c * (W + _GAP) :][:H, :W] = picture
    axes.imshow(page, interpolation="nearest")
    names = ["truth", *(f"sample {n + 1}" for n in range(shown)), "spread"]
    axes.set_yticks([r * (H + _GAP) + H / 2 for r in range(len(rows))], names, fontsize=7.5)
    axes.set_xticks(
        [c * (W + _GAP) + W / 2 for c in range(len(chosen))], chosen + futures.first, fontsize=7.5
    )
    axes.tick_params(length=0, pad=1)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _curves(axes: Axes, runs: Sequence[Run], found: Sequence[Futures]) -> None:
    """The spread of every frame, a line a run."""
    for run, futures in zip(runs, found, strict=True):
        at = np.arange(futures.first, len(futures.truth), dtype=float)
        figures.line(axes, at, futures.spread.mean((1, 2)), label=run.label, **run.style)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("spread, mean over pixels", fontsize=7.5)
    figures.x_axis(axes, "frame of this clip")
    if len(runs) > 1:
        axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))


# ---------------------------------------------------------------- files


def _common(runs: Sequence[Run], split: str | None) -> str:
    """The clip, as ``<split>-<sequence>``, of which all runs have futures; the one last sampled."""
    have = []
    for run in runs:
        paths = (run.folder / "predictions").glob(f"{split or '*'}-*-futures.npz")
        have.append({path.name.removesuffix("-futures.npz"): path.stat().st_mtime for path in paths})
    shared = set.intersection(*(set(each) for each in have))
    if not shared:
        folders = " ".join(str(run.folder) for run in runs)
        raise AbsentError(f"no futures of one clip for {folders}", f"run `cvae plot samples {folders}`")
    return max(sorted(shared), key=lambda name: min(each[name] for each in have))


def _read(path: Path) -> Futures:
    try:
        with np.load(path) as file:
            return Futures(file["truth"], file["samples"], int(file["first"]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is damaged ({error})", "run `cvae plot samples` again") from error


def _numbers(run: Run, split: str) -> list[str]:
    """What the run's last validation of the split says; nothing where it had one sample, or was none."""
    try:
        content = json.loads((run.folder / "eval" / split / "metrics.json").read_text(encoding="utf-8"))
        n, psnr = content["protocol"]["samples"], content["psnr"]
        best, worst = content["psnr_best_of_samples"], content["psnr_worst_of_samples"]
        diversity, kl = content["diversity"], content["kl"]
        if n < 2:
            return []
        decibels = f"{split}: best of {n} {best:.2f}, mean {psnr:.2f}, worst {worst:.2f} dB"
        return [decibels, f"diversity {diversity:.4f}, KL {kl:.2f} nats"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
