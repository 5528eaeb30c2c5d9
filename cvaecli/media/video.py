"""Predicted video to files: GIF, MP4, PNG strip, NPZ, folder of PNGs.

Every writer takes an iterator of frames and holds a handful of them at a time, so that a million frames
cost no more memory than ten. A frame is a uint8 RGB array ``[H, W, 3]``.

Nothing is ever half there: files grow under a hidden name beside the target and are moved into place when
complete; if the frames stop with an error, the target is what it was before.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import CvaeError, UserError
from ..files import replacing
from .panels import Frame, enlarge, side_by_side, strip

__all__ = ["enlarge", "replacing", "save_png", "side_by_side", "strip", "to_uint8", "write"]

STRIP_FRAMES = 12  # frames in a .png strip
GIF_MAX_FPS = 50  # viewers slow frames of less than 20 ms down to 100 ms
_GIF_GROUP = 8  # frames that share a palette


@dataclass(frozen=True)
class _Options:
    fps: float
    scale: int
    total: int | None


def write(
    frames: Iterable[Frame], out: str | Path, *, fps: float = 25, scale: int = 1, total: int | None = None
) -> int:
    """Write frames to ``out``; its suffix decides the form.

    ======== =====================================================================================
    .gif     loops for ever; a palette of 256 colours for every 8 frames, no dithering. Delays are
             whole hundredths of a second: at 30 fps they alternate so that the total time is right
    .mp4     H.264, yuv420p; a row or column is repeated where the size is odd. Colour is stored at
             half resolution, so ``scale`` of 2 or more keeps small frames sharp
    .png     one strip of up to 12 evenly spaced frames with their numbers
    .npz     array ``frames``, uint8 ``[T, H, W, 3]``: the exact values
    folder   (no suffix, a trailing slash, or an existing folder) ``0.png``, ``1.png``, ...
    ======== =====================================================================================

    Args:
        frames: uint8 ``[H, W, 3]`` each, all of one size; consumed lazily.
        out: target; missing parent folders are made, an existing file is replaced at the end.
        fps: frames a second, > 0 (GIF: at most 50). NPZ and PNG have no time.
        scale: whole-number enlargement, nearest neighbour. NPZ ignores it: it holds data, not a picture.
        total: number of frames to come, if known: a .png strip then spans exactly first to last.

    Returns:
        The number of frames consumed.

    Raises:
        UserError: unknown suffix, a folder with content, a place that cannot be written, no frames.
        CvaeError: ffmpeg is missing or failed.
        ValueError: a frame of wrong type, shape or size.
    """
    if scale < 1:
        raise UserError(f"scale {scale}: must be a whole number of at least 1")
    if not fps > 0:
        raise UserError(f"fps {fps}: must be above 0")
    target = Path(out)
    writer = _writer_for(out)
    if writer is _write_gif and fps > GIF_MAX_FPS:
        raise UserError(f"{target}: a GIF shows at most {GIF_MAX_FPS} frames a second, not {fps}", "use .mp4")
    if writer is _write_folder and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder", "remove it or choose another --out")
    with replacing(target, folder=writer is _write_folder) as part:
        checked = _checked(frames)
        first = next(checked, None)
        if first is None:
            raise UserError(f"{target}: no frames to write")
        return writer(itertools.chain([first], checked), part, _Options(fps, scale, total))


def to_uint8(x: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """``round(255 * clip(x, 0, 1))`` as uint8, any shape. NaN becomes 0: a diverged pixel is black."""
    values = np.nan_to_num(np.asarray(x, dtype=np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    scaled: npt.NDArray[np.float32] = np.rint(255.0 * np.clip(values, 0.0, 1.0))
    return scaled.astype(np.uint8)


def save_png(path: str | Path, image: Frame) -> Path:
    """Write one picture ``[H, W, 3]`` uint8 as PNG: whole or not at all. Returns the path."""
    target = Path(path)
    with replacing(target) as part:
        Image.fromarray(image).save(part, format="PNG")
    return target


_Writer = Callable[[Iterator[Frame], Path, _Options], int]


def _writer_for(out: str | Path) -> _Writer:
    path = Path(out)
    # A Path drops its trailing slash, a str keeps it
    if not path.suffix or path.is_dir() or str(out).endswith(("/", os.sep)):
        return _write_folder
    try:
        return _WRITERS[path.suffix.lower()]
    except KeyError:
        allowed = ", ".join(_WRITERS)
        raise UserError(
            f"{path}: unknown suffix {path.suffix!r}", f"one of {allowed}, or a folder (end it with /)"
        ) from None


def _checked(frames: Iterable[Frame]) -> Iterator[Frame]:
    shape: tuple[int, ...] | None = None
    for i, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame {i}: expected uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
        if shape is not None and frame.shape != shape:
            raise ValueError(f"frame {i} is {list(frame.shape)}, the first was {list(shape)}")
        shape = frame.shape
        yield frame


# ---------------------------------------------------------------- GIF
#
# Pillow's own GIF writer keeps all frames until the end and merges equal neighbours. So the container is
# written here (it is a few bytes a frame) and Pillow only quantises and compresses.


def _write_gif(frames: Iterator[Frame], part: Path, options: _Options) -> int:
    count, centiseconds = 0, 0
    with part.open("wb") as file:
        while group := list(itertools.islice(frames, _GIF_GROUP)):
            H, W = (options.scale * side for side in group[0].shape[:2])
            if count == 0:
                file.write(b"GIF89a" + struct.pack("<HHBBB", W, H, 0x70, 0, 0))
                file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # loop for ever
            for picture in _quantise(group):
                count += 1
                # Rounding the end of each frame, not its length, keeps the total time right
                end = round(count * 100 / options.fps)
                file.write(b"\x21\xf9\x04\x04" + struct.pack("<H", end - centiseconds) + b"\x00\x00")
                centiseconds = end
                table, pixels = _compress(picture.resize((W, H), Image.Resampling.NEAREST))
                bits = (len(table) // 3).bit_length() - 2
                file.write(b"\x2c" + struct.pack("<HHHHB", 0, 0, W, H, 0x80 | bits) + table + pixels)
        file.write(b"\x3b")
    return count


def _quantise(group: Sequence[Frame]) -> Iterator[Image.Image]:
    """Palette pictures of a few frames that share one palette.

    Measured on 64x32 video (50 dB, 0.7 ms a frame): as good as a palette a frame in a third of the time, and
    still background keeps its colour. Maximum coverage errs by at most 3 of 255 where median cut, at the
    same mean error, is 17 off in rare colours: the thin sticks of a pose.
    """
    H, W = group[0].shape[:2]
    sheet = Image.fromarray(np.concatenate(group)).quantize(256, method=Image.Quantize.MAXCOVERAGE)
    for i in range(len(group)):
        yield sheet.crop((0, i * H, W, (i + 1) * H))


def _compress(picture: Image.Image) -> tuple[bytes, bytes]:
    """(colour table, LZW data) of a palette picture, taken out of the one-frame GIF that Pillow writes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="GIF", optimize=False, interlace=False)
    data = buffer.getvalue()
    start = 13  # behind signature and screen descriptor
    assert data[10] & 0x80, "Pillow writes a global colour table"
    pos = end = start + (3 << ((data[10] & 7) + 1))
    while data[pos] == 0x21:  # extensions: label, then sub-blocks up to an empty one
        pos += 2
        while data[pos]:
            pos += data[pos] + 1
        pos += 1
    assert data[pos] == 0x2C and not data[pos + 9] & 0x80, "then one picture without a table of its own"
    return data[start:end], data[pos + 10 : -1]


