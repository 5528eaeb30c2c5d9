"""What both robot layouts share: how numbers drive frames, the borrowed validation split, the summary."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..cache import Rows, Writer
from ..images import link_fault, relative
from ..report import Report, capped

Floats = npt.NDArray[np.float32]
Sizes = Counter[tuple[int, int]]

ACTION = ("dx", "dy", "dz", "gripper")
POSITION = ("x", "y", "z")
FOLDERS = {"train": ("train",), "val": ("validate", "val"), "test": ("test",)}
"""The folders that may hold a split."""
LENT = 0.05
"""Share of the training trajectories that serve as val where there is no such split."""
SIZES_NAMED = 3


class Trajectory(NamedTuple):
    """Rows ``start`` to ``stop`` of the split whose folder it lies in.

    The arrays that hold them are named ``ARRAY-frames`` and ``ARRAY-condition``, and begin with the split's
    row ``origin``; ``array`` is the split's name where that is one array.
    """

    split: str
    name: str
    start: int
    stop: int
    array: str
    origin: int = 0


def driving(actions: Floats, positions: Floats) -> Floats:
    """The condition ``[T, A + P]`` of ``T`` frames from the actions ``[T, A]`` and positions ``[T, P]``.

    Row t holds the action and the position of step t - 1, for these drive the step that arrives at
    frame t. Row 0 is zeros: nothing is known of what led to frame 0, which is always a given one. The
    last action leads out of the clip and is not used.
    """
    table = np.concatenate([actions, positions], axis=1, dtype=np.float32)
    return np.concatenate([np.zeros_like(table[:1]), table[:-1]])


def present(base: Path) -> dict[str, list[Path]]:
    """The folders that are there, by split."""
    found = {split: [base / name for name in names] for split, names in FOLDERS.items()}
    # os.path, because Path raises where a folder above may not be entered.
    there = {split: [path for path in paths if os.path.isdir(path)] for split, paths in found.items()}  # noqa: PTH112
    return {split: paths for split, paths in there.items() if paths}


def closed(folder: Path, root: Path) -> str | None:
    """A line if a folder below ``root`` cannot be used: a link out of it, or not ours to read."""
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
    names: Sequence[str],
    sizes: Mapping[str, Sizes],
    aspect: float,
) -> None:
    """Names the clips in ``writer``, whose arrays are filled, and tells what they hold.

    Args:
        writer: has the arrays that the trajectories name.
        found: gets warnings and the summary.
        trajectories: all of them, in order.
        numbers: by split, the actions and positions as they are in the files, ``[frames, A + P]``.
        names: of the columns, ``A + P`` of them.
        sizes: by split, how often each (width, height) occurs in the files.
        aspect: width / height of the frames that are wanted.
    """
    present = {trajectory.split for trajectory in trajectories}
    train = [trajectory for trajectory in trajectories if trajectory.split == "train"]
    lent = set()
    if "val" not in present and len(train) > 1:
        count = max(1, round(LENT * len(train)))
        lent = set(train[-count:])
        found.warnings.append(
            f"val: no such split; the last {count} of {len(train)} train trajectories serve instead "
            f"({train[-count].name} on) and are not trained on"
        )
    elif "val" not in present and train:
        found.warnings.append("val: no such split, and train has no trajectory to spare; nothing to validate")
    clips: dict[str, list[Trajectory]] = {split: [] for split in FOLDERS}
    for item in trajectories:
        clips["val" if item in lent else item.split].append(item)
    for split, items in clips.items():
        for item in items:
            span = item.start - item.origin, item.stop - item.origin
            rows = [Rows(f"{item.array}-{part}", *span) for part in ("frames", "condition")]
            writer.clip(split, item.name, rows[0], rows[1])
        if items:
            home = items[0].split
            found.warnings += _size_warnings(split, sizes[home], aspect) if home == split else []
            found.summary += _summary(split, items, numbers[home], names, sizes[home])


def _size_warnings(split: str, sizes: Sizes, aspect: float) -> list[str]:
    lines = []
    if len(sizes) > 1:
        texts = [f"{width}x{height}: {count}" for (width, height), count in sizes.most_common(SIZES_NAMED)]
        dots = ", ..." if len(sizes) > SIZES_NAMED else ""
        lines.append(f"{split}: frames of different sizes ({', '.join(texts)}{dots}); all are resized")
    (width, height), _ = sizes.most_common(1)[0]
    if abs(math.log(width / height / aspect)) > 0.05:
        lines.append(
            f"{split}: frames are {width}x{height} (width x height); "
            "data.width and data.height have other proportions, so they are stretched"
        )
    return lines


def _summary(
    split: str, items: Sequence[Trajectory], numbers: Floats, names: Sequence[str], sizes: Sizes
) -> list[str]:
    """A line that counts, and one with the range of every column."""
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


def column_names(actions: int, positions: int) -> tuple[str, ...]:
    """Names for columns that have none: BAIR's where the number fits."""
    first = ACTION if actions == len(ACTION) else tuple(f"action {i}" for i in range(actions))
    second = POSITION if positions == len(POSITION) else tuple(f"position {i}" for i in range(positions))
    return first + second


def at_most(lines: list[str], where: Path) -> list[str]:
    """`capped` for the lines of a whole set."""
    return capped(lines, str(where))
