"""BAIR robot pushing as published: TFRecord files, read without TensorFlow.

::

    softmotion30_44k/{train,test}/traj_A_to_B.tfrecords    a record a trajectory

A record is a ``tf.train.Example`` with, for t = 0, 1, ..., ``t/action`` (4 floats),
``t/endeffector_pos`` (3 floats) and ``t/image_aux1/encoded`` (raw RGB, uint8 [64, 64, 3], in spite of its
name). ``image_main``, the second camera, is passed over: evaluations use ``image_aux1``.

A conversion reads every file twice, in constant memory: first all checksums, messages and numbers, which
tells every fault before a frame is written, then the frames. A conversion that is interrupted leaves
nothing behind and begins again.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from .. import tfrecord
from ..cache import Writer
from ..images import File, entries, link_fault, relative
from ..report import Report, capped, spans
from ..tfrecord import RecordError, Values
from . import common
from .common import Floats, Sizes, Trajectory
from .folders import natural

Progress = Callable[[int, int], None]
SUFFIXES = (".tfrecords", ".tfrecord")
MEGABYTE = 1024 * 1024
RELEASE = 4096
"""Frames after which the memory map's pages are let go: memory stays constant."""

_KEY = re.compile(r"([0-9]{1,9})/(action|endeffector_pos|image_aux1/encoded)")
_RANGE = re.compile(r"traj_([0-9]{1,12})_to_([0-9]{1,12})")


@dataclass
class Shot:
    """A trajectory in a file: where its frames are (offsets ``[T]``), and its numbers ``[T, ...]``."""

    name: str
    offsets: npt.NDArray[np.int64]
    side: int
    actions: Floats
    positions: Floats


