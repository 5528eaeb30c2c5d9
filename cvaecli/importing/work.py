"""The hidden folder of an import that is under way, so that one that was interrupted can go on."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..files import write_text
from ..media.panels import Frame
from .keypoints import COLUMNS, Row
from .options import Options


class Work:
    """What is done of an import. It is taken up again if film and options are the same, else begun anew.

    ::

        settings.json     film and options
        detected.csv      what the detector found, in pixels of the film; see `keypoints`
        frames.u8         the frames, uint8 [N, 3, H, W]
        frames.csv        number in the film and time of each frame
        result/           the data set, moved to its place at the end

    A frame is stored in this order, so that a line in frames.csv says that all of it is there.

    Attributes:
        rows: (number in the film, time in seconds) of each frame.
        result: the folder for the data set, empty.
        detected: the table of what the detector found.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, out: Path, film: Path, options: Options) -> None:
        self.folder = out.parent / f".{out.name}.importing"
        self.result = self.folder / "result"
        self.detected, self._frames = self.folder / "detected.csv", self.folder / "frames.u8"
        self._table = self.folder / "frames.csv"
        inputs = [_state(film), _state(Path(options.labels)), dataclasses.asdict(options)]
        settings = json.dumps(inputs, default=str)
        note = self.folder / "settings.json"
        try:
            if not note.is_file() or note.read_text(encoding="utf-8") != settings:
                self.remove()
                self.folder.mkdir(parents=True)
                self.detected.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
                self._frames.touch()
                self._table.touch()
                write_text(note, settings)  # last: without it the folder is begun anew
            shutil.rmtree(self.result, ignore_errors=True)
            self.result.mkdir()
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}") from error
        self.rows = self._take_up()

    def _take_up(self) -> list[tuple[int, float]]:
        """The frames that are complete. What was written after the last of them is removed."""
        lines = self._table.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        self._table.write_text("".join(whole), encoding="utf-8")
        pairs = [line.strip().split(",") for line in whole]
        rows = [(int(number), float(time)) for number, time in pairs]
        last = rows[-1][0] if rows else -1
        header, *found = self.detected.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in found if line.endswith("\n") and int(line.partition(",")[0]) <= last]
        self.detected.write_text("".join([header, *kept]), encoding="utf-8")
        return rows

    def fit(self, size: tuple[int, int]) -> None:
        """Begin to add frames of this (width, height)."""
        os.truncate(self._frames, len(self.rows) * 3 * size[0] * size[1])

    def add(self, frame: Frame, number: int, time: float, figures: Iterable[Row] = ()) -> None:
        """Store a frame ``[H, W, 3]``, its number and time in the film, and what the detector found in it."""
        with ExitStack() as files:
            detected = files.enter_context(self.detected.open("a", encoding="utf-8", newline=""))
            pixels = files.enter_context(self._frames.open("ab"))
            table = files.enter_context(self._table.open("a", encoding="utf-8"))
            csv.writer(detected, lineterminator="\n").writerows(figures)
            detected.flush()
            pixels.write(np.ascontiguousarray(frame.transpose(2, 0, 1)).data)
            pixels.flush()
            table.write(f"{number},{time:.6f}\n")
        self.rows.append((number, time))

    def frames(self, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """All frames, uint8 ``[N, 3, H, W]``, as a memory map; ``size`` is (width, height)."""
        return np.memmap(self._frames, np.uint8, "r", shape=(len(self.rows), 3, size[1], size[0]))

    def finish(self, out: Path) -> None:
        """Move the result to its place, and remove the rest."""
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()  # only succeeds if it is empty
        self.result.replace(out)
        self.remove()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _state(path: Path) -> list[object]:
    """What tells whether a file or folder has changed."""
    if not path.exists():
        return [str(path)]
    info = path.stat()
    return [str(path.resolve()), info.st_size, info.st_mtime_ns]
