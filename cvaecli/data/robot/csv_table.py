"""The tables of numbers in the folder layout: a CSV row per frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..report import capped
from .condition import Floats

MAX_BYTES = 64 * 1024 * 1024


@dataclass
class Table:
    """One CSV file.

    Attributes:
        values: float32 ``[rows, columns]``; empty if there are faults.
        names: names of the columns: from the first row, or the usual ones if the first row holds numbers.
        faults: one line each, with the file's name and the row, counted from 1 including the row of names.
    """

    values: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    names: tuple[str, ...] = ()
    faults: list[str] = field(default_factory=list)


def read(path: Path, name: str, columns: tuple[str, ...], frames: int) -> Table:
    """Reads ``frames`` rows of finite numbers, separated by commas.

    Without a first row of names there must be as many columns as in ``columns``, because a lost column is
    more likely than another robot. With names there may be any number.

    Args:
        path: the file.
        name: the file's name in messages.
        columns: names of the usual columns.
        frames: required number of rows.
    """
    table = Table(names=columns)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES // 1024**2} MB, too large for a trajectory; replace it")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        table.faults.append(f"{name}: cannot be read ({error.strerror}); check its permissions")
        return table
    except UnicodeDecodeError:
        table.faults.append(f"{name}: not a text file; write it again as CSV")
        return table
    except ValueError as error:
        table.faults.append(f"{name}: {error}")
        return table
    lines = text.rstrip().splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    if not rows:
        table.faults.append(f"{name}: the file is empty; it needs {frames} rows, one per frame")
        return table
    named = all(_is_name(cell) for cell in rows[0])
    if named:
        table.names = tuple(rows[0])
    body = rows[named:]
    table.faults = _column_faults(name, body, len(table.names), columns, named)
    if not table.faults:
        values = np.array([[_number(cell) for cell in row] for row in body], np.float64)
        table.faults = _cell_faults(name, body, values, table.names, named)
        table.values = values.astype(np.float32) if not table.faults else table.values
    if len(body) != frames:
        many = "remove the extra ones" if len(body) > frames else "add the missing ones"
        table.faults.append(f"{name}: {len(body)} rows for {frames} frames; {many}")
    return table


def _column_faults(
    name: str, body: list[list[str]], wanted: int, columns: tuple[str, ...], named: bool
) -> list[str]:
    counts = [len(row) if row != [""] else 0 for row in body]
    wrong = [index for index, count in enumerate(counts) if count != wanted]
    if not wrong:
        return []
    if len(set(counts)) == 1 and not named and counts[0]:
        return [
            f"{name}: {counts[0]} columns, {wanted} are needed ({', '.join(columns)}); "
            "add the missing ones, or, for another robot, name the columns in a first row"
        ]
    lines = [
        f"{name} row {index + 1 + named}: {_columns(counts[index])}, {wanted} are needed; correct the row"
        for index in wrong
    ]
    return capped(lines, name)


def _columns(count: int) -> str:
    return "empty" if count == 0 else f"{count} column{'s' * (count != 1)}"


def _cell_faults(
    name: str, body: list[list[str]], values: np.ndarray, names: tuple[str, ...], named: bool
) -> list[str]:
    lines = []
    limit = float(np.finfo(np.float32).max)
    for row, column in zip(*np.nonzero(~(np.abs(values) <= limit)), strict=True):
        cell = body[row][column]
        what = "empty" if not cell else f"{cell[:20]!r} is not a finite number"
        lines.append(
            f"{name} row {row + 1 + named}, column {column + 1} ({names[column]}): {what}; correct it"
        )
    return capped(lines, name)


def _number(cell: str) -> float:
    """The cell's number; NaN if it has none."""
    try:
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan


def _is_name(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return bool(cell)
    return False
