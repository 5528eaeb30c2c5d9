"""The dance layout: numbered frames and label images in folders.

::

    train/train_img/N.png  train/train_label/N.png      one long folder, clips back to back
    val/val_img/N.png      val/val_label/N.png
    test/test_img/S/0.png  test/test_label/S/N.png      per sequence S: the given frames, all labels
    test_ground_truth/S/N.png                           optional: the true frames of S (may be below test/)
    clips.csv                                           optional: split,first,last (see `cuts`)

Names are ``N.png`` or ``frameNNNNNN.png`` and may start at any number; sizes may differ.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..cache import Rows, Writer
from ..images import (
    File,
    ImageError,
    Listing,
    decode_all,
    entries,
    is_folder,
    link_fault,
    list_pictures,
    relative,
)
from ..kinds import Progress
from ..report import Report, Sizes, capped, size_warnings, spans
from . import cuts

FOLDERS = ("train", "val", "test")
CLIPS_NAMED = 6
WHITE = 0.5
"""Labels are drawn on white. If more than this share of the frames is white, and little of the labels, the
two folders are exchanged."""


@dataclass
class Strip:
    """The pictures of one folder (train, val) or test sequence as listed; nothing is decoded yet.

    ``numbers`` are the numbers of the labels. The frames have the first ``len(frames)`` of these numbers.
    """

    split: str
    name: str
    numbers: list[int]
    frames: list[File]
    labels: list[File]

    @property
    def array(self) -> str:
        """The stem of this strip's arrays in the cache."""
        return self.name.replace("/", "-")


