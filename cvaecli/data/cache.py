"""The cache of decoded clips: plain ``.npy`` arrays, opened as read-only memory maps.

An entry is a folder, named by its key, with one ``.npy`` file per array and a ``meta.json``. It is written
under a temporary name and renamed when it is complete, so that readers see either all of it or nothing. If
two processes write the same key, the first wins. An entry that does not match its ``meta.json`` is not used.
Nothing is pickled. The cache does not know where clips come from.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import mmap
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import platformdirs

from ..errors import CvaeError
from .clip import Clip, VideoData

FORMAT = 1
"""Part of every key: entries of another format are never opened."""
UNUSED_DAYS = 30
"""Entries that nobody has opened for this many days are removed when a new one is written."""

_ENTRY = re.compile(r"[0-9a-f]{32}")
_TEMPORARY = re.compile(r"tmp-[0-9a-f]{8}-.*")
_CHUNK = 16 * 1024 * 1024
_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)
"""Exceptions from a damaged entry. The remedy is always the same: make it again from the source."""


class Rows(NamedTuple):
    """Rows ``start`` to ``stop`` (exclusive) of the entry's array ``array``."""

    array: str
    start: int
    stop: int


def folder() -> Path:
    """The folder of all entries: ``clips`` below ``$CVAE_CACHE``, or below ``cvae`` in the user's cache
    folder."""
    chosen = os.environ.get("CVAE_CACHE")
    return (Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("cvae")) / "clips"


def make_key(*parts: object) -> str:
    """The key of an entry; it depends only on the ``repr`` of ``parts``."""
    return hashlib.sha256(repr((FORMAT, *parts)).encode()).hexdigest()[:32]


@functools.cache
def code_version(*modules: str) -> str:
    """A digest of the modules' source code, for the keys of the entries that they make.

    Entries made by another version of a reader or a generator are then not used, and no version number can be
    forgotten. For a package every file counts. Only the packages that contain the modules are imported.
    """
    total = hashlib.sha256()
    for module in modules:
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None, module
        path = Path(spec.origin)
        for file in sorted(path.parent.rglob("*.py")) if spec.submodule_search_locations else [path]:
            total.update(file.read_bytes())
    return total.hexdigest()[:16]


