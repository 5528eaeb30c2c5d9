"""Predicted and true pictures over time, from eval/<split>/frames.npz."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from .. import evaluations
from ..errors import UserError
from ..evaluations import ClipFrames
from ..media.panels import Frame, strip
from ..tables import AbsentError
from . import protocols, style
from .pictures import Picture, draw_rows, row_height
from .psnr import mean_in_words
from .runs import Request, Run

GIF_FPS = 2.5  # the frames are far apart in time
_ORDER = {"truth": "truth", "posterior": "posterior", "best sample": "best sample", "rollout": "one sample"}
"""The rows from top to bottom: names in frames.npz and in the figure."""


class Block(NamedTuple):
    """Pictures of one clip by one run: rows uint8 ``[K, H, W, 3]`` by name, frame numbers ``[K]``."""

    title: str
    rows: dict[str, Picture]
    numbers: npt.NDArray[np.int64]


def grid_figure(request: Request) -> Figure:
    """Evenly spaced frames: truth, posterior, best sample, one sample. One block per clip, or for several
    runs one block per run, all of the same clip.

    Raises:
        AbsentError: no run has a frames.npz of the split.
        UserError: a damaged file.
    """
    blocks, split = _blocks(request)
    columns = max(len(block.numbers) for block in blocks)
    width = style.WIDTH - 0.9
    heights = [width * len(block.rows) * row_height(block.rows["truth"], columns) + 0.42 for block in blocks]
    title = style.wrap(request.title(f"{split}; below: the frame's number"))
    figure = Figure(
        figsize=(style.WIDTH, sum(heights) + 0.2 + 0.15 * title.count("\n")), layout="constrained"
    )
    places = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, block in zip(places, blocks, strict=True):
        draw_rows(axes, block.rows, block.numbers)
        axes.set_title(style.wrap(block.title), fontsize=8, loc="left", x=0)
    figure.suptitle(title, x=0.01, ha="left", fontsize=8)
    return figure


def animation(request: Request) -> Iterator[Frame]:
    """The same pictures as a slow film: one row per clip (or run), one column per kind of picture.

    Yields:
        Pictures uint8 ``[H', W', 3]``, all of one size.
    """
    blocks, _ = _blocks(request)
    names = list(dict.fromkeys(name for block in blocks for name in block.rows))
    sizes = sorted({f"{W}x{H}" for block in blocks for H, W in [block.rows["truth"].shape[1:3]]})
    if len(sizes) > 1:
        raise UserError(
            f"the runs have frames of different sizes ({', '.join(sizes)}), which one GIF cannot show",
            "write a .png, or plot runs of one size",
        )
    blank = np.full_like(blocks[0].rows["truth"][0], 255)
    scale = max(1, 96 // blank.shape[0])
    captions = [block.title if len(blocks) > 1 else "" for block in blocks]
    for k in range(min(len(block.numbers) for block in blocks)):
        rows = [
            np.stack([block.rows[name][k] if name in block.rows else blank for name in names])
            for block in blocks
        ]
        yield strip(rows, captions, scale=scale, columns=names)


def _blocks(request: Request) -> tuple[list[Block], str]:
    """The blocks and their split."""
    split = request.split or protocols.best_split(request.runs, "frames.npz")
    found = request.each(lambda run: evaluations.read_frames(run.folder, split))
    if not request.comparison:
        ((run, clips),) = found
        return [_block(clip, f"{clip.name}{_decibels(run, split, n)}") for n, clip in enumerate(clips)], split
    shared = [{clip.name for clip in clips} for _, clips in found]
    name = next((clip.name for clip in found[0][1] if all(clip.name in names for names in shared)), None)
    if name is None:
        raise AbsentError(
            f"the frames.npz of these runs have no clip of {split} in common",
            "validate them on the same data",
        )
    blocks = []
    for run, clips in found:
        n = [clip.name for clip in clips].index(name)
        blocks.append(_block(clips[n], f"{run.label}{_decibels(run, split, n)}"))
    return blocks, f"{split}: {name}"


def _block(clip: ClipFrames, title: str) -> Block:
    rows = {shown: clip.rows[name] for name, shown in _ORDER.items() if name in clip.rows}
    if "best sample" not in rows and "one sample" in rows:
        rows["rollout"] = rows.pop("one sample")
    if "condition" in clip.rows:
        rows["condition"] = clip.rows["condition"]
    return Block(title, rows, clip.numbers)


def _decibels(run: Run, split: str, clip: int) -> str:
    """The clip's mean PSNR; empty if there is no per_frame.csv."""
    try:
        table = evaluations.read_per_frame(run.folder, split)
    except AbsentError:
        return ""
    own = {name: values[table["clip"] == clip] for name, values in table.items()}
    return f": {mean_in_words(own, 'psnr')}"