@dataclass
class Dance:
    """A data set in the dance layout; see `Source`. The constructor lists it, `convert` decodes it.

    Attributes:
        report: faults and warnings of the listing alone.
        files: every file that the clips depend on.
    """

    val_from_train: ClassVar[bool] = False
    remedies: ClassVar[dict[str, str]] = {
        "train": "training needs train/train_img and train/train_label; add them",
        "val": "validation needs val/val_img and val/val_label; add them, or move frames there from train",
        "test": "add test/test_img/S/0.png and test/test_label/S/N.png, or use another split",
    }

    root: Path
    report: Report = field(default_factory=Report)
    strips: list[Strip] = field(default_factory=list)
    table: cuts.Table = field(default_factory=cuts.Table)
    files: list[File] = field(default_factory=list)

    def __post_init__(self) -> None:
        present = [name for name in FOLDERS if (self.root / name).is_dir()]
        if not present:
            self.report.faults.append(self._nothing(present))
            return
        for split in ("train", "val"):
            if split in present:
                self._list_split(split)
        if "test" in present:
            self._list_test()
        path = self.root / "clips.csv"
        if os.path.lexists(path):
            self._read_table(path)
        self.files += [file for strip in self.strips for file in (*strip.frames, *strip.labels)]

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether at least one of the layout's folders exists."""
        names = [f"{split}/{split}_{part}" for split in FOLDERS for part in ("img", "label")]
        return any((root / name).is_dir() for name in names)

    @property
    def splits(self) -> set[str]:
        """The splits whose folder exists, usable or not."""
        return {name for name in FOLDERS if (self.root / name).is_dir()}

    def nbytes(self, height: int, width: int) -> int:
        """Size of the decoded arrays in bytes."""
        pictures = sum(len(strip.frames) + len(strip.labels) for strip in self.strips)
        return pictures * 3 * height * width

    def convert(self, writer: Writer, cut: str, height: int, width: int, progress: Progress | None) -> Report:
        """Decodes every picture into ``writer`` and names the clips; see `Source.convert`.

        A clips.csv overrides ``cut``.
        """
        found = Report()
        sizes = self._decode(writer, (3, height, width), found, progress)
        if found.faults or self.report.faults:
            return found
        found.warnings += size_warnings(sizes, height, width)
        for strip in self.strips:
            frames, labels = (writer.get(f"{strip.array}-{part}") for part in ("frames", "labels"))
            if cuts.white_share(frames) > WHITE and cuts.white_share(labels) < 0.1:
                found.warnings.append(
                    f"{strip.name}: the frames look like labels and the labels like photographs; "
                    "are the two folders exchanged?"
                )
            found.warnings += _flat_warnings(strip, frames, labels)
            clips = self._clips(strip, cut, frames, labels, found)
            for name, start, stop in clips:
                rows = Rows(f"{strip.array}-frames", start, min(stop, len(strip.frames)))
                writer.clip(strip.split, name, rows, Rows(f"{strip.array}-labels", start, stop))
            found.summary.append(_summary(strip, clips, sizes[strip.name]))
        writer.source = f"dance layout in {self.root}"
        writer.warnings = list(found.warnings)
        return found

    # -- listing -----------------------------------------------------------------------------------

    def _nothing(self, present: Sequence[str]) -> str:
        """The fault of a root without any of the folders; suggests a likelier root nearby."""
        faults: list[str] = []
        inner = [Path(entry.path) for entry in entries(self.root, self.root, faults) if is_folder(entry)]
        if faults:
            return faults[0]
        like = [path for path in inner if any(os.path.isdir(path / name) for name in FOLDERS)]  # noqa: PTH112
        if len(like) == 1:
            return f"{self.root}: no train, val or test folder here; did you mean {like[0]}?"
        if any(path.name in ("train_img", "val_img", "test_img") for path in inner):
            return (
                f"{self.root}: this is one split of a data set; did you mean its parent, {self.root.parent}?"
            )
        other = [path.name for path in inner if path.name.lower() in FOLDERS]
        if other:
            return f"{self.root}: rename {', '.join(other)} to lower case (train, val, test)"
        return (
            f"{self.root}: no train, val or test folder; frames go into "
            "train/train_img/N.png and label images into train/train_label/N.png, the same for val"
        )

    def _list_split(self, split: str) -> None:
        images = self._listing(self.root / split / f"{split}_img")
        labels = self._listing(self.root / split / f"{split}_label")
        if images is None or labels is None:
            return
        self.report.faults += _unpaired(split, images, labels)
        numbers = sorted(images.files.keys() & labels.files.keys())
        if images.files and labels.files:
            strip = Strip(split, split, numbers, list(images.files.values()), list(labels.files.values()))
            self.strips.append(strip)
            every = sorted(images.files.keys() | labels.files.keys())  # unpaired ones are reported above
            jumps = [f"{every[i - 1]} to {every[i]}" for i in cuts.gaps(every)]
            self.report.warnings += capped(
                [
                    f"{split}/{split}_img: the numbering skips from {jump}; a clip ends there"
                    for jump in jumps
                ],
                f"{split}/{split}_img",
            )

    def _list_test(self) -> None:
        base = self.root / "test"
        images, labels = (self._sequences(base / name) for name in ("test_img", "test_label"))
        if images is None or labels is None:
            return
        truth: dict[str, Path] = {}
        for place in (self.root / "test_ground_truth", base / "test_ground_truth"):
            truth |= (self._sequences(place) or {}) if place.is_dir() else {}
        for name in sorted(images.keys() | labels.keys() | truth.keys(), key=_natural):
            if name not in images or name not in labels:
                have = relative(images.get(name) or labels.get(name) or truth[name], self.root)
                parts = (("test_img", images), ("test_label", labels))
                lacks = [f"test/{part}/{name}" for part, present in parts if name not in present]
                fault = f"{' and '.join(lacks)}: missing, but {have} exists; add it, or remove the sequence"
                self.report.faults.append(fault)
            else:
                self._list_sequence(name, images[name], labels[name], truth.get(name))
        if not images and not labels:
            self.report.faults.append(
                "test/test_img: no sequences; add test/test_img/0/0.png, ... or remove test"
            )

    def _list_sequence(self, name: str, image: Path, label: Path, truth: Path | None) -> None:
        before = len(self.report.faults)
        given, labels = self._listing(image, "no first frame; add 0.png"), self._listing(label)
        true = self._listing(truth) if truth else Listing()
        if given is None or labels is None or true is None or len(self.report.faults) > before:
            return
        numbers, where = list(labels.files), f"test/test_label/{name}"
        self.report.faults += [
            f"{where}: no label between {numbers[i - 1]} and {numbers[i]}; every step needs one, add it"
            for i in cuts.gaps(numbers)
        ]
        # The true frames do not replace the given ones; they only continue them.
        frames = {**true.files, **given.files}
        for kind, path, files in (("given", image, given.files), ("true", truth or image, frames)):
            if sorted(files) != numbers[: len(files)]:
                self.report.faults.append(
                    f"{relative(path, self.root)}: the {kind} frames are {spans(sorted(files))}, "
                    f"but the labels are {spans(numbers)}; both must begin at the same number and skip none"
                )
                return
        ordered = [frames[number] for number in numbers[: len(frames)]]
        self.strips.append(Strip("test", f"test/{name}", numbers, ordered, list(labels.files.values())))

    def _listing(self, folder: Path, empty: str = "no frames (N.png or frameNNNNNN.png)") -> Listing | None:
        """Lists a folder that must hold pictures; None, with a fault, if it does not exist."""
        if not self._usable(folder):
            return None
        listing = list_pictures(folder, self.root)
        if not listing.files and not listing.faults:
            listing.faults.append(f"{relative(folder, self.root)}: {empty}")
        self.report.faults += listing.faults
        self.report.warnings += listing.warnings
        return listing

    def _sequences(self, folder: Path) -> dict[str, Path] | None:
        if not self._usable(folder):
            return None
        found = {}
        for entry in entries(folder, self.root, self.report.faults):
            path = Path(entry.path)
            if is_folder(entry):
                found[entry.name] = path
            else:
                line = f"{relative(path, self.root)}: ignored; a sequence is a folder, e.g. {folder.name}/0"
                self.report.warnings.append(line)
        return found

    def _usable(self, folder: Path) -> bool:
        """Whether ``folder`` is a readable folder inside the root; adds a fault if not."""
        for path in (folder.parent, folder):
            fault = link_fault(path, self.root) if path != self.root else None
            if fault is None and not path.is_dir():
                fault = f"{relative(path, self.root)}: the folder does not exist; add it"
            if fault is None and not os.access(path, os.R_OK | os.X_OK):
                fault = f"{relative(path, self.root)}: the folder cannot be opened; check its permissions"
            if fault:
                if fault not in self.report.faults:
                    self.report.faults.append(fault)
                return False
        return True

    def _read_table(self, path: Path) -> None:
        fault = link_fault(path, self.root)
        if fault or not path.is_file():
            self.report.faults.append(fault or "clips.csv: not a file; remove it")
            return
        info = path.stat()
        self.files.append(File(path.name, info.st_size, info.st_mtime_ns))
        self.table = cuts.read_table(path, {s.split: s.numbers for s in self.strips if s.split != "test"})
        self.report.faults += capped(self.table.faults, path.name)
        self.report.warnings += self.table.warnings

    # -- decoding ----------------------------------------------------------------------------------

    def _decode(
        self, writer: Writer, shape: tuple[int, int, int], found: Report, progress: Progress | None
    ) -> dict[str, Sizes]:
        """Decodes all pictures; returns how often each (width, height) occurs among each strip's frames."""
        jobs: list[tuple[Path, npt.NDArray[np.uint8]]] = []
        what: list[tuple[str, str, File]] = []
        for strip in self.strips:
            for part, files in (("frames", strip.frames), ("labels", strip.labels)):
                rows = writer.array(f"{strip.array}-{part}", (len(files), *shape))
                jobs += [(self.root / file.name, rows[i]) for i, file in enumerate(files)]
                what += [(strip.name, part, file) for file in files]
        sizes: dict[str, Sizes] = {strip.name: Counter() for strip in self.strips}
        faults: list[str] = []
        for done, ((name, part, file), outcome) in enumerate(zip(what, decode_all(jobs), strict=True), 1):
            if isinstance(outcome, ImageError):
                faults.append(f"{file.name}: {outcome}")
            elif part == "frames":
                sizes[name][outcome] += 1
            if progress:
                progress(done, len(jobs))
        found.faults += capped(faults, str(self.root))
        return sizes

    def _clips(
        self,
        strip: Strip,
        cut: str,
        frames: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.uint8],
        found: Report,
    ) -> list[tuple[str, int, int]]:
        """(name, first row, row after the last) of the strip's clips."""
        numbers = strip.numbers
        if strip.split == "test":
            return [(strip.name, 0, len(numbers))]
        index = {number: i for i, number in enumerate(numbers)}
        if strip.split in self.table.clips:
            ranges = [(index[first], index[last] + 1) for first, last in self.table.clips[strip.split]]
        else:
            starts = {0}
            if cut == "auto":
                seen = cuts.find(frames, labels)
                found.warnings += _cut_warnings(strip, seen)
                starts |= {*cuts.gaps(numbers), *seen.jumps, *seen.held}
            edges = [*sorted(starts), len(numbers)]
            ranges = list(itertools.pairwise(edges))
        return [(f"{strip.name}/{numbers[a]}-{numbers[b - 1]}", a, b) for a, b in ranges]


