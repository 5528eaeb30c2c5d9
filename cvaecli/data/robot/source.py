"""A robot data set in either of the two layouts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from ..cache import Writer
from ..images import File
from ..kinds import Progress
from ..report import Report
from .folders import Folders
from .records import SUFFIXES, Records
from .trajectories import FOLDERS, present

INNER = "softmotion30_44k"
"""The folder that BAIR's archive unpacks to."""


class Robot:
    """A robot data set; `Source` describes its attributes and methods.

    Attributes:
        layout: the reader of the files' layout.
    """

    val_from_train: ClassVar[bool] = True
    remedies: ClassVar[dict[str, str]] = {
        "train": "training needs train/traj_*/N/0.png, ... with tables, or train/*.tfrecords; add them",
        "val": "validation needs validate/traj_*/N/0.png, ... with tables; add them",
        "test": "add test/traj_*/N/0.png, ... with tables, or test/*.tfrecords, or use another split",
    }

    def __init__(self, root: Path) -> None:
        base = root / INNER if (root / INNER).is_dir() and not present(root) else root
        there = [path for paths in present(base).values() for path in paths]
        self.layout: Folders | Records
        if any(_holds_records(path) for path in there or [base]):
            self.layout = Records(root, base)
        else:
            self.layout = Folders(root, base)
            if not there:
                self.layout.report.faults.append(_nothing(root))
        self.files: list[File] = self.layout.files

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether there are record files, or pictures with tables."""
        layout = cls(root).layout
        if isinstance(layout, Records):
            return bool(layout.files)
        return any(folder.tables for folder in layout.folders) or any(
            _holds_records(path) for path in root.glob("*/")
        )

    @property
    def report(self) -> Report:
        """Faults and warnings of the listing alone."""
        return self.layout.report

    @property
    def splits(self) -> set[str]:
        """The splits whose folder exists, usable or not."""
        return self.layout.splits

    def nbytes(self, height: int, width: int) -> int:
        """Size in bytes of the data that are not decoded yet."""
        return self.layout.nbytes(height, width)

    def convert(self, writer: Writer, cut: str, height: int, width: int, progress: Progress | None) -> Report:
        """See `Source.convert`. ``cut`` is not used, because each trajectory is a clip."""
        return self.layout.convert(writer, height, width, progress)


def _holds_records(folder: Path) -> bool:
    try:
        with os.scandir(folder) as found:
            return any(entry.name.endswith(SUFFIXES) and entry.is_file() for entry in found)
    except OSError:
        return False


def _nothing(root: Path) -> str:
    """The fault of a root without any split; suggests a likelier root nearby."""
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
