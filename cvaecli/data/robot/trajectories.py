"""Trajectories of both robot layouts: the folders of a split, the clips they become, the summary."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..cache import Rows, Writer
from ..images import link_fault, relative
from ..kinds import parts
from ..report import Report, Sizes, size_warnings
from .condition import Floats

FOLDERS = {"train": ("train",), "val": ("validate", "val"), "test": ("test",)}
"""The folders that may hold a split."""
VAL_SHARE = 0.05
"""Share of the training trajectories that serve as val if there is no val split."""


class Trajectory(NamedTuple):
    """The place of a trajectory: rows ``start`` to ``stop`` (exclusive) of the folder's split.

    The rows are in the arrays ``ARRAY-frames`` and ``ARRAY-condition``, whose first row is the split's row
    ``origin``. If a split is one array, ``array`` is the split's name and ``origin`` is 0.
    """

    split: str
    name: str
    start: int
    stop: int
    array: str
    origin: int = 0


def present(base: Path) -> dict[str, list[Path]]:
    """The folders that exist, by split."""
    found = {split: [base / name for name in names] for split, names in FOLDERS.items()}
    # os.path, because Path raises if a parent folder may not be entered.
    there = {split: [path for path in paths if os.path.isdir(path)] for split, paths in found.items()}  # noqa: PTH112
    return {split: paths for split, paths in there.items() if paths}


def closed(folder: Path, root: Path) -> str | None:
    """The fault of a folder below ``root`` that cannot be used (a link out of it, or no permission), else
    None."""
    for path in (folder.parent, folder):
        if path.is_relative_to(root) and path != root and (fault := link_fault(path, root)):
            return fault
    if not os.access(folder, os.R_OK | os.X_OK):
        return f"{relative(folder, root)}: the folder cannot be opened; check its permissions"
    return None


def finish(
    writer: Writer,
    found: Report,
    trajectories: Sequence[Trajectory],
    numbers: Mapping[str, Floats],
    columns: Mapping[str, Sequence[str]],
    sizes: Mapping[str, Sizes],
    height: int,
    width: int,
) -> None:
    """Names the clips in ``writer``, whose arrays are filled, and adds warnings and the summary to ``found``.

    Args:
        writer: holds the arrays that the trajectories name.
        found: the report to add to.
        trajectories: all trajectories, in order.
        numbers: by split, the actions and positions as in the files, ``[frames, A + P]``.
        columns: names of the columns of ``actions`` (A) and ``positions`` (P).
        sizes: by split, the number of pictures of each (width, height) in the files.
        height, width: frame size after resizing, in pixels.
    """
    writer.condition_parts = parts(columns)
    names = [name for part in columns.values() for name in part]
    present = {trajectory.split for trajectory in trajectories}
    train = [trajectory for trajectory in trajectories if trajectory.split == "train"]
    val: set[Trajectory] = set()
    if "val" not in present and len(train) > 1:
        count = max(1, round(VAL_SHARE * len(train)))
        val = set(train[-count:])
        found.warnings.append(
            f"val: there is no val split; the last {count} of {len(train)} train trajectories "
            f"(from {train[-count].name} on) are used for validation and not for training"
        )
    elif "val" not in present and train:
        found.warnings.append(
            "val: there is no val split and train has only one trajectory, so nothing can be validated"
        )
    if train:
        table = numbers["train"]
        found.warnings += [
            f"train: {name} is {low:g} in every step; a number that never changes tells the model nothing"
            for name, low, high in zip(names, table.min(0), table.max(0), strict=True)
            if low == high
        ]
    found.warnings += size_warnings({split: seen for split, seen in sizes.items() if seen}, height, width)
    clips: dict[str, list[Trajectory]] = {split: [] for split in FOLDERS}
    for item in trajectories:
        clips["val" if item in val else item.split].append(item)
    for split, items in clips.items():
        for item in items:
            span = item.start - item.origin, item.stop - item.origin
            rows = [Rows(f"{item.array}-{part}", *span) for part in ("frames", "condition")]
            writer.clip(split, item.name, rows[0], rows[1])
        if items:
            home = items[0].split
            found.summary += _summary(split, items, numbers[home], names, sizes[home])


def _summary(
    split: str, items: Sequence[Trajectory], numbers: Floats, names: Sequence[str], sizes: Sizes
) -> list[str]:
    """Two lines: the numbers of trajectories and frames, and the range of every column."""
    lengths = [item.stop - item.start for item in items]
    each = f"{min(lengths)}" if min(lengths) == max(lengths) else f"{min(lengths)} to {max(lengths)}"
    (width, height), _ = sizes.most_common(1)[0]
    table = numbers[items[0].start : items[-1].stop]
    ranges = [
        f"{name} {low:.4g}..{high:.4g}"
        for name, low, high in zip(names, table.min(0), table.max(0), strict=True)
    ]
    count = f"{len(items)} trajector{'y' if len(items) == 1 else 'ies'}"
    return [
        f"{split}: {count}, {sum(lengths)} frames ({each} each), {width}x{height}",
        f"{split}: ranges of the condition: {', '.join(ranges)}",
    ]