class Writer:
    """An entry that is being written: allocate arrays, fill them, name the clips in them.

    A long conversion consists of parts, each an entry of its own. After an interruption, finished parts are
    reused (`adopt`) if ``resume`` is true.

    Attributes:
        source, warnings, summary, condition_parts: see `VideoData`; set them before the entry is closed.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        self._path, self.resume = path, resume
        self.parts: set[str] = set()
        self._arrays: dict[str, np.memmap[Any, Any]] = {}
        self._clips: list[tuple[str, str, Rows, Rows]] = []
        self.source = ""
        self.warnings: list[str] = []
        self.summary: list[str] = []
        self.condition_parts: dict[str, slice] = {}

    def array(self, name: str, shape: Sequence[int], dtype: str = "uint8") -> npt.NDArray[Any]:
        """A new array of zeros, mapped from its own file."""
        path = self._path / f"{name}.npy"
        with _explained(self._path):
            made = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), tuple(shape))
            if hasattr(os, "posix_fallocate"):  # writing to a memory map on a full disk kills the process
                with path.open("rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        self._arrays[name] = made
        return np.asarray(made)

    def adopt(self, name: str, key: str, array: str) -> None:
        """Takes over an array of the entry ``key``, which is removed when this one is complete.

        The file is not copied where the file system supports hard links.

        Raises:
            CvaeError: the entry does not exist, or no longer.
        """
        found = arrays(key)
        if found is None:
            raise _vanished(key)
        with _explained(self._path):
            try:
                os.link(folder() / key / f"{array}.npy", self._path / f"{name}.npy")
            except OSError:  # no hard links here, or another process has just removed it
                self.array(name, found[array].shape, found[array].dtype.str)[:] = found[array]
            else:
                self._arrays[name] = np.load(self._path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        self.parts.add(key)

    def get(self, name: str) -> npt.NDArray[Any]:
        """An array of this entry."""
        return np.asarray(self._arrays[name])

    def release(self, name: str) -> None:
        """Frees the memory of an array's pages. Its contents stay in the file and can still be used.

        The system would take these pages back when it needs them, but until then they count as memory of
        this process, against its limits and in measurements.
        """
        pages = self._arrays[name].base
        if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)

    def clip(self, split: str, name: str, frames: Rows, condition: Rows) -> None:
        """Adds a clip: the rows of its frames ``[T, C, H, W]`` and of its condition ``[N, ...]``."""
        self._clips.append((split, name, frames, condition))

    def close(self) -> None:
        """Writes everything to the disk, ``meta.json`` last."""
        meta = {
            "format": FORMAT,
            "source": self.source,
            "warnings": self.warnings,
            "summary": self.summary,
            "condition_parts": {name: [at.start, at.stop] for name, at in self.condition_parts.items()},
            "fingerprint": self._fingerprint(),
            "arrays": {name: [made.dtype.str, list(made.shape)] for name, made in self._arrays.items()},
            "clips": self._clips,
        }
        for made in self._arrays.values():
            made.flush()
        self._arrays.clear()
        (self._path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")

    def _fingerprint(self) -> str:
        """Digest of the clips' contents: the same on every machine, independent of the files' times."""
        total, mapped = hashlib.sha256(), 0
        for split, name, *parts in self._clips:
            for rows in parts:
                made = self._arrays[rows.array]
                total.update(
                    repr((split, name, made.dtype.str, made.shape[1:], rows.stop - rows.start)).encode()
                )
                step = max(1, _CHUNK // max(1, made[:1].nbytes))
                for start in range(rows.start, rows.stop, step):
                    total.update(np.ascontiguousarray(made[start : min(start + step, rows.stop)]).data)
                mapped += (rows.stop - rows.start) * made[:1].nbytes
                if mapped > _CHUNK:
                    mapped = 0
                    self.release(rows.array)
        return total.hexdigest()[:16]


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Turns a failure to write into a one-line error."""
    try:
        yield
    except OSError as error:
        raise CvaeError(
            f"{place}: the cache cannot be written there ({error.strerror})",
            "set CVAE_CACHE to a folder that you can write to",
        ) from None


@contextlib.contextmanager
def writer(key: str, nbytes: int, resume: bool = False) -> Iterator[Writer]:
    """Writes the entry ``key``. It appears when the block ends, or not at all if the block raises.

    Args:
        key: from `make_key`.
        nbytes: size of the arrays. It is checked first, because a memory map on a full disk kills the
            process.
        resume: see `Writer`.

    Raises:
        CvaeError: the cache folder cannot be written or is too small.
    """
    home = folder()
    with _explained(home):
        home.mkdir(parents=True, exist_ok=True)
        _tidy(home)
        path = Path(tempfile.mkdtemp(prefix=f"tmp-{key[:8]}-", dir=home))
    try:
        free = shutil.disk_usage(home).free
        if free < nbytes + _CHUNK:
            raise CvaeError(
                f"{home}: the cache needs {nbytes / 1e6:.0f} MB, {free / 1e6:.0f} MB are free",
                "free some space, or set CVAE_CACHE to another folder",
            )
        entry = Writer(path, resume)
        yield entry
        with _explained(home):
            entry.close()
            _publish(path, home / key)
        for part in entry.parts:
            shutil.rmtree(home / part, ignore_errors=True)
    finally:
        shutil.rmtree(path, ignore_errors=True)  # does not exist if it was renamed


