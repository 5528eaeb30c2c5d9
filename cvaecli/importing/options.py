"""What the user asks of an import, checked before anything is read."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

LONGER_SIDE = 64
"""Default size of the longer side of the frames, in pixels."""


@dataclass(frozen=True)
class Options:
    """Which part of a film to take, at which size, with which labels.

    Attributes:
        labels: ``person``, ``edges``, ``foreground``, or a file or folder of keypoints.
        skeleton: ``person``, ``points``, or a YAML file; None: chosen by the names of the points.
        person: ``all``, ``largest``, or the name or number of one.
        start: where to begin, in seconds.
        stop: where to end, in seconds; None: the film's end.
        fps: frames a second; None: as the film. For a folder, the rate of its pictures.
        crop: (width, height, left, top) in pixels of the upright film; None: all of it.
        size: (width, height) of the frames in pixels; None: the longer side has 64 pixels.
        val: the share of the frames, at the end, that are kept for validation.
        cuts: whether to look for cuts; without, train and val are one clip each.
        keypoint_size: (width, height) of the pictures in which the keypoints were found; None: the film's.
        weights: file with the detector's weights; None: download.
        device: where the detector runs; None: a GPU if there is one.
    """

    labels: str = "person"
    skeleton: str | None = None
    person: str = "all"
    start: float = 0.0
    stop: float | None = None
    fps: float | None = None
    crop: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None
    val: float = 0.15
    cuts: bool = True
    keypoint_size: tuple[int, int] | None = None
    weights: Path | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.stop is not None and self.stop <= self.start:
            raise UserError(f"--to {self.stop:g}: not after --from {self.start:g}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UserError(f"--fps {self.fps:g}: must be above 0 and at most 1000")
        if not 0 < self.val < 1:
            raise UserError(f"--val {self.val:g}: must be between 0 and 1")
        if self.size and not all(8 <= side <= 4096 for side in self.size):
            raise UserError(f"--size {self.size[0]}x{self.size[1]}: both must be 8 to 4096")

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the frames made of pictures (after the crop) of this size."""
        if self.size:
            return self.size
        scale = LONGER_SIDE / max(width, height)
        return max(8, 2 * round(width * scale / 2)), max(8, 2 * round(height * scale / 2))

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the crop in a film of this size.

        Raises:
            UserError: the crop reaches out of the picture.
        """
        if self.crop is None:
            return 0, 0, width, height
        w, h, left, top = self.crop
        if left + w > width or top + h > height:
            fault = f"--crop {w}x{h}+{left}+{top}: outside the picture, which is {width}x{height}"
            raise UserError(fault, "write WIDTHxHEIGHT+LEFT+TOP in pixels")
        return left, top, left + w, top + h


def seconds(text: str, option: str) -> float:
    """A time: ``90``, ``1:30`` or ``0:01:30.5``."""
    parts = text.strip().split(":")
    try:
        values = [float(part) for part in parts]
        if len(parts) > 3 or not all(value >= 0 and math.isfinite(value) for value in values):
            raise ValueError
    except ValueError:
        raise UserError(f"{option} {text!r}: not a time", "write seconds or H:MM:SS") from None
    return sum(value * 60.0**i for i, value in enumerate(reversed(values)))


def size(text: str, option: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT``."""
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text.strip())
    if not match:
        raise UserError(f"{option} {text!r}: not a size", "write WIDTHxHEIGHT in pixels, e.g. 64x36")
    return int(match[1]), int(match[2])


def crop(text: str) -> tuple[int, int, int, int]:
    """``WIDTHxHEIGHT+LEFT+TOP``."""
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})\+(\d{1,6})\+(\d{1,6})", text.strip())
    if not match:
        raise UserError(f"--crop {text!r}: not a part of a picture", "write WIDTHxHEIGHT+LEFT+TOP in pixels")
    return int(match[1]), int(match[2]), int(match[3]), int(match[4])
