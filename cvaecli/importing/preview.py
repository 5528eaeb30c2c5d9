"""Shows a data set in the dance layout: a contact sheet, a GIF, and how good its labels are."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import media
from ..data.clip import Clip
from ..data.images import ImageError, decode, list_pictures
from ..data.kinds import Progress
from ..data.loading import load
from ..errors import UserError
from ..files import write_csv
from ..media.panels import Frame
from .quality import Quality, measure, numbers

LONGEST = 128
"""Larger frames are shown with this size of the longer side, in pixels."""
COLUMNS, ROWS = 8, {"train": 3, "val": 1}
"""The contact sheet's moments."""
GIF_FRAMES = 300
"""A longer film is shown in this many frames."""
GIF_FPS = 25.0
CAPTIONS = ("frame", "label", "both")
MARK = (255, 40, 0)
"""Colour of grey labels over their frames."""


@dataclass(frozen=True)
class Preview:
    """What was written, and the labels' quality."""

    written: list[Path]
    quality: Quality


def preview(root: Path, out: Path, progress: Progress | None = None) -> Preview:
    """Write ``sheet.png``, ``film.gif`` and ``labels.csv`` into the folder ``out``.

    Args:
        root: a data set in the dance layout.

    Raises:
        UserError: the data set cannot be used, or the folder cannot be written.
    """
    height, width = _frame_size(root)
    splits = load(root, kind="dance", height=height, width=width, progress=progress).splits
    quality = measure(root, splits)
    sheet = media.save_png(out / "sheet.png", _sheet(splits))
    clips = [clip for split in ("train", "val") for clip in splits[split]]
    total = sum(clip.n_frames for clip in clips)
    every = -(-total // GIF_FRAMES)
    fps = min(GIF_FPS, _rate(root) / every)
    film = out / "film.gif"
    media.write(_film(clips, every), film, fps=fps)
    table = out / "labels.csv"
    columns = ["frame", "split", "blank", "repeated", "missing", "moved"]
    write_csv(
        table,
        columns,
        [{**vars(row), "blank": int(row.blank), "repeated": int(row.repeated)} for row in quality.rows],
    )
    return Preview([sheet, film, table], quality)


def overlay(frame: Frame, label: Frame) -> Frame:
    """The label's ink over its frame, both uint8 ``[..., H, W, 3]``; grey ink is shown in red."""
    ink = 1 - label.min(axis=-1, keepdims=True) / 255
    grey = np.ptp(label, axis=-1, keepdims=True) == 0
    pure = 255 - (255 - label.astype(float)) / np.maximum(ink, 1e-6)  # the colour before it faded to white
    mixed = frame * (1 - ink) + np.where(grey, MARK, pure) * ink
    shown: Frame = np.rint(mixed).clip(0, 255).astype(np.uint8)
    return shown


def _frame_size(root: Path) -> tuple[int, int]:
    """(height, width) in which to show the set: that of its first frame, or smaller."""
    folder = root / "train" / "train_img"
    listing = list_pictures(folder, root) if folder.is_dir() else None
    if listing is None or not listing.files:
        raise UserError(f"{root}: no frames in train/train_img", f"see `cvae data check {root}`")
    name = next(iter(listing.files.values())).name
    try:
        width, height = decode(root / name).size
    except ImageError as error:
        raise UserError(f"{root / name}: {error}") from None
    scale = min(1.0, LONGEST / max(width, height))
    return max(8, round(height * scale)), max(8, round(width * scale))


def _pictures(values: npt.NDArray[np.generic]) -> Frame:
    """``[..., 3, H, W]`` as ``[..., H, W, 3]``."""
    return np.moveaxis(np.asarray(values, np.uint8), -3, -1)


def _sheet(splits: dict[str, Sequence[Clip]]) -> Frame:
    """Moments spread evenly over each split, in rows of frame, label and both."""
    blocks = []
    for split, rows in ROWS.items():
        places = [(clip, i, n) for clip in splits[split] for i, n in enumerate(numbers(clip))]
        chosen = np.linspace(0, len(places) - 1, min(rows * COLUMNS, len(places))).round().astype(int)
        for part in np.array_split(chosen, -(-len(chosen) // COLUMNS)):
            frames = np.stack([_pictures(places[k][0].frames[places[k][1]]) for k in part])
            labels = np.stack([_pictures(places[k][0].condition[places[k][1]]) for k in part])
            scale = media.default_scale(COLUMNS * frames.shape[2], frames.shape[1], media.STRIP_SIZE)
            columns = [f"{split} {places[k][2]}" for k in part]
            blocks.append(
                media.strip([frames, labels, overlay(frames, labels)], CAPTIONS, scale, columns=columns)
            )
    width = max(block.shape[1] for block in blocks)
    pads = [((0, 12), (0, width - block.shape[1]), (0, 0)) for block in blocks]
    return np.concatenate([np.pad(b, pad, constant_values=255) for b, pad in zip(blocks, pads, strict=True)])


def _film(clips: Sequence[Clip], every: int) -> Iterator[Frame]:
    """Every so many frames of the clips: frame, label and both side by side."""
    pairs = ((clip.frames[i], clip.condition[i]) for clip in clips for i in range(clip.n_frames))
    first, second, third = itertools.tee(
        ((_pictures(a), _pictures(b)) for a, b in itertools.islice(pairs, 0, None, every)), 3
    )
    streams = [(a for a, _ in first), (b for _, b in second), (overlay(a, b) for a, b in third)]
    height, width = clips[0].frames.shape[2:]
    return media.side_by_side(streams, CAPTIONS, scale=media.default_scale(width, height, 320))


def _rate(root: Path) -> float:
    """Frames a second, from the frames.csv that an import writes."""
    try:
        with (root / "frames.csv").open(encoding="utf-8") as file:
            times = [float(row["time"]) for row in itertools.islice(csv.DictReader(file), 1000)]
        return 1 / float(np.median(np.diff(times)))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return GIF_FPS
