"""The folder layout of robot data: each trajectory is a folder with its frames and two tables of numbers.

::

    {train,validate,test}/GROUP/N/{0,1,2,...}.png             one trajectory; GROUP is traj_A_to_B.tfrecords
    {train,validate,test}/GROUP/N/actions.csv                 a row per frame: dx, dy, dz, gripper
    {train,validate,test}/GROUP/N/endeffector_positions.csv   a row per frame: x, y, z

Trajectories may have any length and frames any size. Tables of another robot name their columns in a
first row; then there may be any number of columns, the same in the whole set. ``validate`` may be called
``val``, and trajectories need not lie in groups.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..cache import Writer
from ..images import (
    SUFFIXES,
    File,
    ImageError,
    Listing,
    chunks,
    decode_all,
    entries,
    is_folder,
    link_fault,
    list_pictures,
    relative,
)
from ..kinds import Progress
from ..report import Report, Sizes, capped
from . import csv_table, trajectories
from .condition import COLUMNS, Floats, shifted_condition
from .trajectories import Trajectory

TABLES = {"actions.csv": "actions", "endeffector_positions.csv": "positions"}
"""A trajectory's tables, and the part of the condition that each holds."""
CHUNK = 4096
"""Number of pictures queued for decoding at a time, so that memory does not grow with their number."""


@dataclass
class Folder:
    """A trajectory as listed; nothing is decoded yet.

    ``length`` is the number of frames by their numbering, including missing ones.
    """

    split: str
    name: str
    length: int
    frames: list[File]
    tables: list[File]


