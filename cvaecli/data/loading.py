"""Reads a folder into clips: `load` for a run, `check` for preparing a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, UserError
from . import cache
from .clip import Clip, VideoData
from .kinds import DEFAULT, KINDS, Progress, Source
from .report import Report, capped

MIN_FRAMES = 3
"""Shortest useful clip: a given frame, one predicted from it, and one predicted from a prediction."""


class _Request(NamedTuple):
    """A data set on disk, and the size and cuts of its clips."""

    root: Path
    kind: str
    height: int
    width: int
    cuts: str

    def key(self, source: Source) -> str:
        """The key of the cache entry that holds these clips."""
        files = [(file.name, file.size, file.mtime_ns) for file in source.files]
        reader = KINDS[self.kind].reader.partition(":")[0]
        version = cache.code_version(reader, "cvaecli.data.images")
        # With the root: files from archives can have equal names, sizes and times in different sets.
        root = str(self.root.resolve())
        return cache.make_key(self.kind, version, root, files, self.height, self.width, self.cuts)


def load(
    root: Path | None,
    *,
    kind: str = DEFAULT,
    height: int,
    width: int,
    cuts: str = "auto",
    min_frames: int | Mapping[str, int] = MIN_FRAMES,
    train_frames: int | None = None,
    need: Sequence[str] = ("train", "val"),
    seed: int = 0,
    progress: Progress | None = None,
) -> VideoData:
    """Opens a data set. Decodes it first if it is not in the cache.

    Args:
        root: folder of the data set; None gives the built-in synthetic set.
        kind: a key of `KINDS`.
        height: frame height in pixels; everything is resized to it.
        width: frame width in pixels.
        cuts: ``auto`` finds clip boundaries in the pictures, ``none`` takes each folder as one clip.
        min_frames: shortest usable clip, or one number per split. Shorter clips are left out with a
            warning. For a test sequence the number of conditions counts, not the number of true frames.
        train_frames: use only this many frames of every training clip, from its start; None: all.
        need: splits that must have at least one usable clip. Other splits are loaded if they exist.
        seed: seed of the synthetic set; nothing else is random.
        progress: called with (done, total) while decoding.

    Returns:
        The clips as read-only arrays: frames and label images uint8 ``[T, 3, H, W]``, RGB; condition
        vectors float32 ``[T, D]``.

    Raises:
        DataError: with every fault of the data in ``faults``, one line each.
        UserError: an unknown ``kind`` or ``cuts``, or ``train_frames`` is too small.
        CvaeError: the cache cannot be written.
    """
    _refuse_unknown(kind, cuts)
    shortest = _shortest(min_frames, "train")
    if train_frames is not None and train_frames < shortest:
        raise UserError(
            f"data.train_frames: {train_frames}, but training needs {shortest} frames of a clip",
            "raise it, or lower train.window",
        )
    if root is None:
        data, where = _built_in(kind, height, width, seed), "the built-in synthetic set"
    else:
        data, where = _opened(_Request(root, kind, height, width, cuts), need, progress), str(root)
    data = _usable(data, min_frames, need, where)
    if train_frames is not None and "train" in data.splits:
        data.splits["train"] = [clip.first(train_frames) for clip in data.splits["train"]]
    return data


def check(
    root: Path,
    *,
    kind: str = DEFAULT,
    height: int | None = None,
    width: int | None = None,
    cuts: str = "auto",
    min_frames: int | Mapping[str, int] = MIN_FRAMES,
    progress: Progress | None = None,
) -> Report:
    """Reads every picture of a data set, cached or not, and reports all its faults.

    A set with only test sequences is usable for prediction; a warning says that it has no training data. A
    usable set is in the cache afterwards. Arguments as in `load`; what `load` raises is a fault here. Height
    and width default to those of ``kind``.

    Raises:
        UserError: an unknown ``kind`` or ``cuts``.
        CvaeError: the cache cannot be written.
    """
    _refuse_unknown(kind, cuts)
    try:
        source = _open(root, kind)
    except DataError as error:
        return Report(faults=error.faults)
    need: Sequence[str] = ("test",) if source.splits == {"test"} else ("train", "val")
    if source.val_from_train:
        need = [split for split in ("train", "val", "test") if split in source.splits]
    request = _Request(root, kind, height or KINDS[kind].height, width or KINDS[kind].width, cuts)
    source.report.faults = _all_faults(source, request, need)
    try:
        found = _write(source, request, request.key(source), progress)
        data = cache.reopen(request.key(source))
        data.warnings[:0] = source.report.warnings
        data = _usable(data, min_frames, need, str(root))
    except DataError as error:
        return Report(faults=error.faults, warnings=source.report.warnings)
    alone = [] if "train" in need else [f"{root}: {' and '.join(need)} sequences only, nothing to train on"]
    return Report([], data.warnings + alone, found.summary)


def kind_of(root: Path) -> str | None:
    """The kind of the data set in a folder, a key of `KINDS`; None if it is not clear."""
    if not os.path.isdir(root) or not os.access(root, os.R_OK | os.X_OK):  # noqa: PTH112
        return None
    return next((name for name, kind in KINDS.items() if kind.source().recognises(root.resolve())), None)


def _refuse_unknown(kind: str, cuts: str) -> None:
    for key, value, allowed in (("data.kind", kind, list(KINDS)), ("data.cuts", cuts, ["auto", "none"])):
        if value not in allowed:
            raise UserError(f"{key}: {value!r} is not allowed", f"use {' or '.join(allowed)}")


def _opened(request: _Request, need: Sequence[str], progress: Progress | None) -> VideoData:
    """The data set on disk, from the cache if possible."""
    source = _open(request.root, request.kind)
    source.report.faults = _all_faults(source, request, need)
    key = request.key(source)
    data = cache.load(key) if source.report.ok else None
    if data is None:
        _write(source, request, key, progress, resume=True)
        data = replace(cache.reopen(key), converted=True)
    data.warnings[:0] = source.report.warnings
    return data


def _open(root: Path, kind: str) -> Source:
    # os.path, because Path raises if a parent folder may not be entered.
    fault = "this is a file" if os.path.exists(root) else "the folder does not exist"  # noqa: PTH110
    if os.path.isdir(root):  # noqa: PTH112
        fault = "" if os.access(root, os.R_OK | os.X_OK) else "the folder cannot be opened"
    if fault:
        raise _error(root, [f"{root}: {fault}; give the folder that holds train, val or test"])
    return KINDS[kind].source()(root.resolve())


def _all_faults(source: Source, request: _Request, need: Sequence[str]) -> list[str]:
    """The listing's faults and the missing splits, or a single fault if the set is clearly of another
    kind."""
    from_train = {"val"} if source.val_from_train and "train" in source.splits else set()
    faults = source.report.faults + [
        f"{split}: the {split} folder does not exist; {source.remedies[split]}"
        for split in need
        if source.splits and split not in source.splits | from_train
    ]
    other = kind_of(request.root) if faults else None
    if other in (None, request.kind):
        return faults
    return [
        f"{request.root}: a {other} set, read as {request.kind}; train with a config that has "
        f"data.kind: {other}, check with --kind {other}"
    ]


def _write(
    source: Source, request: _Request, key: str, progress: Progress | None, resume: bool = False
) -> Report:
    """Converts the source into the cache. Raises `DataError` with all faults, including the listing's."""
    size = request.height, request.width
    with cache.writer(key, source.nbytes(*size), resume) as entry:
        found = source.convert(entry, request.cuts, *size, progress)
        faults = source.report.faults + found.faults
        if faults:
            raise _error(request.root, faults)
        entry.summary = found.summary
    return found