def _natural(name: str) -> tuple[float, str]:
    return (int(name) if name.isascii() and name.isdigit() else math.inf, name)


def _unpaired(split: str, image: Listing, label: Listing) -> list[str]:
    """Faults: frames without a label and labels without a frame."""
    images, labels = image.files, label.files
    if not images or not labels:
        return []
    offset = min(labels) - min(images)
    if offset and len(images) > 1 and {number + offset for number in images} == labels.keys():
        return [
            f"{split}: frames are numbered {min(images)}-{max(images)}, "
            f"labels {min(labels)}-{max(labels)}; give both the same numbers"
        ]
    lone = sorted(images.keys() - labels.keys() - label.unusable)
    more = sorted(labels.keys() - images.keys() - image.unusable)
    no_label = [
        f"{images[n].name}: no label {split}/{split}_label/{n}.png; add it or remove the frame" for n in lone
    ]
    no_frame = [
        f"{labels[n].name}: no frame {split}/{split}_img/{n}.png; add it or remove the label" for n in more
    ]
    return capped(no_label, f"{split}/{split}_img") + capped(no_frame, f"{split}/{split}_label")


def _flat_warnings(strip: Strip, frames: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> list[str]:
    signs = (
        (frames, "frames", "of one colour; copy them again, or leave them out with a clips.csv"),
        (labels, "labels", "blank; there the model is told nothing"),
    )
    lines = []
    for values, what, why in signs:
        numbers = [strip.numbers[i] for i in np.flatnonzero(cuts.flat(values))]
        if numbers:
            lines.append(f"{strip.name}: {what} {spans(numbers)}: {why}")
    return lines


def _cut_warnings(strip: Strip, seen: cuts.Cuts) -> list[str]:
    signs = (
        (seen.jumps, "the picture changes suddenly"),
        (seen.held, "the label repeats, as at the start of a clip"),
    )
    return [
        f"{strip.name}: cuts found at {spans([strip.numbers[i] for i in at])} ({why}); "
        "if that is wrong, write a clips.csv (split,first,last), or set data.cuts=none"
        for at, why in signs
        if at
    ]


def _summary(strip: Strip, clips: Sequence[tuple[str, int, int]], sizes: Sizes) -> str:
    (width, height), _ = sizes.most_common(1)[0]
    frames, labels, size = len(strip.frames), len(strip.labels), f"{width}x{height}"
    if strip.split == "test":
        return f"{strip.name}: {frames} true frame{'s' * (frames != 1)}, {labels} labels, {size}"
    named = ", ".join(name.rpartition("/")[2] for name, *_ in clips[:CLIPS_NAMED])
    dots = ", ..." if len(clips) > CLIPS_NAMED else ""
    return (
        f"{strip.name}: {frames} frames in {len(clips)} clip{'s' * (len(clips) != 1)} ({named}{dots}), {size}"
    )