def load(key: str) -> VideoData | None:
    """Opens the entry ``key`` as read-only memory maps; None if it is missing or damaged."""
    try:
        meta, found = _read(key)
        data = VideoData(_clips(meta["clips"], found), str(meta["source"]), str(meta["fingerprint"]))
        data.warnings.extend(str(line) for line in meta["warnings"])
        data.summary.extend(str(line) for line in meta["summary"])
        data.condition_parts.update({str(name): slice(*at) for name, at in meta["condition_parts"].items()})
    except _DAMAGE:
        return None
    with contextlib.suppress(OSError):  # a shared cache may be read-only
        os.utime(folder() / key / "meta.json")
    return data


def arrays(key: str) -> dict[str, npt.NDArray[Any]] | None:
    """The entry's arrays by name, as read-only memory maps; None if it is missing or damaged."""
    try:
        return _read(key)[1]
    except _DAMAGE:
        return None


def store(
    key: str,
    splits: Mapping[str, Sequence[Clip]],
    source: str,
    condition_parts: Mapping[str, slice] | None = None,
) -> VideoData:
    """Writes clips from memory and opens the new entry. Arguments: see `VideoData`.

    Raises:
        CvaeError: as `writer`.
    """
    size = sum(clip.frames.nbytes + clip.condition.nbytes for clips in splits.values() for clip in clips)
    with writer(key, size) as entry:
        entry.source = source
        entry.condition_parts = dict(condition_parts or {})
        for split, clips in splits.items():
            for number, clip in enumerate(clips):
                rows = []
                for part, values in (("frames", clip.frames), ("condition", clip.condition)):
                    name = f"{split}-{number}-{part}"
                    entry.array(name, values.shape, values.dtype.str)[:] = values
                    rows.append(Rows(name, 0, len(values)))
                entry.clip(split, clip.name, rows[0], rows[1])
    return reopen(key)


def reopen(key: str) -> VideoData:
    """Opens the entry that was just written. Raises `CvaeError` if it is gone."""
    data = load(key)
    if data is None:
        raise _vanished(key)
    return data


def _vanished(key: str) -> CvaeError:
    return CvaeError(f"{folder() / key}: the cache entry disappeared while it was written", "start again")


def _read(key: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    path = folder() / key
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    if meta["format"] != FORMAT:
        raise ValueError(f"{path}: another format")
    return meta, {name: _open(path / f"{name}.npy", *kind) for name, kind in meta["arrays"].items()}


def _open(path: Path, dtype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if mapped.dtype.str != dtype or mapped.shape != tuple(shape):
        raise ValueError(f"{path}: not the array that meta.json describes")
    return np.asarray(mapped)  # a plain view: slicing np.memmap objects is slow


def _clips(rows: Sequence[Any], arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Sequence[Clip]]:
    splits: dict[str, list[Clip]] = {}
    for split, name, frames, condition in rows:
        parts = []
        for array, start, stop in (frames, condition):
            if not 0 <= start <= stop <= len(arrays[array]):
                raise ValueError(f"{name}: rows outside {array}")
            parts.append(arrays[array][start:stop])
        splits.setdefault(split, []).append(Clip(name, parts[0], parts[1]))
    return dict(splits)


def _publish(path: Path, final: Path) -> None:
    try:
        path.rename(final)
    except OSError:
        if load(final.name) is not None:
            return  # another process was first; both wrote the same
        shutil.rmtree(final, ignore_errors=True)  # a damaged entry
        path.rename(final)


def _tidy(home: Path) -> None:
    """Removes leftovers of killed processes after a day, and entries that nobody has opened for long."""
    now = time.time()
    for path in home.iterdir():
        temporary = _TEMPORARY.fullmatch(path.name) is not None
        if not temporary and not _ENTRY.fullmatch(path.name):
            continue  # not made by this module
        mark = path if temporary else path / "meta.json"
        with contextlib.suppress(OSError):  # not ours, or another process removes it too
            age = now - mark.stat().st_mtime
            if age > (1 if temporary else UNUSED_DAYS) * 86400:
                shutil.rmtree(path, ignore_errors=True)
