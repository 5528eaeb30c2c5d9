"""Reads a film, or a folder of pictures, one full-size picture at a time.

ffmpeg decodes: any container and codec, upright, with the time of every frame. Only one picture is in memory.
"""

from __future__ import annotations

import queue
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np

from ..data.images import MAX_PIXELS, SUFFIXES, ImageError, decode, link_fault
from ..errors import UserError
from ..media import ffmpeg
from ..media.panels import Frame

FOLDER_RATE = 25.0
"""Pictures a second of a folder, which does not say."""
EARLY = 0.5
"""A film with damage that ends this many seconds before its stated end is refused."""

_SHOWN = re.compile(r"showinfo.* pts_time:(\S+) .* s:(\d+)x(\d+) ")
_DURATION = re.compile(r"Duration: (\d+):(\d+):(\d+\.?\d*)")
_VIDEO = re.compile(r"Stream #.*: Video: (?!.*\(attached pic\))(.*)")
_RATE = re.compile(r"([\d.]+)(k?) (?:fps|tbr)")
_DAMAGE = re.compile(r"(?:\[[^]]* @ 0x[0-9a-f]+\] )*\[(?:error|fatal)\] (.*)")


class Shot(NamedTuple):
    """A picture of the film: its number from 0, its time in seconds, and uint8 ``[H, W, 3]``."""

    number: int
    time: float
    picture: Frame


class Film(Protocol):
    """A source of pictures.

    Attributes:
        rate: frames a second as the file states it.
        count: about how many pictures there are; 0 if the file does not say.
        warnings: what was odd, complete once all shots were read.
    """

    rate: float
    count: int
    warnings: list[str]

    def shots(self) -> Iterator[Shot]:
        """All pictures in order, upright.

        Raises:
            UserError: a picture that cannot be read.
        """


def open_film(path: Path, fps: float | None = None) -> Film:
    """The film in a file, or the pictures of a folder.

    Args:
        fps: the rate of a folder's pictures.

    Raises:
        UserError: there is no such file, or no video in it, or no pictures in the folder.
    """
    if path.is_dir():
        return Pictures(path, fps or FOLDER_RATE)
    if not path.is_file():
        raise UserError(f"{path}: no such file", "give a video, a GIF or a folder of pictures")
    return Video(path)