# ---------------------------------------------------------------- MP4


_H264 = [
    *("-crf", "12", "-preset", "medium", "-movflags", "+faststart", "-f", "mp4"),
    # The colour matrix is named in the file: otherwise players guess it from the size, and colours shift
    *("-vf", "scale=out_color_matrix=bt709:out_range=tv"),
    *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
]


def _write_mp4(frames: Iterator[Frame], part: Path, options: _Options) -> int:
    try:
        import imageio_ffmpeg  # type: ignore[import-untyped]

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise CvaeError(
            f"no ffmpeg for .mp4: {error}", "pip install 'imageio[ffmpeg]', or write a .gif"
        ) from error

    first = _even(enlarge(next(frames), options.scale))
    encoder = imageio_ffmpeg.write_frames(
        str(part),
        (first.shape[1], first.shape[0]),
        fps=options.fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        quality=None,
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=_H264,
    )
    count = 0
    encoder.send(None)
    try:
        for frame in itertools.chain([first], (_even(enlarge(frame, options.scale)) for frame in frames)):
            try:
                encoder.send(np.ascontiguousarray(frame))
            except OSError as error:
                raise CvaeError(f"ffmpeg failed at frame {count}: {str(error).splitlines()[0]}") from error
            count += 1
    finally:
        encoder.close()
    # A failure while closing the file is not told otherwise; counting does not decode
    try:
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(part))
    except RuntimeError:
        written = 0
    if written != count:
        raise CvaeError(
            f"ffmpeg stored {written} of {count} frames", "is there space on the disk? or write a .gif"
        )
    return count


def _even(frame: Frame) -> Frame:
    """Repeat the last row or column where their number is odd: yuv420p halves both."""
    H, W = frame.shape[:2]
    return np.pad(frame, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge") if H % 2 or W % 2 else frame


# ---------------------------------------------------------------- PNG, NPZ, folder


def _write_strip(frames: Iterator[Frame], part: Path, options: _Options) -> int:
    kept, numbers, count = _evenly_spaced(frames, STRIP_FRAMES, options.total)
    image = strip([np.stack(kept)], [""], scale=options.scale, columns=numbers)
    Image.fromarray(image).save(part, format="PNG")
    return count


def _evenly_spaced(frames: Iterator[Frame], k: int, total: int | None) -> tuple[list[Frame], list[int], int]:
    """Up to ``k`` evenly spaced frames, their numbers, and the number of all frames.

    With an unknown total every ``stride``-th frame is kept and the stride doubles when there are too many:
    memory stays constant, but there may be as few as k / 2 frames and the last one need not be among them.
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


def _write_npz(frames: Iterator[Frame], part: Path, options: _Options) -> int:
    # The array's header holds the number of frames, so the pixels wait in a nameless file until it is known
    with tempfile.TemporaryFile(dir=part.parent) as pixels:
        count = 0
        shape: tuple[int, ...] = ()
        for frame in frames:
            pixels.write(np.ascontiguousarray(frame).data)
            shape = frame.shape
            count += 1
        pixels.seek(0)
        with (
            zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("frames.npy", "w", force_zip64=True) as member,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(member, header)
            shutil.copyfileobj(pixels, member)
    return count


def _write_folder(frames: Iterator[Frame], part: Path, options: _Options) -> int:
    count = 0
    for frame in frames:
        Image.fromarray(enlarge(frame, options.scale)).save(part / f"{count}.png")
        count += 1
    return count


_WRITERS: dict[str, _Writer] = {
    ".gif": _write_gif,
    ".mp4": _write_mp4,
    ".png": _write_strip,
    ".npz": _write_npz,
}
