"""Data: any source is turned once into uint8 clips in a memory-mapped cache.

`load` gives the clips, `check` every fault of a data set. A new kind of source is one module with a
class like `Source`, and an entry in `SOURCES`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import DataError, UserError
from . import cache
from .cache import Writer
from .clip import Clip, VideoData, digest
from .dance.source import Dance, is_dance
from .images import File
from .report import Report, capped
from .robot import condition_parts, is_robot, open_robot

__all__ = ["MIN_FRAMES", "SOURCES", "Clip", "Report", "VideoData", "check", "kind_of", "load"]

Progress = Callable[[int, int], None]
"""Called with (done, in all): pictures, or megabytes of TFRecords."""

MIN_FRAMES = 3
"""Shortest useful clip: a given frame, one to predict from it, and one to predict from a prediction."""


class Source(Protocol):
    """A data set on disk. Making one lists its files and decodes nothing."""

    report: Report
    """Faults and warnings of the listing."""
    files: list[File]
    """Every file the clips depend on."""

    @property
    def splits(self) -> set[str]:
        """The splits that are there, good or not."""

    def nbytes(self, height: int, width: int) -> int:
        """Size of the decoded clips."""

    def convert(self, writer: Writer, cut: str, height: int, width: int, progress: Progress | None) -> Report:
        """Decodes everything into ``writer`` and names the clips; returns what was found."""


class Kind(NamedTuple):
    """A kind of data set and its built-in stand-in."""

    open: Callable[[Path], Source]
    size: tuple[int, int]
    """Usual frame height and width."""
    synthetic: str
    """The package in ``cvaecli.synthetic`` whose ``generate`` draws the built-in set."""
    lends: bool
    """Whether train lends trajectories to val where there is no such split."""
    remedies: Mapping[str, str]
    """What to do where a needed split has no folder."""
    meant: Callable[[Path], bool]
    """Whether a folder is clearly such a set, complete or not."""


SOURCES: dict[str, Kind] = {
    "dance": Kind(
        open=Dance,
        size=(32, 64),
        synthetic="dancer",
        lends=False,
        remedies={
            "train": "training needs train/train_img and train/train_label; add them",
            "val": "validation needs val/val_img and val/val_label; "
            "add them, or move frames there from train",
            "test": "add test/test_img/S/0.png and test/test_label/S/N.png, or use another split",
        },
        meant=is_dance,
    ),
    "robot": Kind(
        open=open_robot,
        size=(64, 64),
        synthetic="robot",
        lends=True,
        remedies={
            "train": "training needs train/traj_*/N/0.png, ... with tables, or train/*.tfrecords; add them",
            "val": "validation needs validate/traj_*/N/0.png, ... with tables; add them",
            "test": "add test/traj_*/N/0.png, ... with tables, or test/*.tfrecords, or use another split",
        },
        meant=is_robot,
    ),
}


def load(
    root: Path | None,
    *,
    kind: str = "dance",
    height: int,
    width: int,
    cuts: str = "auto",
    min_frames: int | Mapping[str, int] = MIN_FRAMES,
    need: Sequence[str] = ("train", "val"),
    seed: int = 0,
    progress: Progress | None = None,
) -> VideoData:
    """Opens a data set; decodes it first if its cache is not there.

    Args:
        root: folder of the data set; None gives the built-in synthetic set.
        kind: a key of `SOURCES`.
        height: frame height in pixels; everything is resized to it.
        width: frame width in pixels.
        cuts: ``auto`` finds clip boundaries in the pictures, ``none`` takes each folder as one clip.
        min_frames: shortest usable clip, or one number a split; shorter clips are left out with a
            warning. Of a test sequence the conditions count, not the true frames.
        need: splits that must be there with at least one usable clip; others are given where they are.
        seed: of the synthetic set; nothing else is random.
        progress: called with (done, in all) while decoding.

    Returns:
        The clips as read-only arrays: frames and label images uint8 ``[T, 3, H, W]``, RGB; condition
        vectors float32 ``[T, D]``.

    Raises:
        DataError: with every fault of the data in ``faults``, one line each.
        UserError: an unknown ``kind`` or ``cuts``.
        CvaeError: the cache cannot be written.
    """
    if root is None:
        _refuse(kind, cuts)
        drawn = _synthetic(kind, height, width, seed)
        return _usable(drawn, min_frames, need, "the built-in synthetic set")
    source = _open(root, kind, cuts)
    source.report.faults = _mistaken(root, kind, source.report.faults + _missing(source, kind, need))
    key = _key(source, root, kind, height, width, cuts)
    data = cache.load(key) if source.report.ok else None
    if data is None:
        _write(source, key, cuts, height, width, progress, root, resume=True)
        data = replace(cache.reopen(key), converted=True)
    data.warnings[:0] = source.report.warnings
    return _usable(data, min_frames, need, str(root))


def check(
    root: Path,
    *,
    kind: str = "dance",
    height: int | None = None,
    width: int | None = None,
    cuts: str = "auto",
    min_frames: int | Mapping[str, int] = MIN_FRAMES,
    progress: Progress | None = None,
) -> Report:
    """Reads every picture of a data set again, cached or not, and tells all that is wrong with it.

    A set with test sequences only is good for prediction: that nothing can be trained on is a warning.
    A good set is in the cache afterwards. Arguments as in `load`, which raises what is a fault here;
    height and width are the usual ones of ``kind`` when unset.

    Raises:
        UserError: an unknown ``kind`` or ``cuts``.
        CvaeError: the cache cannot be written.
    """
    try:
        source = _open(root, kind, cuts)
    except DataError as error:
        return Report(faults=error.faults)
    need: Sequence[str] = ("test",) if source.splits == {"test"} else ("train", "val")
    if SOURCES[kind].lends:
        need = [split for split in ("train", "val", "test") if split in source.splits]
    height, width = height or SOURCES[kind].size[0], width or SOURCES[kind].size[1]
    source.report.faults = _mistaken(root, kind, source.report.faults + _missing(source, kind, need))
    key = _key(source, root, kind, height, width, cuts)
    try:
        found = _write(source, key, cuts, height, width, progress, root)
        data = cache.reopen(key)
        data.warnings[:0] = source.report.warnings
        data = _usable(data, min_frames, need, str(root))
    except DataError as error:
        return Report(faults=error.faults, warnings=source.report.warnings)
    alone = [] if "train" in need else [f"{root}: {' and '.join(need)} sequences only, nothing to train on"]
    return Report([], data.warnings + alone, found.summary)


def kind_of(root: Path) -> str | None:
    """The kind of the data set in a folder, a key of `SOURCES`; None where that is not clear."""
    if not os.path.isdir(root) or not os.access(root, os.R_OK | os.X_OK):  # noqa: PTH112
        return None
    return next((name for name, kind in SOURCES.items() if kind.meant(root.resolve())), None)


def _mistaken(root: Path, kind: str, faults: list[str]) -> list[str]:
    """One line instead of the faults of a set that is clearly of another kind."""
    other = kind_of(root) if faults else None
    if other in (None, kind):
        return faults
    return [
        f"{root}: a {other} set, read as {kind}; train with a config of data.kind: {other}, "
        f"check with --kind {other}"
    ]


def _refuse(kind: str, cuts: str) -> None:
    for key, value, allowed in (("data.kind", kind, list(SOURCES)), ("data.cuts", cuts, ["auto", "none"])):
        if value not in allowed:
            raise UserError(f"{key}: {value!r} is not allowed", f"use {' or '.join(allowed)}")


def _open(root: Path, kind: str, cuts: str) -> Source:
    _refuse(kind, cuts)
    # os.path, because Path raises where a folder above may not be entered.
    fault = "this is a file" if os.path.exists(root) else "the folder does not exist"  # noqa: PTH110
    if os.path.isdir(root):  # noqa: PTH112
        fault = "" if os.access(root, os.R_OK | os.X_OK) else "the folder cannot be opened"
    if fault:
        raise _error(root, [f"{root}: {fault}; give the folder that holds train, val or test"])
    return SOURCES[kind].open(root.resolve())


def _missing(source: Source, kind: str, need: Sequence[str]) -> list[str]:
    """A line for each needed split without a folder, unless there is nothing at all."""
    lent = {"val"} if SOURCES[kind].lends and "train" in source.splits else set()
    return [
        f"{split}: the {split} folder does not exist; {SOURCES[kind].remedies[split]}"
        for split in need
        if source.splits and split not in source.splits | lent
    ]


def _key(source: Source, root: Path, kind: str, height: int, width: int, cuts: str) -> str:
    files = [(file.name, file.size, file.mtime_ns) for file in source.files]
    # The root counts too: archives can give different sets equal names, sizes and times.
    return cache.make_key(kind, str(root.resolve()), files, height, width, cuts)


def _write(
    source: Source,
    key: str,
    cuts: str,
    height: int,
    width: int,
    progress: Progress | None,
    root: Path,
    resume: bool = False,
) -> Report:
    """Converts the source into the cache. Raises `DataError` with all faults, the listing's too."""
    with cache.writer(key, source.nbytes(height, width), resume) as entry:
        found = source.convert(entry, cuts, height, width, progress)
        faults = source.report.faults + found.faults
        if faults:
            raise _error(root, faults)
        entry.summary = found.summary
    return found