class Video:
    """A film in one file; see `Film`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        with path.open("rb") as file:
            head = file.read(256)
        if not head:
            raise UserError(f"{path}: the file is empty (0 bytes)", "copy it again")
        # Also playlists, which would make ffmpeg open other files
        if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
            raise UserError(f"{path}: text, not a video", "give a video, a GIF or a folder of pictures")
        banner = subprocess.run(
            [*self._command(), "-hide_banner"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            process_group=0,
        ).stderr.decode("utf-8", "replace")
        if "Input #0" not in banner:
            reason = next(iter(_DAMAGE.findall(banner)), "unknown format")
            raise UserError(f"{path}: not a video, or damaged ({reason})", "copy it again")
        video = _VIDEO.search(banner)
        if video is None:
            raise UserError(f"{path}: no video in the file", "give a file with pictures")
        rate = _RATE.search(video[1])
        if rate is None:
            raise UserError(f"{path}: the file does not state its frame rate", "convert it to .mp4")
        self.rate = _exact(float(rate[1]) * (1000 if rate[2] else 1))
        length = _DURATION.search(banner)
        self.duration = (
            sum(float(x) * s for x, s in zip(length.groups(), (3600, 60, 1), strict=True)) if length else 0.0
        )
        self.count = round(self.duration * self.rate)

    def _command(self) -> list[str]:
        # "file:" because a name may look like an option or an address; no other protocol is allowed
        source = ["-protocol_whitelist", "file", "-i", f"file:{self.path}"]
        return [*ffmpeg.program(), "-nostdin", "-nostats", "-v", "level+info", *source]

    def shots(self) -> Iterator[Shot]:
        """See `Film`."""
        output = ["-map", "0:V:0", "-vf", "showinfo=checksum=0", "-fps_mode", "passthrough"]
        raw = ["-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
        process = subprocess.Popen(
            [*self._command(), *output, *raw],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        assert process.stdout is not None and process.stderr is not None
        log = _Log(process.stderr)
        number, end = 0, 0.0
        size: tuple[int, int] | None = None
        try:
            while (head := log.next_frame()) is not None:
                text, width, height = head
                if size not in (None, (width, height)) or width * height > MAX_PIXELS:
                    fault = f"frame {number} is {width}x{height}"
                    hint = f"all frames must have one size, of at most {MAX_PIXELS:,} pixels"
                    raise UserError(f"{self.path}: {fault}", hint)
                size = width, height
                content = process.stdout.read(width * height * 3)
                if len(content) < width * height * 3:
                    break
                end = _seconds(text, number / self.rate)
                yield Shot(number, end, np.frombuffer(content, np.uint8).reshape(height, width, 3))
                number += 1
        finally:
            process.kill()
            log.close()
            process.stdout.close()
            process.wait()
        self._finish(number, end, log.damage)

    def _finish(self, count: int, end: float, damage: list[str]) -> None:
        """Whether all of the film was read."""
        reason = f" ({damage[0]})" if damage else ""
        if count == 0:
            raise UserError(f"{self.path}: no frame can be read{reason}", "copy it again")
        if damage and end + 1 / self.rate < self.duration - EARLY:
            raise UserError(
                f"{self.path}: the file is damaged: {count} frames, {end:.1f} of {self.duration:.1f} s, can "
                f"be read{reason}",
                f"copy it again, or use the part before with --to {max(0.0, end - 1):.1f}",
            )
        if damage:
            self.warnings.append(f"{self.path}: damaged in places; some frames may be grey{reason}")


class Pictures:
    """The PNG and JPEG pictures of a folder, by the numbers in their names; see `Film`."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.warnings: list[str] = []
        shown = (file for file in path.iterdir() if not file.name.startswith("."))
        pictures = (file for file in shown if file.suffix.lower() in SUFFIXES)
        self.files = sorted(pictures, key=lambda file: by_number(file.name))
        self.count = len(self.files)
        if not self.files:
            raise UserError(f"{path}: no pictures in the folder", "they must be .png or .jpg")

    def shots(self) -> Iterator[Shot]:
        """See `Film`."""
        size: tuple[int, int] | None = None
        for number, file in enumerate(self.files):
            if fault := link_fault(file, self.path):
                raise UserError(f"{self.path}: {fault}")
            try:
                image = decode(file)
            except ImageError as error:
                raise UserError(f"{file}: {error}") from None
            if size not in (None, image.size):
                raise UserError(
                    f"{file}: {image.width}x{image.height}, but {self.files[0].name} is {size[0]}x{size[1]}",
                    "all pictures must have one size",
                )
            size = image.size
            yield Shot(number, number / self.rate, np.asarray(image))


class _Log:
    """ffmpeg's messages, read in a thread: it would stop if nobody read them."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.damage: list[str] = []
        self._stream = stream
        self._frames: queue.SimpleQueue[tuple[str, int, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="ffmpeg's log", daemon=True)
        self._thread.start()

    def next_frame(self) -> tuple[str, int, int] | None:
        """(time, width, height) of the next frame; None after the last."""
        return self._frames.get()

    def close(self) -> None:
        """Wait for the end of the log."""
        self._thread.join()
        self._stream.close()

    def _read(self) -> None:
        for raw in self._stream:
            line = raw.decode("utf-8", "replace")
            if shown := _SHOWN.search(line):
                self._frames.put((shown[1], int(shown[2]), int(shown[3])))
            elif (fault := _DAMAGE.match(line)) and len(self.damage) < 10:
                self.damage.append(fault[1].strip())
        self._frames.put(None)


def by_number(name: str) -> list[tuple[int, str]]:
    """A sort key: numbers in a file name count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _exact(rate: float) -> float:
    """ffmpeg prints two decimals: 29.97 stands for 30000 / 1001."""
    whole = round(rate * 1.001)
    return whole / 1.001 if rate != whole and abs(whole / 1.001 - rate) < 0.006 else rate


def _seconds(text: str, default: float) -> float:
    try:
        return float(text)
    except ValueError:  # a frame without a time
        return default
