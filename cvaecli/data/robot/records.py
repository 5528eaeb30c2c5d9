"""BAIR robot pushing as published: TFRecord files, read without TensorFlow.

::

    softmotion30_44k/{train,test}/traj_A_to_B.tfrecords    a record per trajectory

A record is a ``tf.train.Example`` with, for t = 0, 1, ..., ``t/action`` (4 floats),
``t/endeffector_pos`` (3 floats) and ``t/image_aux1/encoded`` (raw RGB, uint8 [64, 64, 3], despite its
name). ``image_main``, the second camera, is not read: published evaluations use ``image_aux1``.

A conversion reads every file twice, in constant memory: first all checksums, messages and numbers, then, if
there is no fault so far, the frames. Each finished file is its own part in the cache. After an
interruption, or when a fault in another file has been corrected, finished files are not read again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import cache
from ..cache import Writer
from ..images import File, entries, link_fault, relative
from ..kinds import Progress
from ..report import Report, Sizes, capped
from . import tfrecord, trajectories
from .bair_record import BairRecord, copy_frames, read_record
from .condition import COLUMNS, Floats, column_names, shifted_condition
from .folders import natural
from .tfrecord import RecordError
from .trajectories import Trajectory

SUFFIXES = (".tfrecords", ".tfrecord")
MEGABYTE = 1024 * 1024
RELEASE = 4096
"""Number of frames after which the memory map's pages are freed, so that memory stays constant."""

_RANGE = re.compile(r"traj_([0-9]{1,12})_to_([0-9]{1,12})")


@dataclass
class Records:
    """A TFRecord data set. The constructor lists its files, `convert` reads them.

    Attributes:
        base: the folder of train and test, or the folder that directly holds the record files.
        report: faults and warnings of the listing alone.
        files: every file that the clips depend on.
    """

    root: Path
    base: Path
    report: Report = field(default_factory=Report)
    by_split: dict[str, list[File]] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)

    def __post_init__(self) -> None:
        there = trajectories.present(self.base)
        if not there:
            split = {"test": "test", "validate": "val", "val": "val"}.get(self.base.name, "train")
            there = {split: [self.base]}
            self.report.warnings.append(
                f"{self.base}: record files without a train or test folder; used as {split}"
            )
        for split, paths in there.items():
            self.by_split[split] = [file for path in paths for file in self._list(path)]
            if not self.by_split[split] and not self.report.faults:
                where = relative(paths[0], self.root)
                self.report.faults.append(f"{where}: no *.tfrecords files; add them, or remove the folder")
        self.files = [file for files in self.by_split.values() for file in files]

    @property
    def splits(self) -> set[str]:
        """The splits that exist, usable or not."""
        return set(self.by_split)

    def nbytes(self, height: int, width: int) -> int:
        """Size in bytes of the data that are not decoded yet, estimated from the first record."""
        share = 1.0  # decoded bytes per byte of a file, which has two cameras and another size
        for file in self.files[:1]:
            try:
                record = next(tfrecord.scan(self.root / file.name))
                length = len(read_record(file.name, record).offsets)
            except (RecordError, StopIteration):
                continue  # `convert` reports it
            share = length * 3 * height * width / len(record.payload)
        left = [file for file in self.files if cache.arrays(_key(self.root, file, height, width)) is None]
        return int(share * sum(file.size for file in left))

    def convert(self, writer: Writer, height: int, width: int, progress: Progress | None) -> Report:
        """Reads every record into ``writer`` and names the clips; see `Source.convert`.

        If ``writer`` resumes, finished files are not read again. ``progress`` counts
        megabytes; every file is read twice.
        """
        meter = _Meter(2 * sum(file.size for file in self.files), progress)
        work = Conversion(self.root, writer, (height, width), meter, not self.report.ok)
        for split, files in self.by_split.items():
            for number, file in enumerate(files):
                work.add(split, f"{split}-{number}", file)
        found = work.found
        found.warnings = capped(found.warnings, str(self.root))
        found.faults = capped(found.faults, str(self.root))
        if found.ok and self.report.ok:
            work.finish()
        writer.source = f"TFRecords in {self.root}"
        writer.warnings = list(found.warnings)
        return found

    def _list(self, folder: Path) -> list[File]:
        files: list[File] = []
        odd: list[str] = []
        if fault := trajectories.closed(folder, self.root):
            self.report.faults.append(fault)
            return []
        for entry in sorted(entries(folder, self.root, self.report.faults), key=lambda e: natural(e.name)):
            path = Path(entry.path)
            name = relative(path, self.root)
            if fault := link_fault(path, self.root):
                self.report.faults.append(fault)
            elif entry.is_file() and entry.name.endswith(SUFFIXES):
                info = entry.stat()
                files.append(File(name, info.st_size, info.st_mtime_ns))
            else:
                odd.append(f"{name}: ignored, not a *.tfrecords file")
        self.report.warnings += capped(odd, relative(folder, self.root))
        return files


