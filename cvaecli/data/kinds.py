"""The kinds of data set, each declared once: sizes, defaults, reader, built-in set.

The config schema and the command line take their defaults and texts from `KINDS`, so this file must import
quickly. Readers and generators are only named here; they are imported when a data set is opened.
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
    """The protocol of readers. A reader is a data set on disk; its constructor lists files and decodes
    nothing."""

    val_from_train: ClassVar[bool]
    """Whether clips of train serve as val if there is no val split."""
    remedies: ClassVar[Mapping[str, str]]
    """What to do if a split is needed and has no folder, by split."""
    files: list[File]
    """Every file that the clips depend on."""

    def __init__(self, root: Path) -> None:
        """Lists the files below ``root``."""

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Whether ``root`` clearly contains a data set of this kind, complete or not."""

    @property
    def report(self) -> Report:
        """Faults and warnings of the listing alone."""

    @property
    def splits(self) -> set[str]:
        """The splits whose folder exists, usable or not."""

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
            Faults and warnings of the contents, and a summary. If there are faults, here or in ``report``,
            no clips are named.
        """


@dataclass(frozen=True)
class BuiltIn:
    """The synthetic data set of a kind, for use without any data of your own.

    Attributes:
        module: has ``generate(height, width, seed=...)`` and ``write(folder, height, width, ...)``.
        frames: number of frames of a clip.
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
        built_in: the data set that is used if ``data.root`` is not set.
        height, width: default frame size in pixels.
        n_past: default number of true frames given at the start of a rollout.
        n_future: default number of predicted frames; None: all frames of the clip.
        columns: names of the usual columns of condition vectors, by part, in order. Empty if conditions
            are label images. A data set may have other columns: see ``VideoData.condition_parts``.
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
        """The columns of each part of a usual condition vector, e.g. ``actions``: 0 to 4."""
        return parts(self.columns)

    def source(self) -> type[Source]:
        """Import the reader's class."""
        module, _, name = self.reader.partition(":")
        reader: type[Source] = getattr(import_module(module), name)
        return reader


def parts(columns: Mapping[str, Sequence[str]]) -> dict[str, slice]:
    """The columns of each part of a condition vector, from the names of each part's columns, in order."""
    ends = list(itertools.accumulate(map(len, columns.values()), initial=0))
    return {name: slice(*span) for name, span in zip(columns, itertools.pairwise(ends), strict=True)}


DEFAULT = "dance"
"""The kind if none is named."""

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
"""Every kind by its name in ``data.kind``. A new kind is one class and one entry here."""
