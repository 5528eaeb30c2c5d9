"""Read files of tensors written by ``torch.save``, without running code and without reserving memory that the
file only claims to need."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

MAX_BYTES = 64 * 1024**3
"""A larger file is refused."""
MAX_PICKLE = 64 * 1024**2
"""The list of tensors in a file may not be longer. That of 10,000 tensors has about 2 MB."""


class DamagedError(ValueError):
    """A file that cannot be read as plain tensors. The text says why, without the file's name."""


def read(path: Path, device: str = "cpu") -> Any:
    """The content of a file: containers, numbers, text and tensors. Every byte is checked.

    Args:
        device: ``cpu``, or ``meta`` for shapes without values.

    Raises:
        DamagedError: not such a file, damaged, too large, or it holds anything else.
        OSError: it cannot be opened.
    """
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; real problems raise
            return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damage can raise any error anywhere in the unpickler
        raise DamagedError(str(error)) from None


def _check_archive(path: Path) -> None:
    """Compare what the archive claims with the bytes that are there, and their checksums.

    ``torch.save`` stores its parts uncompressed, so they cannot be larger than the file. PyTorch would unpack
    compressed ones too, whatever their size, and does not notice a changed byte.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DamagedError(f"larger than {MAX_BYTES // 1024**3} GB")
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise DamagedError("a part is compressed, which torch.save never does")
            if sum(part.file_size for part in parts) > size:
                raise DamagedError("its parts claim to be larger than the file")
            if any(part.file_size > MAX_PICKLE for part in parts if part.filename.endswith(".pkl")):
                raise DamagedError(f"its list of tensors is longer than {MAX_PICKLE // 1024**2} MB")
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"not a file written by torch.save, or incomplete ({error})") from None
    if broken is not None:
        raise DamagedError(f"a checksum does not match (part {broken})")
