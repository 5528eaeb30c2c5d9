"""A run's CSV files as columns of numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import UserError

Array = npt.NDArray[np.float64]


class AbsentError(UserError):
    """The run does not have this data, or not yet. No file is damaged."""


def read_table(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), *, text: str = "", remedy: str = ""
) -> dict[str, Array]:
    """Read the named columns of a CSV file; others are ignored, empty cells and infinities become NaN.

    A damaged last line, or one without its newline, was cut off by a crash or is still being written. It is
    left out.

    Args:
        path: the file.
        required: numeric columns that must exist.
        optional: numeric columns; all NaN if the file does not have them.
        text: one column of names, returned as the index of each distinct name.
        remedy: the hint if the file does not exist or is empty.

    Returns:
        float64 ``[rows]`` for each column.

    Raises:
        AbsentError: no file, or no complete line.
        UserError: a column is missing, or a line before the last is damaged.
    """
    if not path.is_file():
        raise AbsentError(f"there is no {path}", remedy)
    content = path.read_text(encoding="utf-8-sig", errors="replace")
    reader = csv.reader(io.StringIO(content, newline=""))
    try:
        header = next(reader, [])
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as fault:  # a cell of more than 131,072 characters
        raise UserError(f"{path}, line {reader.line_num}: {fault}", "correct or remove the line") from None
    if lines and not content.endswith("\n"):
        lines.pop()
    named = [text] if text else []
    if lines and (missing := [name for name in (*required, *named) if name not in header]):
        raise UserError(f"{path} has no column {missing[0]!r}", f"it has {', '.join(header)}")
    present = [name for name in (*required, *optional) if name in header]
    names: dict[str, int] = {}
    rows: list[list[float]] = []
    for number, row in lines:
        try:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} fields where the header has {len(header)}")
            cells = dict(zip(header, row, strict=True))
            values = [float(cells[name]) if cells[name].strip() else np.nan for name in present]
            rows.append(values + [names.setdefault(cells[name], len(names)) for name in named])
        except ValueError as fault:
            if number == lines[-1][0]:
                break
            raise UserError(f"{path}, line {number}: {fault}", "correct or remove the line") from None
    if not rows:
        raise AbsentError(f"{path} holds no complete line", remedy)
    data = np.array(rows, dtype=np.float64)
    data[~np.isfinite(data)] = np.nan
    table = {name: np.full(len(rows), np.nan) for name in optional}
    return table | dict(zip([*present, *named], data.T, strict=True))
