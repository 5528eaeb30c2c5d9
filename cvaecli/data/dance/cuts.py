"""Where clips begin and end: a ``clips.csv``, gaps in the numbering, and cuts found in the pictures.

There are two signs of a cut. In case of doubt neither reports one: a false cut in a validation clip changes
what is measured, while a missed cut only spoils a few training windows.

Jump
    The difference between two pictures is far larger than the differences around it, and the pictures
    before and after stay different (one odd picture is a flash, not a cut). The factor is high because
    differences jump within a clip too: where a camera dropped frames, a near person moves by up to six
    times the usual step.
Held label
    In some sets labelled by a pose detector, the first label of each clip equals the second one while the
    pictures move. If a clip continues the one before, there is no jump, and this is the only sign. It counts
    only if the folder's first two labels, which certainly begin a clip, are equal.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..images import chunks
from ..report import spans

JUMP_FACTOR = 8.0
"""A cut's step is more than this many times the median step around it (dropped frames: up to 6 times)."""
NEIGHBOURS = 12
"""Steps on either side over which the median is taken."""
STILL = 0.5
"""Smaller steps (mean over a picture, in grey levels of 255) count as this, because still scenes have
noise."""
BLANK = 8
"""A picture whose values span no more than this in every channel is of one colour. Blank labels repeat
whenever a detector fails."""
HELD_SHARE = 0.02
"""If labels repeat in more than this share of steps, people stand still and no clips begin."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Cuts:
    """Indices of the first frames of clips, without 0, found by a jump and by a held label."""

    jumps: list[int]
    held: list[int]


def find(frames: Bytes, labels: Bytes) -> Cuts:
    """Finds cuts in a folder's decoded pictures and labels (both uint8 ``[N, C, H, W]``)."""
    step = _steps(frames)  # step[i] leads from picture i to i + 1
    usual = np.array([_around(step, i) for i in range(len(step))])
    limit = JUMP_FACTOR * np.maximum(usual, STILL)
    over = np.concatenate([[np.inf], _steps(frames, 2), [np.inf]])[: len(step) + 1]  # from i - 1 to i + 1
    jumps = np.flatnonzero((step > limit) & (over[:-1] > limit) & (over[1:] > limit)) + 1
    held = (_steps(labels) == 0) & ~flat(labels[:-1]) & (step > 0.5 * usual) & (step > 0)
    starts = np.flatnonzero(held)
    if len(starts) == 0 or starts[0] != 0 or len(starts) > 1 + HELD_SHARE * len(held):
        return Cuts(jumps.tolist(), [])
    return Cuts(jumps.tolist(), starts[1:].tolist())


def _steps(values: Bytes, apart: int = 1) -> npt.NDArray[np.float64]:
    """Mean absolute difference of pictures ``apart`` frames apart, ``[N - apart]``, in grey levels."""
    steps = np.zeros(max(0, len(values) - apart))
    for part in chunks(len(steps), 128):
        near, far = values[part], values[part.start + apart : part.stop + apart]
        steps[part] = np.abs(far.astype(np.int16) - near).mean((1, 2, 3))
    return steps


def _around(step: npt.NDArray[np.float64], i: int) -> float:
    near = np.concatenate([step[max(0, i - NEIGHBOURS) : i], step[i + 1 : i + 1 + NEIGHBOURS]])
    return float(np.median(near)) if len(near) >= 4 else np.inf  # too short for a typical step


def flat(values: Bytes) -> npt.NDArray[np.bool_]:
    """Which pictures of ``[N, C, H, W]`` are of one colour, ``[N]``: blank labels, or frames of nothing."""
    found = np.zeros(len(values), dtype=bool)
    for part in chunks(len(values), 128):
        planes = values[part].reshape(*values[part].shape[:2], -1)
        found[part] = (planes.max(2).astype(np.int16) - planes.min(2) <= BLANK).all(1)
    return found