@dataclass
class Records:
    """A TFRecord data set: `__init__` lists its files, `convert` reads them.

    Attributes:
        base: the folder of train and test, or the one that holds record files itself.
        report: faults and warnings of the listing alone.
        files: every file that the clips depend on.
    """

    root: Path
    base: Path
    report: Report = field(default_factory=Report)
    by_split: dict[str, list[File]] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)

    def __post_init__(self) -> None:
        there = common.present(self.base)
        if not there:
            split = {"test": "test", "validate": "val", "val": "val"}.get(self.base.name, "train")
            there = {split: [self.base]}
            self.report.warnings.append(f"{self.base}: record files without train or test; taken as {split}")
        for split, paths in there.items():
            self.by_split[split] = [file for path in paths for file in self._list(path)]
            if not self.by_split[split] and not self.report.faults:
                where = relative(paths[0], self.root)
                self.report.faults.append(f"{where}: no *.tfrecords files; add them, or remove the folder")
        self.files = [file for files in self.by_split.values() for file in files]

    @property
    def splits(self) -> set[str]:
        """The splits that are there, good or not."""
        return set(self.by_split)

    def nbytes(self, height: int, width: int) -> int:
        """Size of the decoded arrays, told from the first record: one of two cameras is kept."""
        share = 1.0
        for file in self.files[:1]:
            try:
                record = next(tfrecord.scan(self.root / file.name))
                shot = _shot(file.name, record)
                share = len(shot.offsets) * 3 * height * width / len(record.payload)
            except (RecordError, StopIteration):
                pass  # told by `convert`
        return int(share * sum(file.size for file in self.files))

    def convert(self, writer: Writer, cut: str, height: int, width: int, progress: Progress | None) -> Report:
        """Reads every record into ``writer`` and names the clips.

        Args:
            writer: the cache entry to fill.
            cut: not used: a trajectory is a clip.
            height: frame height in pixels.
            width: frame width in pixels.
            progress: called with (megabytes read, megabytes to read); every file is read twice.

        Returns:
            Faults and warnings of the contents and a summary; no clips are named if there are faults.
        """
        found = Report()
        meter = _Meter(2 * sum(file.size for file in self.files), progress)
        shots = {
            split: [list(self._read(file, found, meter)) for file in files]
            for split, files in self.by_split.items()
        }
        found.warnings = common.at_most(found.warnings, self.root)
        names = self._columns([shot for files in shots.values() for file in files for shot in file], found)
        found.faults = common.at_most(found.faults, self.root)
        if found.faults or self.report.faults:
            return found
        trajectories: list[Trajectory] = []
        numbers: dict[str, Floats] = {}
        sizes: dict[str, Sizes] = {}
        for split, files in shots.items():
            every = [shot for file in files for shot in file]
            numbers[split] = np.concatenate([np.hstack([shot.actions, shot.positions]) for shot in every])
            writer.array(f"{split}-condition", numbers[split].shape, "float32")
            writer.array(f"{split}-frames", (len(numbers[split]), 3, height, width))
            sizes[split] = Counter()
            for shot in every:
                sizes[split][shot.side, shot.side] += len(shot.offsets)
            found.faults += self._copy(writer, split, files, trajectories, meter)
        if not found.faults:
            common.finish(writer, found, trajectories, numbers, names, sizes, width / height)
        writer.source = f"TFRecords in {self.root}"
        writer.warnings = list(found.warnings)
        return found

    def _list(self, folder: Path) -> list[File]:
        files: list[File] = []
        odd: list[str] = []
        if fault := common.closed(folder, self.root):
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

    def _read(self, file: File, found: Report, meter: _Meter) -> Iterator[Shot]:
        """The good trajectories of a file; what is wrong with the others goes into ``found``."""
        faults: list[str] = []
        count = done = 0
        try:
            for count, record in enumerate(tfrecord.scan(self.root / file.name), 1):
                try:
                    yield _shot(f"{file.name.removesuffix('.tfrecords')}/{count - 1}", record)
                except RecordError as error:
                    faults.append(f"{file.name}: record {count - 1}: {error}")
                meter.add(record.span.stop + 4 - done)
                done = record.span.stop + 4
        except RecordError as error:
            faults.append(f"{file.name}: {error}")
        found.faults += capped(faults, file.name)
        named = _RANGE.search(Path(file.name).name)
        if named and not faults and count != (says := int(named[2]) - int(named[1]) + 1):
            found.warnings.append(f"{file.name}: holds {count} of the {says} trajectories that its name says")

    def _copy(
        self,
        writer: Writer,
        split: str,
        shots: list[list[Shot]],
        trajectories: list[Trajectory],
        meter: _Meter,
    ) -> list[str]:
        """Copies the frames and conditions of a split's files; returns what went wrong."""
        frames, condition = writer.get(f"{split}-frames"), writer.get(f"{split}-condition")
        start = 0
        for listed, inside in zip(self.by_split[split], shots, strict=True):
            try:
                with (self.root / listed.name).open("rb") as file:
                    for shot in inside:
                        stop = start + len(shot.offsets)
                        _copy_frames(file, shot, frames[start:stop])
                        condition[start:stop] = common.driving(shot.actions, shot.positions)
                        trajectories.append(Trajectory(split, shot.name, start, stop))
                        if start // RELEASE != stop // RELEASE:
                            writer.release(f"{split}-frames")
                        start = stop
            except OSError as error:
                return [f"{listed.name}: cannot be read ({error.strerror}); check the disk"]
            except ValueError:
                return [f"{listed.name}: the file was changed while it was read; start again"]
            meter.add(listed.size)
        return []

    def _columns(self, shots: list[Shot], found: Report) -> tuple[str, ...]:
        """The columns' names; faults where trajectories differ in their number."""
        if not shots:
            return ()
        first = shots[0]
        wanted = first.actions.shape[1], first.positions.shape[1]
        for shot in shots:
            have = shot.actions.shape[1], shot.positions.shape[1]
            if have != wanted:
                found.faults.append(
                    f"{shot.name}: {have[0]} actions and {have[1]} positions a step, {first.name} has "
                    f"{wanted[0]} and {wanted[1]}; all must have the same"
                )
        if wanted != (len(common.ACTION), len(common.POSITION)):
            found.warnings.append(
                f"{wanted[0]} actions and {wanted[1]} positions a step, BAIR has "
                f"{len(common.ACTION)} and {len(common.POSITION)}; taken as they are"
            )
        return common.column_names(*wanted)


