"""Write files completely or not at all.

A file is written under a hidden name next to its target, flushed to the disk, and then moved into place.
A crash or an error leaves the old file or the new one, never half a file. All files of a run are written
through this module, except ``steps.csv``, which is appended to line by line.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError

SUFFIX = ".part"
"""End of the hidden names. It identifies the files that a killed process left behind."""


@contextlib.contextmanager
def replacing(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield an empty hidden file (or folder) next to ``target`` to fill; it replaces ``target`` at the end.

    If the block raises, the hidden file is removed and ``target`` does not change. Missing parent folders are
    created. The content is flushed to the disk before the move, and the move itself after it.

    Args:
        target: file to write, or with ``folder`` a folder that does not exist or is empty.

    Raises:
        UserError: the target cannot be written. Raised before the block runs.
        OSError: the content cannot be stored, for example because the disk is full.
    """
    if target.is_dir() and not folder:
        raise UserError(f"cannot write {target}: it is a folder")
    part = target.parent / f".{target.name}.{secrets.token_hex(4)}{SUFFIX}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            part.mkdir()
        else:
            part.touch()
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error
    try:
        yield part
        if folder:
            for inner in part.rglob("*"):
                _flush_folder(inner) if inner.is_dir() else flush(inner)
            _flush_folder(part)
        else:
            flush(part)
        if folder and target.exists():
            target.rmdir()  # only succeeds if it is empty; os.replace onto a folder fails on Windows
        part.replace(target)
    except BaseException:  # an interrupt must not leave the hidden file behind either
        if folder:
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file of these bytes. Raises what `replacing` raises."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file without changing line ends. Raises what `replacing` raises."""
    write_bytes(path, text.encode("utf-8"))


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with these columns; other keys of the rows are left out. Raises what `replacing`
    raises."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(csv_cells(row) for row in rows)
    write_text(path, buffer.getvalue())


def csv_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's cells: floats with 8 significant digits, None as an empty cell."""
    return {
        key: "" if value is None else f"{value:.8g}" if isinstance(value, float) else value
        for key, value in row.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file is damaged.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}", "restore or delete the file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object", "restore or delete the file")
    return content


def remove_leftovers(folder: Path) -> None:
    """Remove the hidden files that a killed process left in a folder."""
    for leftover in folder.glob(f".*{SUFFIX}"):
        if leftover.is_file():
            leftover.unlink()


def flush(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, on systems that support it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