@dataclass
class Conversion:
    """Converts files one after the other into parts of an entry; see `Records.convert`.

    Attributes:
        size: height and width of the frames after resizing.
        only_check: whether there already are faults, so that frames need not be copied.
    """

    root: Path
    writer: Writer
    size: tuple[int, int]
    meter: _Meter
    only_check: bool

    def __post_init__(self) -> None:
        self.found = Report()
        self._trajectories: list[Trajectory] = []
        self._numbers: dict[str, list[Floats]] = {}
        self._sizes: dict[str, Sizes] = {}
        self._first: tuple[str, tuple[int, int]] | None = None  # a trajectory, and its numbers of columns

    def add(self, split: str, array: str, file: File) -> None:
        """Adds a file of the split; its rows become ``ARRAY-frames`` and ``ARRAY-condition``."""
        key = _key(self.root, file, *self.size)
        part = cache.arrays(key) if self.writer.resume else None
        if part is not None:
            self.meter.add(2 * file.size)
        else:
            part = self._convert(key, file)
        if part is None or not self._agree(f"{_base(file)}/0", (part["columns"][0], part["columns"][1])):
            return
        named = _RANGE.search(Path(file.name).name)
        count = len(part["trajectories"])
        if named and count != (says := int(named[2]) - int(named[1]) + 1):
            self.found.warnings.append(
                f"{file.name}: holds {count} trajectories, but its name says {says}; is it complete?"
            )
        for name in ("frames", "condition"):
            self.writer.adopt(f"{array}-{name}", key, name)
        tables, sizes = self._numbers.setdefault(split, []), self._sizes.setdefault(split, Counter())
        start = origin = sum(map(len, tables))
        for number, (steps, side) in enumerate(part["trajectories"].tolist()):
            name = f"{_base(file)}/{number}"
            self._trajectories.append(Trajectory(split, name, start, start + steps, array, origin))
            sizes[side, side] += steps
            start += steps
        tables.append(np.array(part["numbers"]))

    def finish(self) -> None:
        """Names the clips and adds warnings and the summary to the report."""
        assert self._first is not None
        numbers = {split: np.concatenate(tables) for split, tables in self._numbers.items()}
        columns = column_names(*self._first[1])
        if self._first[1] != (usual := (len(COLUMNS["actions"]), len(COLUMNS["positions"]))):
            self.found.warnings.append(
                f"{self._first[1][0]} actions and {self._first[1][1]} positions per step, BAIR has "
                f"{usual[0]} and {usual[1]}; used as they are"
            )
        trajectories.finish(
            self.writer, self.found, self._trajectories, numbers, columns, self._sizes, *self.size
        )

    def _agree(self, name: str, columns: tuple[int, int]) -> bool:
        """Whether a trajectory has the same numbers of columns as the first one; adds a fault if not."""
        first, wanted = self._first = self._first or (name, columns)
        if columns != wanted:
            self.found.faults.append(
                f"{name}: {columns[0]} actions and {columns[1]} positions per step, {first} has "
                f"{wanted[0]} and {wanted[1]}; all must have the same"
            )
        return columns == wanted

    def _convert(self, key: str, file: File) -> dict[str, npt.NDArray[Any]] | None:
        """Writes the part ``key`` of a file and opens it; None if there has been any fault so far."""
        records = [record for record in self._read(file) if self._agree(record.name, record.columns)]
        if self.only_check or not self.found.ok:
            return None
        steps = sum(len(record.offsets) for record in records)
        height, width = self.size
        try:
            with cache.writer(key, steps * (3 * height * width + 64)) as part:
                numbers = np.concatenate(
                    [np.hstack([record.actions, record.positions]) for record in records]
                )
                part.array("numbers", numbers.shape, "float32")[:] = numbers
                condition = [shifted_condition(record.actions, record.positions) for record in records]
                part.array("condition", numbers.shape, "float32")[:] = np.concatenate(condition)
                sizes = [(len(record.offsets), record.side) for record in records]
                part.array("trajectories", (len(records), 2), "int64")[:] = sizes
                part.array("columns", (2,), "int64")[:] = records[0].columns
                part.array("frames", (steps, 3, height, width))
                self._copy(part, file, records)
        except RecordError as error:
            self.found.faults.append(f"{file.name}: {error}")
            return None
        return cache.arrays(key)

    def _read(self, file: File) -> Iterator[BairRecord]:
        """The usable trajectories of a file; the faults of the others are added to ``found``."""
        faults: list[str] = []
        done = 0
        try:
            for number, record in enumerate(tfrecord.scan(self.root / file.name)):
                try:
                    yield read_record(f"{_base(file)}/{number}", record)
                except RecordError as error:
                    faults.append(f"{file.name}: record {number}: {error}")
                self.meter.add(record.span.stop + 4 - done)
                done = record.span.stop + 4
        except RecordError as error:
            faults.append(f"{file.name}: {error}")
        self.found.faults += capped(faults, file.name)

    def _copy(self, part: Writer, file: File, records: Sequence[BairRecord]) -> None:
        """Copies a file's frames. Raises `RecordError` if they can no longer be read."""
        frames, start = part.get("frames"), 0
        try:
            with (self.root / file.name).open("rb") as opened:
                for record in records:
                    stop = start + len(record.offsets)
                    copy_frames(opened, record, frames[start:stop])
                    if start // RELEASE != stop // RELEASE:
                        part.release("frames")
                    start = stop
        except OSError as error:
            raise RecordError(f"cannot be read ({error.strerror}); check the disk") from None
        except ValueError:
            raise RecordError("the file was changed while it was read; start again") from None
        self.meter.add(file.size)


def _key(root: Path, file: File, height: int, width: int) -> str:
    """The key of the part of the cache that holds a converted file."""
    version = cache.code_version("cvaecli.data.robot")
    return cache.make_key("records", version, str(root), file.name, file.size, file.mtime_ns, height, width)


def _base(file: File) -> str:
    """The common start of the names of the file's trajectories."""
    return file.name.removesuffix(".tfrecords")


class _Meter:
    """Adds up bytes and reports the progress in megabytes."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._done, self._progress = max(1, -(-total // MEGABYTE)), 0, progress

    def add(self, nbytes: int) -> None:
        before, self._done = self._done, self._done + nbytes
        if self._progress and before // MEGABYTE != self._done // MEGABYTE:
            self._progress(min(self._done // MEGABYTE, self._total), self._total)
