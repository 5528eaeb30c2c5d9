"""Writes single pictures, strips, folders of PNGs, and arrays."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import replacing
from .panels import Frame, strip

STRIP_FRAMES = 12
"""Number of frames in a strip."""


def save_png(path: str | Path, image: Frame) -> Path:
    """Write one picture ``[H, W, 3]`` uint8 as PNG, completely or not at all. Returns the path."""
    target = Path(path)
    with replacing(target) as part:
        Image.fromarray(image).save(part, format="PNG")
    return target


def write_strip(frames: Iterator[Frame], path: Path, scale: int, total: int | None) -> int:
    """Write up to 12 evenly spaced frames with their numbers. Returns the total number of frames."""
    kept, numbers, count = evenly_spaced(frames, STRIP_FRAMES, total)
    image = strip([np.stack(kept)], [""], scale=scale, columns=numbers)
    Image.fromarray(image).save(path, format="PNG")
    return count


def evenly_spaced(frames: Iterator[Frame], k: int, total: int | None) -> tuple[list[Frame], list[int], int]:
    """Up to ``k`` evenly spaced frames, their numbers, and the number of all frames.

    If the total is unknown, every ``stride``-th frame is kept, and the stride doubles when there are too
    many. Memory stays constant, but there may be as few as k / 2 frames, and the last one may be missing.
    """
    wanted = None if total is None else set(np.linspace(0, max(total, 1) - 1, k).round().astype(int).tolist())
    kept: list[Frame] = []
    numbers: list[int] = []
    stride = 1
    count = 0
    for frame in frames:
        if (count % stride == 0) if wanted is None else (count in wanted):
            kept.append(frame.copy())  # the source may reuse its buffer
            numbers.append(count)
            if len(kept) > 2 * k:
                kept, numbers, stride = kept[::2], numbers[::2], 2 * stride
        count += 1
    step = -(-len(kept) // k)
    return kept[::step], numbers[::step], count


def write_folder(frames: Iterator[Frame], folder: Path) -> int:
    """Write ``0.png``, ``1.png``, ... into an existing folder. Returns the number of frames."""
    count = 0
    for frame in frames:
        Image.fromarray(frame).save(folder / f"{count}.png")
        count += 1
    return count


def write_npz(frames: Iterator[Frame], path: Path) -> int:
    """Write the array ``frames [T, H, W, 3]``, compressed. Returns the number of frames."""
    # The array's header holds the number of frames, so the pixels wait in an unnamed file until it is known
    with tempfile.TemporaryFile(dir=path.parent) as pixels:
        count = 0
        shape: tuple[int, ...] = ()
        for frame in frames:
            pixels.write(np.ascontiguousarray(frame).data)
            shape = frame.shape
            count += 1
        pixels.seek(0)
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("frames.npy", "w", force_zip64=True) as member,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(member, header)
            shutil.copyfileobj(pixels, member)
    return count