def white_share(values: Bytes) -> float:
    """Share of nearly white pixels in up to 64 pictures spread over ``values``."""
    sample = values[:: max(1, len(values) // 64)]
    return float((sample.min(axis=1) > 240).mean()) if len(sample) else 0.0


@dataclass
class Table:
    """A ``clips.csv``: the (first, last) file numbers of the clips of each split, with faults and
    warnings."""

    clips: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_table(path: Path, numbers: Mapping[str, Sequence[int]]) -> Table:
    """Reads and checks ``clips.csv`` (header ``split,first,last``; file numbers, inclusive).

    Args:
        path: the file.
        numbers: the sorted frame numbers of each split.
    """
    table = Table()
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except OSError as error:
        table.faults.append(f"{path.name}: cannot be read ({error.strerror}); check its permissions")
        return table
    except (UnicodeDecodeError, csv.Error):
        table.faults.append(
            f"{path.name}: not a text file with comma-separated values; write it again or remove it"
        )
        return table
    if not rows or [cell.strip().lower() for cell in rows[0]] != ["split", "first", "last"]:
        table.faults.append(f"{path.name} row 1: the header must be split,first,last")
        return table
    taken: dict[str, dict[int, int]] = {split: {} for split in numbers}
    for row, cells in enumerate(rows[1:], start=2):
        if any(cell.strip() for cell in cells):
            fault = _read_row(row, [cell.strip() for cell in cells], numbers, taken, table)
            table.faults += [f"{path.name} row {row}: {fault}"] if fault else []
    if not table.clips and not table.faults:
        table.faults.append(f"{path.name}: no rows; name the clips, or remove the file")
    for split in table.clips if not table.faults else ():
        table.clips[split].sort()
        left = [number for number in numbers[split] if number not in taken[split]]
        if left:
            table.warnings.append(f"{path.name}: {split} frames {spans(left)} are in no clip and left out")
    return table


def _read_row(
    row: int,
    cells: list[str],
    numbers: Mapping[str, Sequence[int]],
    taken: dict[str, dict[int, int]],
    table: Table,
) -> str:
    """Adds one row's clip to the table; returns the fault of the row, or an empty string."""
    if len(cells) != 3:
        return f"{len(cells)} values instead of 3 (split,first,last)"
    split = cells[0]
    if split not in ("train", "val"):
        return f"unknown split {split!r}; use train or val (test sequences have folders of their own)"
    if not all(cell.isascii() and cell.isdigit() and len(cell) <= 18 for cell in cells[1:]):
        return f"{cells[1]!r}, {cells[2]!r}: first and last must be whole numbers, 0 or more"
    if split not in numbers:
        return f"there are no {split} frames"
    first, last = int(cells[1]), int(cells[2])
    if first > last:
        return f"first ({first}) is greater than last ({last})"
    inside = [number for number in numbers[split] if first <= number <= last]
    step = _stride(numbers[split])
    if not inside or (inside[0], inside[-1]) != (first, last):
        have = f"{numbers[split][0]} to {numbers[split][-1]}"
        return f"{split} has no frame {first if first not in inside else last} (it has {have})"
    if len(inside) != (last - first) // step + 1:
        gap = next(a for a, b in itertools.pairwise(inside) if b - a != step)
        return f"{split} has no frame {gap + step} inside {first}-{last}; end the clip at {gap}"
    twice = next((number for number in inside if number in taken[split]), None)
    if twice is not None:
        return f"{split} frame {twice} is already in the clip of row {taken[split][twice]}"
    taken[split].update(dict.fromkeys(inside, row))
    table.clips.setdefault(split, []).append((first, last))
    return ""


def _stride(numbers: Sequence[int]) -> int:
    """The largest step with which all numbers can be counted: 2 for 0, 2, 4, 10, 12."""
    return math.gcd(*(b - a for a, b in itertools.pairwise(numbers))) or 1


def gaps(numbers: Sequence[int]) -> list[int]:
    """Indices before which the numbering skips; none if all its steps are equal."""
    step = _stride(numbers)
    return [i + 1 for i, (a, b) in enumerate(itertools.pairwise(numbers)) if b - a != step]
