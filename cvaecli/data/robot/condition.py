"""Robot conditions: their columns, the frame that each row drives, their statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ..clip import Clip
from ..kinds import KINDS

Floats = npt.NDArray[np.float32]

COLUMNS = KINDS["robot"].columns
"""The names of BAIR's actions and positions."""
STD_FLOOR = 1e-6
"""A column whose standard deviation is below this share of its largest value is constant up to rounding."""


def column_names(actions: int, positions: int) -> dict[str, tuple[str, ...]]:
    """Names for the columns of files without names: BAIR's if their number fits, else numbered ones."""
    counts = {"actions": actions, "positions": positions}
    return {
        part: usual
        if counts[part] == len(usual)
        else tuple(f"{part.removesuffix('s')} {i}" for i in range(counts[part]))
        for part, usual in COLUMNS.items()
    }


def shifted_condition(actions: Floats, positions: Floats) -> Floats:
    """The condition ``[T, A + P]`` of ``T`` frames from the actions ``[T, A]`` and positions ``[T, P]``.

    Row t holds the action and the position of step t - 1, which drive the step to frame t. Row 0 is zeros:
    nothing is known about the step to frame 0, which is always a given frame. The last action leads out of
    the clip and is not used.
    """
    table = np.concatenate([actions, positions], axis=1, dtype=np.float32)
    return np.concatenate([np.zeros_like(table[:1]), table[:-1]])


def condition_stats(clips: Sequence[Clip], lengths: Sequence[int] | None = None) -> tuple[Floats, Floats]:
    """Mean and standard deviation ``[D]`` of the conditions of ``clips``, for normalisation.

    Row 0 of every clip is left out: it is padding. A column that never changes gets the standard
    deviation 1, so that dividing by it is safe and a small change elsewhere stays small.

    Args:
        clips: clips with condition vectors.
        lengths: number of frames used of each clip, from its start (see `first_frames`); None: all.

    Raises:
        ValueError: no clip has a condition after row 0, or conditions are not vectors.
        UserError: no clip has two frames that are used.
    """
    tables = [clip.condition[1:] for clip in clips if clip.n_steps > 1]
    if not tables or any(table.ndim != 2 for table in tables):
        raise ValueError("condition_stats needs clips with condition vectors")
    if lengths is not None:
        tables = [clip.condition[1:n] for clip, n in zip(clips, lengths, strict=True)]
    rows = np.concatenate(tables).astype(np.float64)
    if not len(rows):
        raise UserError("data.partial: leaves fewer than two frames of every training clip", "raise it")
    std = rows.std(0)
    constant = std <= STD_FLOOR * np.abs(rows).max(0)
    return rows.mean(0).astype(np.float32), np.where(constant, 1, std).astype(np.float32)
