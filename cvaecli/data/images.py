"""Pictures on disk: list the numbered ones of a folder, decode and resize them.

Listing uses names, sizes and times and opens no picture, so that starting from the cache is quick. Decoding
trusts nothing about the file.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from .report import capped

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 50_000_000
"""A larger picture is refused: a small file can claim a size that fills the memory."""
MAX_BYTES = 256 * 1024 * 1024

_NUMBER = re.compile(r"(?:frame[_-]?)?([0-9]{1,18})", re.IGNORECASE)
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)
"""Exceptions that Pillow raises on damaged bytes; its decoders have no common one."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes a picture upright, by its EXIF orientation."""
_PNG = b"\x89PNG\r\n\x1a\n"


class ImageError(ValueError):
    """A picture that cannot be used. The text says why and what to do, without the file's name."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of the data set, from its directory entry.

    ``name`` is relative to the data root, with forward slashes; ``size`` in bytes.
    """

    name: str
    size: int
    mtime_ns: int


@dataclass
class Listing:
    """The numbered pictures of one folder in order, with faults and warnings."""

    files: dict[int, File] = field(default_factory=dict)
    unusable: set[int] = field(default_factory=set)  # numbers whose file has a fault
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def relative(path: Path, root: Path) -> str:
    """``path`` for messages: relative to the data root, with forward slashes."""
    return path.relative_to(root).as_posix()


def stays_inside(path: Path, root: Path) -> bool:
    """Whether ``path`` lies below ``root`` after following all links."""
    try:
        return path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return False


def link_fault(path: Path, root: Path) -> str | None:
    """The fault if ``path`` is a link out of ``root`` or to nothing, else None."""
    if path.is_symlink() and not stays_inside(path, root):
        return f"{relative(path, root)}: a link to nothing or out of the data folder; put the real file there"
    return None


def entries(folder: Path, root: Path, faults: list[str]) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden files. A folder that cannot be read is a
    fault."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                (entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
    except OSError as error:
        where = relative(folder, root) if folder != root else str(root)
        faults.append(f"{where}: the folder cannot be read ({error.strerror}); check its permissions")
        return []


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; not, if it is a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def list_pictures(folder: Path, root: Path) -> Listing:
    """Lists ``N.png`` and ``frameNNNNNN.png`` (also .jpg, .jpeg) of a folder by number."""
    listing = Listing()
    faults: list[str] = []
    odd: list[str] = []
    found: dict[int, File] = {}
    where = relative(folder, root)
    for entry in entries(folder, root, faults):
        name = f"{where}/{entry.name}"
        stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 - 50,000 Path objects are slow
        number = _NUMBER.fullmatch(stem)
        if number is None or suffix.lower() not in SUFFIXES:
            odd.append(f"{name}: ignored, the name is not a frame number (N.png or frameNNNNNN.png)")
            continue
        outcome = _stat(entry, name, root)
        if isinstance(outcome, str):
            faults.append(outcome)
            listing.unusable.add(int(number[1]))
        elif (twin := found.get(int(number[1]))) is not None:
            faults.append(f"{name}: {twin.name} is frame {int(number[1])} as well; keep one of them")
        else:
            found[int(number[1])] = outcome
    listing.files = dict(sorted(found.items()))
    listing.faults = capped(faults, where)
    listing.warnings = capped(odd, where)
    return listing


def _stat(entry: os.DirEntry[str], name: str, root: Path) -> File | str:
    """The file behind a directory entry, or the fault that makes it unusable."""
    if entry.is_symlink() and (fault := link_fault(Path(entry.path), root)):
        return fault
    try:
        info = entry.stat()
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror}); check its permissions"
    if not stat.S_ISREG(info.st_mode):
        return f"{name}: not a file; remove it"
    return File(name, info.st_size, info.st_mtime_ns)


