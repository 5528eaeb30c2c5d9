"""Robot arms: trajectories of frames, actions and end-effector positions.

Two layouts, told apart by what is there: folders of pictures and tables (`folders`), and BAIR's TFRecord
files (`records`). In both the condition of a clip is float32 ``[T, A + P]``, action then position, in the
units of the files: ``condition[t]`` is that of step t - 1, and row 0 is zeros (see `common.driving`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..clip import Clip
from .common import ACTION, FOLDERS, POSITION, Floats, present
from .folders import Folders
from .records import SUFFIXES, Records

__all__ = ["Folders", "Records", "condition_parts", "condition_stats", "is_robot", "open_robot"]

INNER = "softmotion30_44k"
"""The folder that BAIR's archive unpacks to."""
STD_FLOOR = 1e-6
"""Standard deviations below this share of a column's largest value are rounding: the column is constant."""


def open_robot(root: Path) -> Folders | Records:
    """Lists a robot data set, whichever layout it has."""
    base = root / INNER if (root / INNER).is_dir() and not present(root) else root
    there = [path for paths in present(base).values() for path in paths]
    if any(_holds_records(path) for path in there or [base]):
        return Records(root, base)
    made = Folders(root, base)
    if not there:
        made.report.faults.append(_nothing(root))
    return made


def is_robot(root: Path) -> bool:
    """Whether a robot layout is clearly meant: there are record files, or tables beside the pictures."""
    found = open_robot(root)
    if isinstance(found, Records):
        return bool(found.files)
    return any(one.tables for one in found.folders) or any(map(_holds_records, root.glob("*/")))


def condition_parts(columns: int) -> dict[str, slice]:
    """Which columns of a condition vector are actions, which positions; empty where they are not BAIR's."""
    A, P = len(ACTION), len(POSITION)
    return {"actions": slice(0, A), "positions": slice(A, A + P)} if columns == A + P else {}


def condition_stats(clips: Sequence[Clip]) -> tuple[Floats, Floats]:
    """Mean and standard deviation ``[D]`` of the conditions of ``clips``, for normalisation.

    Row 0 of every clip is left out: it is padding. A column that never changes gets the standard
    deviation 1, so that dividing by it is safe and a small change elsewhere stays small.

    Raises:
        ValueError: no clip has a condition beside row 0, or they are no vectors.
    """
    tables = [clip.condition[1:] for clip in clips if clip.n_steps > 1]
    if not tables or any(table.ndim != 2 for table in tables):
        raise ValueError("condition_stats needs clips with condition vectors")
    rows = np.concatenate(tables).astype(np.float64)
    std = rows.std(0)
    constant = std <= STD_FLOOR * np.abs(rows).max(0)
    return rows.mean(0).astype(np.float32), np.where(constant, 1, std).astype(np.float32)


def _holds_records(folder: Path) -> bool:
    try:
        with os.scandir(folder) as found:
            return any(entry.name.endswith(SUFFIXES) and entry.is_file() for entry in found)
    except OSError:
        return False


def _nothing(root: Path) -> str:
    """The line for a root without any split; points to a likelier root nearby."""
    try:
        inner = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        return f"{root}: the folder cannot be read ({error.strerror}); check its permissions"
    names = {name for names in FOLDERS.values() for name in names}
    like = [path for path in inner if present(path) or _holds_records(path)]
    if len(like) == 1:
        return f"{root}: no train, validate or test folder here; did you mean {like[0]}?"
    if root.name in names:
        return f"{root}: this is one split of a data set; did you mean its parent, {root.parent}?"
    other = [path.name for path in inner if path.name.lower() in names]
    if other:
        return f"{root}: rename {', '.join(other)} to lower case (train, validate, test)"
    return (
        f"{root}: no train, validate or test folder; trajectories go into train/traj_0/0/0.png, ... with "
        "actions.csv and endeffector_positions.csv, or train/*.tfrecords"
    )