def _error(root: Path, faults: list[str]) -> DataError:
    if len(faults) == 1:
        return DataError(faults[0], "", faults)
    return DataError(
        f"{root}: {len(faults)} faults in the data; the first: {faults[0]}", "see `cvae data check`", faults
    )


def _shortest(min_frames: int | Mapping[str, int], split: str) -> int:
    return min_frames if isinstance(min_frames, int) else min_frames.get(split, 1)


def _usable(
    data: VideoData, min_frames: int | Mapping[str, int], need: Sequence[str], where: str
) -> VideoData:
    """Leaves out clips that are too short. Raises `DataError` if a needed split has none left."""
    splits: dict[str, Sequence[Clip]] = {}
    warnings, faults = list(data.warnings), []
    for split, clips in data.splits.items():
        least = _shortest(min_frames, split)
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
    return replace(data, splits=splits, warnings=warnings)


def _built_in(kind: str, height: int, width: int, seed: int) -> VideoData:
    """The synthetic set. Its generator is imported only if the set is not in the cache."""
    declared = KINDS[kind].built_in
    version = cache.code_version(declared.module)
    key = cache.make_key("synthetic", version, declared.frames, dict(declared.clips), height, width, seed)
    data = cache.load(key)
    if data is None:
        splits = import_module(declared.module).generate(height, width, seed=seed)
        source = f"built-in synthetic set, seed {seed}"
        data = cache.store(key, splits, source, KINDS[kind].condition_parts)
    return data