def decode(path: Path) -> Image.Image:
    """Decodes one PNG or JPEG completely.

    Returns:
        An upright 8-bit RGB image, turned and mirrored according to its EXIF orientation. Grey and palette
        pictures are expanded, 16-bit ones are reduced to 8 bits, and transparent ones are drawn on white, the
        background of label images.

    Raises:
        ImageError: the file is empty, truncated, damaged, not a picture, too large or animated.
    """
    raw = _read(path)
    if raw.startswith(_PNG):
        _check_png(raw)
    try:
        image = Image.open(io.BytesIO(raw), formats=("PNG", "JPEG"))
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"too large ({image.width}x{image.height}); the limit is {MAX_PIXELS:,} pixels")
        if getattr(image, "n_frames", 1) > 1:
            raise ImageError("an animated picture; export each of its frames as one PNG")
        image.load()
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not a PNG or JPEG picture{_looks_like(raw)}; replace it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"too large; the limit is {MAX_PIXELS:,} pixels") from None
    except _DAMAGE as error:
        raise ImageError(f"the picture is damaged ({error}); copy it again") from None
    return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """The picture, turned and mirrored according to its EXIF orientation.

    Not `ImageOps.exif_transpose`: it also rewrites the EXIF data and fails if other entries are invalid.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return image  # no other program turns a picture with unreadable EXIF data either
    return image if turn is None else image.transpose(turn)


def decode_into(path: Path, out: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Decodes one picture into ``out`` (uint8 ``[3, H, W]``, RGB), resized if its size differs.

    Returns:
        (width, height) of the picture in the file, upright.

    Raises:
        ImageError: as `decode`.
    """
    image = decode(path)
    size = image.size
    height, width = out.shape[1:]
    if size != (width, height):
        # Pillow scales the bilinear filter to the reduction: an antialiased triangle filter, the same as
        # torchvision's Resize(antialias=True) in the course's code. Unlike Lanczos it does not overshoot
        # around the thin sticks of label images.
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    out[:] = np.asarray(image).transpose(2, 0, 1)
    return size


def decode_all(jobs: Sequence[tuple[Path, npt.NDArray[np.uint8]]]) -> Iterator[tuple[int, int] | ImageError]:
    """`decode_into` for many pictures at once. Yields each one's size or fault, in order.

    Threads suffice, because Pillow decodes without the interpreter's lock.
    """

    def work(job: tuple[Path, npt.NDArray[np.uint8]]) -> tuple[int, int] | ImageError:
        try:
            return decode_into(*job)
        except ImageError as error:
            return error

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(work, jobs)
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for thousands of pictures


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"larger than {MAX_BYTES // 1024**2} MB, too large for a frame; replace it")
        raw = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror}); check its permissions") from None
    if not raw:
        raise ImageError("the file is empty (0 bytes); copy it again")
    return raw


def _check_png(raw: bytes) -> None:
    """Checks every chunk: Pillow neither checks the checksums of pixels nor notices a missing end."""
    position, kind = len(_PNG), b""
    while kind != b"IEND":
        head = raw[position : position + 8]
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        end = position + 12 + length
        if len(head) < 8 or end > len(raw):
            raise ImageError("the file ends early (truncated PNG); copy it again")
        if zlib.crc32(raw[position + 4 : end - 4]) != int.from_bytes(raw[end - 4 : end], "big"):
            raise ImageError("the picture is damaged (a PNG checksum does not match); copy it again")
        position = end


def _looks_like(raw: bytes) -> str:
    head = raw[:64]
    if head.startswith((b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")):
        return " but of another format; convert it to PNG"
    return " but text" if all(byte in b"\t\n\r" or byte >= 32 for byte in head) else ""


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it at 255
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    if image.mode in ("1", "L", "P", "CMYK", "YCbCr"):
        return image.convert("RGB")
    raise ImageError(f"colour mode {image.mode} is not supported; save it as 8-bit RGB")


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices that cover ``range(count)`` in steps of ``size``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
