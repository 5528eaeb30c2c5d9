"""Writes video and pictures to files: ``write`` chooses the format by the suffix.

A frame is a uint8 RGB array ``[H, W, 3]``. Videos are iterators of frames, and writers hold a few frames
at a time, so that memory does not grow with a video's length. Files appear completely or not at all.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import replacing
from .gif import MAX_FPS, write_gif
from .mp4 import write_mp4
from .panels import Frame, enlarge, side_by_side, strip
from .stills import STRIP_FRAMES, save_png, write_folder, write_npz, write_strip

__all__ = [
    "STRIP_SIZE",
    "Frame",
    "default_scale",
    "enlarge",
    "save_png",
    "side_by_side",
    "strip",
    "write",
]

SUFFIXES = (".gif", ".mp4", ".png", ".npz")
FOLDER = ""  # stands for the suffix of a folder of pictures
VIDEO_SIZE = 400  # pixels; videos are enlarged for viewing up to this size of the longer side
STRIP_SIZE = 1600  # the same for a strip of frames


def write(
    frames: Iterable[Frame],
    out: str | Path,
    *,
    fps: float = 25,
    scale: int | None = 1,
    total: int | None = None,
) -> int:
    """Write frames to ``out``; its suffix decides the format.

    ======== =====================================================================================
    .gif     repeats forever; one palette of 255 colours. Delays are whole hundredths of a second: at
             30 fps they alternate so that the total time is right
    .mp4     H.264, yuv420p; a row or column is repeated if the size is odd. Colour is stored at
             half resolution, so a ``scale`` of 2 or more keeps small frames sharp
    .png     one strip of up to 12 evenly spaced frames with their numbers
    .npz     array ``frames``, uint8 ``[T, H, W, 3]``: the exact values
    folder   (no suffix, a trailing slash, or an existing folder) ``0.png``, ``1.png``, ...
    ======== =====================================================================================

    Args:
        frames: uint8 ``[H, W, 3]`` each, all of one size; consumed lazily.
        out: file or folder to write. Missing parent folders are created; an existing file is replaced at the
            end.
        fps: frames per second, > 0 (GIF: at most 50). Not used for NPZ and PNG.
        scale: whole-number enlargement with nearest neighbours. None: up to about 400 pixels wide for GIF
            and MP4, 1600 for a strip, 1 for a folder. NPZ holds data, not pictures, and is never enlarged.
        total: number of frames, if known: a .png strip then spans exactly the first to the last.

    Returns:
        The number of frames.

    Raises:
        UserError: unknown suffix, a folder that is not empty, a target that cannot be written, no frames.
        CvaeError: ffmpeg is missing or failed.
        ValueError: a frame of wrong type, shape or size.
    """
    if scale is not None and scale < 1:
        raise UserError(f"scale {scale}: must be a whole number of at least 1")
    if not fps > 0:
        raise UserError(f"fps {fps}: must be above 0")
    target, form = Path(out), _format(out)
    if form == ".gif" and fps > MAX_FPS:
        raise UserError(f"{target}: a GIF shows at most {MAX_FPS} frames per second, not {fps}", "use .mp4")
    if form == FOLDER and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder", "remove it or choose another --out")
    with replacing(target, folder=form == FOLDER) as part:
        checked = _checked(frames)
        first = next(checked, None)
        if first is None:
            raise UserError(f"{target}: no frames to write")
        k = _scale_for_viewing(form, first) if scale is None else scale
        checked = itertools.chain([first], checked)
        if form == ".png":
            return write_strip(checked, part, k, total)
        if form == ".npz":
            return write_npz(checked, part)
        enlarged = (enlarge(frame, k) for frame in checked)
        if form == FOLDER:
            return write_folder(enlarged, part)
        return write_gif(enlarged, part, fps) if form == ".gif" else write_mp4(enlarged, part, fps)


def default_scale(width: int, height: int, size: int = VIDEO_SIZE) -> int:
    """The largest whole factor that keeps both sides within ``size`` pixels; at least 1."""
    return max(1, size // max(width, height))


def _format(out: str | Path) -> str:
    """One of ``SUFFIXES``, or ``FOLDER``."""
    path = Path(out)
    # A Path drops a trailing slash, a str keeps it
    if not path.suffix or path.is_dir() or str(out).endswith(("/", os.sep)):
        return FOLDER
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: unknown suffix {path.suffix!r}",
            f"one of {', '.join(SUFFIXES)}, or a folder (end it with /)",
        )
    return suffix


def _scale_for_viewing(form: str, frame: Frame) -> int:
    height, width = frame.shape[:2]
    if form == ".png":
        return default_scale(STRIP_FRAMES * width, height, STRIP_SIZE)
    return default_scale(width, height) if form in (".gif", ".mp4") else 1


def _checked(frames: Iterable[Frame]) -> Iterator[Frame]:
    shape: tuple[int, ...] | None = None
    for i, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame {i}: expected uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
        if shape is not None and frame.shape != shape:
            raise ValueError(f"frame {i} is {list(frame.shape)}, the first was {list(shape)}")
        shape = frame.shape
        yield frame
