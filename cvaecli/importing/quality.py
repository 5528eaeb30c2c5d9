"""How good the labels of a data set are: what is missing, what repeats, what jumps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.clip import Clip
from ..data.dance.cuts import flat
from .keypoint_files import read
from .keypoints import Person, extent

JUMP = 0.25
"""A figure jumps if its points move, in the median, by more than this share of its size from frame to frame:
the detector took somebody or something else for it."""


@dataclass
class Row:
    """A frame's label.

    Attributes:
        frame: the frame's number in the data set.
        blank: whether nothing is drawn.
        repeated: whether the label is that of the frame before, and not blank.
        missing: the share of the figures' points that are missing; None without keypoints or figures.
        moved: how far the points moved since the frame before, in the median, as a share of the figure's
            size; the largest of all figures. None without keypoints, or without a figure in both.
    """

    split: str
    frame: int
    blank: bool
    repeated: bool
    missing: float | None = None
    moved: float | None = None

    @property
    def jump(self) -> bool:
        """Whether a figure jumps here."""
        return self.moved is not None and self.moved > JUMP


@dataclass
class Quality:
    """The labels of train and val.

    Attributes:
        rows: one for each frame, in order.
        lost: by the name of a point, the share of figures without it; empty without keypoints.
    """

    rows: list[Row] = field(default_factory=list)
    lost: dict[str, float] = field(default_factory=dict)


def measure(root: Path, splits: dict[str, Sequence[Clip]]) -> Quality:
    """Look at every label of train and val.

    Args:
        root: the data set; its keypoints.csv, if there is one, names the figures.
        splits: its clips.

    Raises:
        UserError: keypoints.csv is damaged.
    """
    table = root / "keypoints.csv"
    points = read(table) if table.is_file() else None
    found = Quality()
    seen: list[Person] = []
    for split in ("train", "val"):
        for clip in splits.get(split, ()):
            blanks = flat(np.asarray(clip.condition, np.uint8))
            for i, frame in enumerate(numbers(clip)):
                blank = bool(blanks[i])
                repeated = i > 0 and not blank and bool((clip.condition[i] == clip.condition[i - 1]).all())
                row = Row(split, frame, blank, repeated)
                if points is not None:
                    people = points.frames.get(frame, [])
                    seen += people
                    row.missing = _missing(people)
                    row.moved = _moved(points.frames.get(frame - 1, []), people) if i else None
                found.rows.append(row)
    if points is not None and seen:
        there = np.mean([person.points[:, 2] > 0 for person in seen], axis=0)
        found.lost = dict(zip(points.names, (1 - there).tolist(), strict=True))
    return found


def numbers(clip: Clip) -> range:
    """The frame numbers of a clip, from its name: ``train/0-99``."""
    first = int(clip.name.rpartition("/")[2].partition("-")[0])
    return range(first, first + clip.n_frames)


def summary(rows: Sequence[Row], split: str) -> list[str]:
    """A line of a table: split, frames, blank, repeated, points missing, jumps."""
    mine = [row for row in rows if row.split == split]
    missing = [row.missing for row in mine if row.missing is not None]
    known = any(row.moved is not None for row in mine)
    return [
        split,
        str(len(mine)),
        f"{np.mean([row.blank for row in mine]):.1%}",
        f"{np.mean([row.repeated for row in mine]):.1%}",
        f"{np.mean(missing):.1%}" if missing else "-",
        str(sum(row.jump for row in mine)) if known else "-",
    ]


COLUMNS = ["split", "frames", "blank", "repeated", "points missing", "jumps"]
"""The columns of `summary`."""


def _missing(people: Sequence[Person]) -> float | None:
    return float(np.mean([person.points[:, 2] == 0 for person in people])) if people else None


def _moved(before: Sequence[Person], people: Sequence[Person]) -> float | None:
    moves = []
    for old, new in itertools.product(before, people):
        both = (old.points[:, 2] > 0) & (new.points[:, 2] > 0)
        if old.name == new.name and both.any():
            steps = np.hypot(*(new.points[both, :2] - old.points[both, :2]).T)
            moves.append(float(np.median(steps)) / max(extent(old.points), extent(new.points), 1.0))
    return max(moves, default=None)