def _error(root: Path, faults: list[str]) -> DataError:
    if len(faults) == 1:
        return DataError(faults[0], "", faults)
    return DataError(
        f"{root}: {len(faults)} faults in the data; the first: {faults[0]}", "see `cvae data check`", faults
    )


def _usable(
    data: VideoData, min_frames: int | Mapping[str, int], need: Sequence[str], where: str
) -> VideoData:
    """Leaves out clips that are too short. Raises `DataError` where a needed split keeps none."""
    splits: dict[str, Sequence[Clip]] = {}
    warnings, faults = list(data.warnings), []
    for split, clips in data.splits.items():
        least = min_frames if isinstance(min_frames, int) else min_frames.get(split, 1)
        length = {clip.name: clip.n_steps if split == "test" else clip.n_frames for clip in clips}
        kept = [clip for clip in clips if length[clip.name] >= least]
        if kept:
            splits[split] = kept
            short = [
                f"{clip.name}: left out, its {length[clip.name]} frames are fewer than the {least} needed"
                for clip in clips
                if length[clip.name] < least
            ]
            warnings += capped(short, split)
        elif split in need:
            longest = max(length.values(), default=0)
            faults.append(
                f"{split}: the longest clip has {longest} frames, at least {least} are needed; add frames"
            )
    faults += [f"{split}: there are no {split} clips" for split in need if split not in data.splits]
    if faults:
        raise _error(Path(where), faults)
    first = next((clip for clips in splits.values() for clip in clips), None)
    vectors = first is not None and first.condition.ndim == 2
    parts = condition_parts(first.condition.shape[1]) if vectors and first is not None else {}
    return replace(data, splits=splits, warnings=warnings, condition_parts=parts)


def _synthetic(kind: str, height: int, width: int, seed: int) -> VideoData:
    # The generator's own text is its version: no number to forget, and no import when the cache is there.
    module = import_module(f"cvaecli.synthetic.{SOURCES[kind].synthetic}")
    text = [path.read_bytes() for path in sorted(Path(str(module.__file__)).parent.glob("*.py"))]
    key = cache.make_key("synthetic", digest(text), height, width, seed)
    source = f"built-in synthetic set, seed {seed}"
    data = cache.load(key)
    if data is None:
        splits = module.generate(height, width, seed=seed)
        data = cache.store(key, splits, source)
    return data
