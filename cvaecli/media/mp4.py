"""MP4 with H.264, by ffmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import ffmpeg
from .panels import Frame

_H264 = [
    *("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "12", "-preset", "medium"),
    *("-movflags", "+faststart", "-f", "mp4"),
    # The file names the colour matrix: otherwise players guess it from the size, and colours shift
    *("-vf", "scale=out_color_matrix=bt709:out_range=tv"),
    *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
]


def write_mp4(frames: Iterator[Frame], path: Path, fps: float) -> int:
    """Write frames ``[H, W, 3]`` as H.264; yuv420p needs even sizes, so a row or column may be repeated.

    Returns:
        The number of frames.

    Raises:
        CvaeError: ffmpeg is missing or failed.
    """
    count = ffmpeg.encode(map(_even, frames), fps, [*_H264, str(path)])
    ffmpeg.check_length(path, count)
    return count


def _even(frame: Frame) -> Frame:
    """Repeat the last row or column if the number is odd."""
    H, W = frame.shape[:2]
    return np.pad(frame, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge") if H % 2 or W % 2 else frame
