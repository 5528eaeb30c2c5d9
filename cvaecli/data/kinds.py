"""The kinds of data set, each declared once: sizes, defaults, reader, built-in set.

The config schema and the command line take their defaults and texts from `KINDS`, so this file imports
nothing heavy. Readers and generators are named here and imported when a data set is opened.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from .cache import Writer
    from .images import File
    from .report import Report

Progress = Callable[[int, int], None]
"""Called with (done, total): pictures, or megabytes of TFRecords."""


class Source(Protocol):
    """What a reader looks like: a data set on disk. Making one lists its files and decodes nothing."""

    lends_val: ClassVar[bool]
    """Whether clips of train serve as val where there is no val split."""
    remedies: ClassVar[Mapping[str, str]]
    """By split: what to do where it is needed and has no folder."""
    files: list[File]
    """Every file that the clips depend on."""

    def __init__(self, root: Path) -> None:
        """Lists the files below ``root``."""

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether the folder ``root`` is clearly meant to be such a data set, complete or not."""

    @property
    def report(self) -> Report:
        """Faults and warnings of the listing alone."""

    @property
    def splits(self) -> set[str]:
        """The splits whose folder exists, good or not."""

    def nbytes(self, height: int, width: int) -> int:
        """Size of the decoded clips in bytes."""

    def convert(self, writer: Writer, cut: str, height: int, width: int, progress: Progress | None) -> Report:
        """Decodes everything into ``writer`` and names the clips.

        Args:
            writer: the cache entry to fill.
            cut: ``data.cuts``: ``auto`` or ``none``.
            height, width: frame size in pixels.
            progress: called with (done, total).

        Returns:
            Faults and warnings of the contents, and a summary. Where there are faults, here or in
            ``report``, no clips are named.
        """


@dataclass(frozen=True)
class BuiltIn:
    """The synthetic data set of a kind, for everyone without data of their own.

    Attributes:
        module: has ``generate(height, width, seed=...)`` and ``write(folder, height, width, ...)``.
        frames: frames of a clip.
        clips: number of clips by split.
        options: further arguments of ``write`` that ``cvae data synth`` offers.
    """

    module: str
    frames: int
    clips: Mapping[str, int]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of data set.

    Attributes:
        reader: ``module:class`` of a `Source`.
        built_in: the data set that serves where ``data.root`` is not set.
        height, width: usual frame size in pixels.
        n_past: usual number of true frames given at the start of a rollout.
        n_future: usual number of predicted frames; None: all that the clip has.
        columns: of condition vectors: the usual columns' names, by part, in order. Empty where
            conditions are label images. A data set may have others: see ``VideoData.condition_parts``.
    """

    reader: str
    built_in: BuiltIn
    height: int
    width: int
    n_past: int = 1
    n_future: int | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """The kind's own defaults of the config section ``data``."""
        return {name: getattr(self, name) for name in ("height", "width", "n_past", "n_future")}

    @property
    def condition_parts(self) -> dict[str, slice]:
        """Which of the usual columns of a condition vector are which, e.g. ``actions``: 0 to 4."""
        return parts(self.columns)

    def source(self) -> type[Source]:
        """The reader's class, imported now."""
        module, _, name = self.reader.partition(":")
        reader: type[Source] = getattr(import_module(module), name)
        return reader


def parts(columns: Mapping[str, Sequence[str]]) -> dict[str, slice]:
    """Where each part of a condition vector lies, from the names of each part's columns, in order."""
    ends = list(itertools.accumulate(map(len, columns.values()), initial=0))
    return {name: slice(*span) for name, span in zip(columns, itertools.pairwise(ends), strict=True)}


DEFAULT = "dance"
"""The kind where none is named."""

KINDS: dict[str, Kind] = {
    "dance": Kind(
        reader="cvaecli.data.dance:Dance",
        built_in=BuiltIn("cvaecli.synthetic.dancer", frames=630, clips={"train": 3, "val": 1, "test": 2}),
        height=32,
        width=64,
    ),
    "robot": Kind(
        reader="cvaecli.data.robot:Robot",
        built_in=BuiltIn(
            "cvaecli.synthetic.robot",
            frames=14,
            clips={"train": 256, "val": 32, "test": 32},
            options=("layout", "noise", "stray"),
        ),
        height=64,
        width=64,
        n_past=2,
        n_future=10,
        columns={"actions": ("dx", "dy", "dz", "gripper"), "positions": ("x", "y", "z")},
    ),
}
"""Every kind by the name that ``data.kind`` takes. A new kind is one class and one entry here."""