@dataclass
class Folders:
    """A data set in the folder layout. The constructor lists it, `convert` decodes it.

    Attributes:
        base: the folder of train, validate and test: ``root``, or the folder in it from BAIR's archive.
        report: faults and warnings of the listing alone.
        files: every file that the clips depend on.
    """

    root: Path
    base: Path
    report: Report = field(default_factory=Report)
    folders: list[Folder] = field(default_factory=list)
    files: list[File] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._odd: list[str] = []
        faults = self.report.faults
        for split, paths in trajectories.present(self.base).items():
            if len(paths) > 1:
                names = " and ".join(relative(path, self.root) for path in paths)
                faults.append(f"{names}: both are the {split} split; keep one of them")
            self._list_split(split, paths[0])
        self.report.faults = capped(faults, str(self.root))
        self.report.warnings = capped(self._odd, str(self.root))
        self.files = [file for folder in self.folders for file in (*folder.frames, *folder.tables)]

    @property
    def splits(self) -> set[str]:
        """The splits whose folder exists, usable or not."""
        return set(trajectories.present(self.base))

    def nbytes(self, height: int, width: int) -> int:
        """Size of the decoded arrays."""
        return sum(len(folder.frames) for folder in self.folders) * (3 * height * width + 64)

    def convert(self, writer: Writer, height: int, width: int, progress: Progress | None) -> Report:
        """Decodes every picture and table into ``writer`` and names the clips; see `Source.convert`."""
        found = Report()
        numbers, columns = self._read_tables(found)
        sizes = self._decode(writer, height, width, found, progress)
        if found.faults or self.report.faults:
            return found
        items = []
        by_split: dict[str, Floats] = {}
        for split in trajectories.FOLDERS:
            folders = [folder for folder in self.folders if folder.split == split]
            if not folders:
                continue
            by_split[split] = np.concatenate([np.concatenate(numbers[f.name], axis=1) for f in folders])
            condition = writer.array(f"{split}-condition", by_split[split].shape, "float32")
            start = 0
            for folder in folders:
                stop = start + len(folder.frames)
                condition[start:stop] = shifted_condition(*numbers[folder.name])
                items.append(Trajectory(split, folder.name, start, stop, split))
                start = stop
        trajectories.finish(writer, found, items, by_split, columns, sizes, height, width)
        writer.source = f"robot folders in {self.root}"
        writer.warnings = list(found.warnings)
        return found

    # -- listing -----------------------------------------------------------------------------------

    def _list_split(self, split: str, path: Path) -> None:
        before = len(self.folders), len(self.report.faults)
        for folder, loose in self._inner(path):
            if loose:
                self._list_folder(split, folder)
                continue
            inner = self._inner(folder)
            for trajectory, _ in inner:
                self._list_folder(split, trajectory)
            if not inner:
                self._odd.append(f"{relative(folder, self.root)}: ignored, no trajectories in it")
        if before == (len(self.folders), len(self.report.faults)):
            where = relative(path, self.root)
            self.report.faults.append(
                f"{where}: no trajectories; add {where}/traj_0/0/0.png, ... and its tables, or remove it"
            )

    def _inner(self, folder: Path) -> list[tuple[Path, bool]]:
        """The folders in ``folder``, in the order of their numbers, each with whether it is a trajectory."""
        found = []
        if fault := trajectories.closed(folder, self.root):
            self.report.faults.append(fault)
            return []
        for entry in sorted(entries(folder, self.root, self.report.faults), key=lambda e: natural(e.name)):
            if not is_folder(entry):
                self._odd.append(f"{relative(Path(entry.path), self.root)}: ignored, not a folder")
            elif fault := trajectories.closed(Path(entry.path), self.root):
                self.report.faults.append(fault)
            else:
                found.append((Path(entry.path), _holds_files(entry.path)))
        return found

    def _list_folder(self, split: str, path: Path) -> None:
        where = relative(path, self.root)
        listing = list_pictures(path, self.root)
        known = tuple(f"{where}/{name}:" for name in TABLES)
        self._odd += [line for line in listing.warnings if not line.startswith(known)]
        faults = listing.faults + _gaps(where, listing)
        tables = []
        for name in TABLES:
            outcome = _stat(path / name, self.root)
            if isinstance(outcome, File):
                tables.append(outcome)
            else:
                faults.append(outcome)
        self.report.faults += faults
        # A folder with faults is read too, so that the faults inside its files are reported at once.
        length = max([*listing.files, *listing.unusable], default=-1) + 1
        self.folders.append(Folder(split, where, length, list(listing.files.values()), tables))

    # -- reading -----------------------------------------------------------------------------------

    def _read_tables(self, found: Report) -> tuple[dict[str, list[Floats]], dict[str, tuple[str, ...]]]:
        """Actions and positions by trajectory, and the names of the columns by part."""
        numbers: dict[str, list[Floats]] = {}
        first: dict[str, tuple[tuple[str, ...], str]] = {}  # by part: columns, and the file they are from
        faults: list[str] = []
        for folder in self.folders:
            numbers[folder.name] = []
            for file in folder.tables:
                part = TABLES[Path(file.name).name]
                read = csv_table.read(self.root / file.name, file.name, COLUMNS[part], folder.length)
                names, example = first.setdefault(part, (read.names, file.name))
                if read.names != names and not read.faults:
                    read.faults.append(
                        f"{file.name}: its columns are {', '.join(read.names)}, those of {example} are "
                        f"{', '.join(names)}; all must be the same"
                    )
                faults += read.faults
                numbers[folder.name].append(read.values)
        found.faults += capped(faults, str(self.root))
        return numbers, {part: first[part][0] for part in TABLES.values() if part in first}

    def _decode(
        self,
        writer: Writer,
        height: int,
        width: int,
        found: Report,
        progress: Progress | None,
    ) -> dict[str, Sizes]:
        """Decodes all pictures; returns how often each (width, height) occurs in each split."""
        sizes: dict[str, Sizes] = {}
        faults: list[str] = []
        done, total = 0, sum(len(folder.frames) for folder in self.folders)
        for split in trajectories.FOLDERS:
            files = [file for folder in self.folders if folder.split == split for file in folder.frames]
            rows = writer.array(f"{split}-frames", (len(files), 3, height, width)) if files else None
            sizes[split] = Counter()
            for part in chunks(len(files), CHUNK):
                assert rows is not None
                jobs = [
                    (self.root / file.name, row) for file, row in zip(files[part], rows[part], strict=True)
                ]
                for file, outcome in zip(files[part], decode_all(jobs), strict=True):
                    if isinstance(outcome, ImageError):
                        faults.append(f"{file.name}: {outcome}")
                    else:
                        sizes[split][outcome] += 1
                    done += 1
                    if progress:
                        progress(done, total)
                writer.release(f"{split}-frames")
        found.faults += capped(faults, str(self.root))
        return sizes


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them: traj_256_to_511 before traj_1024_to_1279."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def _holds_files(folder: str) -> bool:
    """Whether a trajectory's files are directly in ``folder``."""
    try:
        with os.scandir(folder) as found:
            return any(
                e.name.lower().endswith(SUFFIXES) or e.name in TABLES for e in found if not is_folder(e)
            )
    except OSError:
        return False


def _stat(path: Path, root: Path) -> File | str:
    """Name, size and time of a table, or the fault that makes it unreadable."""
    name = relative(path, root)
    if fault := link_fault(path, root):
        return fault
    if not os.path.lexists(path):
        return f"{name}: missing; add it, with a row per frame"
    if not path.is_file():
        return f"{name}: not a file; remove it"
    info = path.stat()
    return File(name, info.st_size, info.st_mtime_ns)


def _gaps(where: str, listing: Listing) -> list[str]:
    """Faults of a numbering that is not 0, 1, 2, ..."""
    numbers = sorted({*listing.files, *listing.unusable})
    if not numbers:
        return [] if listing.faults else [f"{where}: no frames; add 0.png, 1.png, ... or remove the folder"]
    lines = []
    for before, after in itertools.pairwise([-1, *numbers]):
        if after - before > 1:
            lacks = f"{before + 1}.png" if after - before == 2 else f"{before + 1}.png to {after - 1}.png"
            lines.append(f"{where}/{lacks}: missing; frames are 0.png, 1.png, ... without a gap, add it")
    return capped(lines, where)
