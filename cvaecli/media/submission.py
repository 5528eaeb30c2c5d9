"""The course's ``submission.csv``: one row per frame, one column per pixel value."""

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
    """A submission that is being written; see ``opened``."""

    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self._file, self._folder = file, folder

    @contextlib.contextmanager
    def sequences(self, count: int) -> Iterator[Sequence[BinaryIO]]:
        """Files for the rows of the next ``count`` sequences, which may be written in any order.

        They are temporary: when the block ends, their rows are appended in the order of the sequences.
        """
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(tempfile.TemporaryFile(dir=self._folder)) for _ in range(count)]
            yield waiting
            for rows in waiting:
                rows.seek(0)
                shutil.copyfileobj(rows, self._file)


@contextlib.contextmanager
def opened(path: Path, size: tuple[int, int]) -> Iterator[Submission]:
    """A new submission, which replaces ``path`` when the block ends; if the block raises, ``path`` does not
    change.

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
        file: where to write.
        first: ``id`` of the first frame; ids continue from one sequence to the next.

    Returns:
        The number of rows. Values are 0 to 255; a frame is flattened in the order C, H, W.
    """
    rows = 0
    for rows, frame in enumerate(frames, start=1):
        values = np.moveaxis(frame, -1, 0).reshape(-1).tolist()
        file.write(f"{first + rows - 1},{','.join(map(_NUMBERS.__getitem__, values))}\n".encode())
    return rows
