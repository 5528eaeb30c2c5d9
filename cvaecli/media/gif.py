"""GIF with one palette for the whole video, chosen and applied by ffmpeg.

The best palette is known only after the last frame. Until then the frames are stored, losslessly compressed,
in a file next to the target, so that memory stays constant. The palette is computed in the same pass.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import ffmpeg
from .panels import Frame

MAX_FPS = 50
"""Viewers show frames of less than 20 ms for 100 ms."""

# Run-length coding against the previous frame: on enlarged frames the smallest and fastest of ffmpeg's
# lossless codecs. A key frame every 1000 frames.
_LOSSLESS = ["-c:v", "qtrle", "-g", "1000", "-f", "mov"]


def write_gif(frames: Iterator[Frame], path: Path, fps: float) -> int:
    """Write frames ``[H, W, 3]`` as a GIF that repeats forever.

    No dithering: it would flicker in still areas, and on 630 frames of the built-in dancer it made files a
    third larger without raising their PSNR.

    Returns:
        The number of frames.

    Raises:
        CvaeError: ffmpeg is missing or failed.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as folder:
        video, palette = f"{folder}/video.mov", f"{folder}/palette.png"
        count = ffmpeg.encode(frames, fps, [*_LOSSLESS, video, "-vf", "palettegen", palette])
        colours = ["-i", palette, "-filter_complex", "paletteuse=dither=none"]
        ffmpeg.run(["-i", video, *colours, "-fps_mode", "passthrough", "-loop", "0", "-f", "gif", str(path)])
    ffmpeg.check_length(path, count)
    return count
