"""Runs the ffmpeg program that imageio[ffmpeg] installs, or the system's."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import CvaeError
from .panels import Frame

_QUIET = ["-v", "error", "-y"]
"""Print only errors, and overwrite the (empty) output file."""


def encode(frames: Iterator[Frame], fps: float, outputs: Sequence[str]) -> int:
    """Pipe frames into ffmpeg, one at a time.

    Args:
        frames: uint8 ``[H, W, 3]``, at least one, all of one size.
        fps: frames per second.
        outputs: ffmpeg's arguments after its input.

    Returns:
        The number of frames.

    Raises:
        CvaeError: ffmpeg is missing or failed.
    """
    first = next(frames)
    size = f"{first.shape[1]}x{first.shape[0]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-framerate", str(fps), "-i", "-"]
    count = 0
    with tempfile.TemporaryFile() as log:
        # Its own process group: Ctrl-C reaches only this program, which then decides.
        process = subprocess.Popen(
            [*program(), *_QUIET, *source, *outputs],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            process_group=0,
        )
        try:
            for frame in itertools.chain([first], frames):
                if not _sent(process, frame):
                    break
                count += 1
            process.communicate()  # closes the pipe and waits
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if process.returncode:
            log.seek(0)
            raise _failure(log.read())
    return count


def _sent(process: subprocess.Popen[bytes], frame: Frame) -> bool:
    """Send a frame; False if ffmpeg has stopped reading. Its exit status and log then say why."""
    assert process.stdin is not None
    try:
        process.stdin.write(np.ascontiguousarray(frame).data)
    except OSError:
        return False
    return True


def run(arguments: Sequence[str]) -> None:
    """Run ffmpeg from files to files.

    Raises:
        CvaeError: ffmpeg is missing or failed.
    """
    done = subprocess.run(
        [*program(), *_QUIET, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        process_group=0,
    )
    if done.returncode:
        raise _failure(done.stderr)


def check_length(path: Path, frames: int) -> None:
    """Check the number of frames of a finished file, without decoding it.

    Raises:
        CvaeError: it does not hold ``frames`` frames.
    """
    import imageio_ffmpeg  # type: ignore[import-untyped]

    try:
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        written = 0
    if written != frames:
        raise CvaeError(f"ffmpeg stored {written} of {frames} frames", "is there space left on the disk?")


def program() -> list[str]:
    """The start of a command: the ffmpeg that imageio-ffmpeg brings, or the system's.

    Raises:
        CvaeError: there is none.
    """
    try:
        import imageio_ffmpeg

        return [imageio_ffmpeg.get_ffmpeg_exe()]
    except (ImportError, RuntimeError) as error:
        raise CvaeError(
            f"no ffmpeg for films and GIFs: {error}", "pip install 'imageio[ffmpeg]', or use .png or .npz"
        ) from error


def _failure(log: bytes) -> CvaeError:
    """The first line of ffmpeg's log, without the prefix in brackets."""
    line = next(iter(log.decode("utf-8", "replace").splitlines()), "it did not say why")
    reason = re.sub(r"^\[[^]]*\] *", "", line)
    return CvaeError(f"ffmpeg failed: {reason}")
