"""The course's ``submission.csv``: one row a frame, every pixel a column."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..files import replacing

_NUMBERS = [str(value) for value in range(256)]


class Submission:
    """A submission in the making; see ``opened``."""

    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self._file, self._folder = file, folder

    @contextlib.contextmanager
    def sequences(self, count: int) -> Iterator[Sequence[BinaryIO]]:
        """The next ``count`` sequences, written in any order: a file for the rows of each.

        Rows wait in nameless files, and are added in the sequences' order when the block ends.
        """
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(tempfile.TemporaryFile(dir=self._folder)) for _ in range(count)]
            yield waiting
            for rows in waiting:
                rows.seek(0)
                shutil.copyfileobj(rows, self._file)


@contextlib.contextmanager
def opened(path: Path, size: tuple[int, int]) -> Iterator[Submission]:
    """A new submission: ``path`` is replaced in one move when the block ends, or not at all if it raises.

    Args:
        size: (H, W) of the frames.

    Raises:
        UserError: ``path`` cannot be written.
    """
    with replacing(path) as part, part.open("wb") as file:
        file.write((",".join(["id", *map(str, range(3 * size[0] * size[1]))]) + "\n").encode())
        yield Submission(file, part.parent)


def write_rows(frames: Iterable[npt.NDArray[np.uint8]], file: BinaryIO, first: int = 0) -> int:
    """Write frames as ``id,0,1,...,C*H*W-1``.

    Args:
        frames: uint8 ``[H, W, C]``, consumed one at a time.
        first: ``id`` of the first frame; it runs on over all sequences.

    Returns:
        The number of rows. Values are 0..255, a frame flattened in C, H, W order.
    """
    rows = 0
    for rows, frame in enumerate(frames, start=1):
        values = np.moveaxis(frame, -1, 0).reshape(-1).tolist()
        file.write(f"{first + rows - 1},{','.join(map(_NUMBERS.__getitem__, values))}\n".encode())
    return rows
