"""The course's ``submission.csv``: one row a frame, every pixel a column."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .media import replacing


def write(frames: Iterable[npt.NDArray[np.uint8]], path: Path) -> int:
    """Write frames as ``id,0,1,...,C*H*W-1`` with a header; ``id`` runs on over all frames.

    Args:
        frames: uint8 ``[H, W, C]``, consumed one at a time: all frames of sequence 0 (the given first
            one included), then those of sequence 1, and so on.
        path: replaced in one move once all frames are there.

    Returns:
        The number of rows. Values are 0..255, a frame flattened in C, H, W order.
    """
    rows = 0
    with replacing(path) as part, part.open("w", encoding="ascii", newline="\n") as file:
        for frame in frames:
            values = np.moveaxis(frame, -1, 0).reshape(-1)
            if rows == 0:
                file.write(",".join(["id", *map(str, range(values.size))]) + "\n")
            file.write(f"{rows}," + ",".join(map(str, values.tolist())) + "\n")
            rows += 1
    return rows
