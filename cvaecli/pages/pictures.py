"""Pictures from a run folder, small enough to embed in a page: strips, and frames for the player.

The player shows sprite sheets: the frames of a video side by side in one picture, so that all videos of a
page step together. They are compressed (WebP); the numbers on a page come from the evaluation instead.
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence, UnidentifiedImageError

from ..errors import UserError
from ..evaluations import read_summary
from ..media.panels import strip
from ..tables import AbsentError

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3]

PIXELS = 10_000_000
"""Largest total number of pixels of a page's sprite sheets; about 3 MB."""
MOST_FRAMES = 300
LARGEST_SIDE = 128  # pixels; longest side of a shown frame
STRIP_WIDTH = 1400  # pixels


@dataclass(frozen=True)
class Video:
    """A clip and a run's prediction of it."""

    truth: Frames | None
    prediction: Frames
    condition: Frames | None  # label images
    first: int  # number of the first predicted frame: earlier ones are given


@dataclass(frozen=True)
class Sprite:
    """A sprite sheet and a description of its frames."""

    caption: str
    uri: str
    width: int  # of one frame, pixels
    height: int
    columns: int
    frames: list[int]  # the number of each frame shown


def video_of(run: Path, split: str) -> Video | None:
    """The run's prediction of the first clip of the split, from ``predictions/``, if there is one.

    Reads the first that exists of ``<split>-0-frames.npz`` (from the option ``--frames``),
    ``<split>-0-futures.npz`` (from ``cvae plot samples``) and ``<split>-0-panels.gif`` (from
    ``cvae export-gif``). Frames that other weights predicted than those scored last do not count.

    Raises:
        UserError: a damaged file.
    """
    folder, scored = run / "predictions", _scored(run, split)
    for kind in ("frames", "futures"):
        path = folder / f"{split}-0-{kind}.npz"
        if path.is_file() and (video := _arrays(path, scored)):
            return video
    gif = folder / f"{split}-0-panels.gif"
    return _panels(gif) if gif.is_file() else None


def _scored(run: Path, split: str) -> str | None:
    """Fingerprint of the weights that were scored last, if it is known."""
    try:
        fingerprint: str | None = read_summary(run, split)["protocol"].get("checkpoint_fingerprint")
    except AbsentError:
        return None
    return fingerprint


def _arrays(path: Path, scored: str | None) -> Video | None:
    """None if the file is by other weights than those scored."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if scored and "checkpoint" in file and str(file["checkpoint"]) != scored:
                return None
            truth, first = file["truth"], int(file["first"])
            prediction = np.concatenate([truth[:first], file["samples"][0]])
            return Video(truth, prediction, file.get("condition"), first)
    except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error})", "delete it, and make it again") from None


def _panels(path: Path) -> Video:
    """A GIF of panels side by side, shown unchanged."""
    try:
        with Image.open(path) as image:
            frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error})", "run `cvae export-gif` again") from None
    return Video(None, np.stack(frames), None, 1)


def sprites(videos: Sequence[tuple[str, Video]]) -> list[Sprite]:
    """Sprite sheets that step together: the truth, the label images, and each prediction.

    All show the same frame numbers, limited by the shortest video and by ``PIXELS``. The truth and the labels
    are the first video's; they are shown once.
    """
    if not videos:
        return []
    first = videos[0][1]
    sheets = [("truth", first.truth), ("label", first.condition)]
    sheets += [(name, video.prediction) for name, video in videos]
    shown = [(name, frames) for name, frames in sheets if frames is not None]
    total = min(len(frames) for _, frames in shown)
    height, width = _size(first.prediction)
    most = max(2, PIXELS // (len(shown) * height * width))
    chosen = np.unique(np.linspace(0, total - 1, min(total, MOST_FRAMES, most)).round().astype(int))
    # Label images are flat: lossless files are small, and lossy ones would damage their thin lines
    return [_sprite(name, frames, chosen, lossless=name == "label") for name, frames in shown]


def _size(frames: Frames) -> tuple[int, int]:
    """(height, width) of a frame as shown."""
    H, W = frames.shape[1:3]
    factor = min(1.0, LARGEST_SIDE / min(H, W))
    return max(1, round(H * factor)), max(1, round(W * factor))


def _sprite(caption: str, frames: Frames, chosen: npt.NDArray[np.int64], lossless: bool) -> Sprite:
    height, width = _size(frames)
    columns = max(1, min(len(chosen), 8000 // width))  # WebP is limited to 16383 pixels
    sheet = Image.new("RGB", (columns * width, -(-len(chosen) // columns) * height))
    for place, number in enumerate(chosen):
        frame = Image.fromarray(np.ascontiguousarray(frames[number]))
        if frame.size != (width, height):
            frame = frame.resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(frame, (place % columns * width, place // columns * height))
    uri = _uri(sheet, lossless)
    return Sprite(caption, uri, width, height, columns, [int(number) for number in chosen])


def strip_of(run: Path, split: str) -> str | None:
    """The strip of the run's evaluation, or else of its last validation, as a data URI; None if there is
    none.

    Raises:
        UserError: a damaged file.
    """
    path = run / "eval" / split / "strip.png"
    if not path.is_file():
        path = max((run / "samples").glob("epoch-*.png"), default=path)
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error})", "run `cvae validate` again") from None
    if picture.width > STRIP_WIDTH:
        picture.thumbnail((STRIP_WIDTH, picture.height), Image.Resampling.LANCZOS)
    return _uri(picture)


def stretch_strip(video: Video, first: int, last: int, columns: int = 8) -> str:
    """Frames ``first`` to ``last`` of truth, prediction and label, evenly spaced, as a data URI."""
    rows = {"truth": video.truth, "prediction": video.prediction, "label": video.condition}
    known = {name: frames for name, frames in rows.items() if frames is not None}
    last = min(last, *(len(frames) - 1 for frames in known.values()))
    chosen = np.unique(np.linspace(min(first, last), last, columns).round().astype(int))
    scale = max(1, 96 // video.prediction.shape[1])
    page = strip(
        [f[chosen] for f in known.values()], list(known), scale=scale, columns=[int(c) for c in chosen]
    )
    return _uri(Image.fromarray(page))


def ink(labels: Frames) -> npt.NDArray[np.float64]:
    """Share of each label image's pixels that differ from the clip's median label, ``[T]``."""
    median = np.median(labels, axis=0)
    differs = np.abs(labels - median).max(-1) > 32
    share: npt.NDArray[np.float64] = differs.mean((1, 2))
    return share


def _uri(picture: Image.Image, lossless: bool = False) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=90, method=4, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