class _Meter:
    """Adds bytes up and tells the progress in megabytes."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._done, self._progress = max(1, -(-total // MEGABYTE)), 0, progress

    def add(self, nbytes: int) -> None:
        before, self._done = self._done, self._done + nbytes
        if self._progress and before // MEGABYTE != self._done // MEGABYTE:
            self._progress(min(self._done // MEGABYTE, self._total), self._total)


def _shot(name: str, record: tfrecord.Record) -> Shot:
    """The trajectory in a record. Raises `RecordError` with all that is wrong with it in one line."""
    if record.fault:
        raise RecordError(record.fault)
    features = tfrecord.parse_example(record.payload)
    steps = sorted({int(key[1]) for key in map(_KEY.fullmatch, features) if key})
    if not steps:
        raise RecordError("no robot trajectory (no 0/action); give BAIR robot pushing records")
    if steps[-1] != len(steps) - 1:
        raise RecordError(f"its steps are {spans(steps)}, they must be 0, 1, ... without a gap; mend it")
    lacks = [
        f"{step}/{part}"
        for step in steps
        for part in ("action", "endeffector_pos", "image_aux1/encoded")
        if f"{step}/{part}" not in features
    ]
    if lacks:
        more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
        raise RecordError(f"no {', '.join(lacks[:3])}{more}; write the file again with all of them")
    actions = _numbers(features, len(steps), "action", len(common.ACTION))
    positions = _numbers(features, len(steps), "endeffector_pos", len(common.POSITION))
    frames = [features[f"{step}/image_aux1/encoded"].blobs for step in steps]
    wrong = [step for step, blobs in enumerate(frames) if len(blobs) != 1]
    if wrong:
        raise RecordError(f"{wrong[0]}/image_aux1/encoded: {len(frames[wrong[0]])} values instead of one")
    size = frames[0][0].stop - frames[0][0].start
    side = math.isqrt(size // 3)
    for step, ((start, stop),) in enumerate(frames):
        if stop - start != size or side * side * 3 != size or size == 0:
            raise RecordError(
                f"{step}/image_aux1/encoded: {stop - start} bytes, not those of a square raw RGB picture "
                "(64x64: 12288) like the others; write it again"
            )
    offsets = np.array([blobs[0].start for blobs in frames], np.int64) + record.span.start
    return Shot(name, offsets, side, actions, positions)


def _numbers(features: dict[str, Values], steps: int, part: str, usual: int) -> Floats:
    """``[T, D]`` of a feature; D is what most steps have, and BAIR's number where that is not clear."""
    rows = [features[f"{step}/{part}"].floats for step in range(steps)]
    counts = Counter(len(row) for row in rows)
    wanted = max(counts, key=lambda count: (counts[count], count == usual))
    for step, row in enumerate(rows):
        if len(row) != wanted or not len(row):
            need = wanted or usual
            raise RecordError(
                f"{step}/{part} has {len(row)} numbers, {need} are needed; write the file again"
            )
        if not np.isfinite(row).all():
            raise RecordError(f"{step}/{part} has a number that is not finite (nan or inf); mend it")
    return np.stack(rows)


def _copy_frames(file: BinaryIO, shot: Shot, out: npt.NDArray[np.uint8]) -> None:
    """Copies the frames of ``shot`` into ``out`` [T, 3, H, W]. Raises `ValueError` where there are none."""
    height, width = out.shape[2:]
    for row, offset in enumerate(shot.offsets):
        file.seek(int(offset))
        pixels = np.frombuffer(file.read(3 * shot.side**2), np.uint8).reshape(shot.side, shot.side, 3)
        if (height, width) != pixels.shape[:2]:
            # As `images.decode_into` does: antialiased, no overshoot.
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
        out[row] = pixels.transpose(2, 0, 1)
