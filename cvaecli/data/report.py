"""Faults and warnings about a data set, as readable lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Sizes = Counter[tuple[int, int]]
"""The number of pictures of each (width, height)."""

LISTED = 20
"""Number of lines of one kind that are written out; further ones are only counted."""
SIZES_NAMED = 3
STRETCH = 0.05
"""Pictures whose proportions change by less than this share are not reported as stretched."""


@dataclass
class Report:
    """Everything found in one pass over a data set.

    Attributes:
        faults: what makes it unusable, one line each, with the file and the remedy.
        warnings: what is odd but usable, one line each.
        summary: its contents, one or two lines per split.
    """

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the data can be used."""
        return not self.faults


def capped(lines: Sequence[str], where: str) -> list[str]:
    """The first ``LISTED`` of ``lines``, then a line that counts the others."""
    if len(lines) <= LISTED:
        return list(lines)
    return [*lines[:LISTED], f"{where}: and {len(lines) - LISTED} more like these"]


def spans(numbers: Sequence[int]) -> str:
    """Sorted numbers as short text, e.g. ``0-7, 9, 12-20``; long lists end in a count."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    more = len(texts) - LISTED
    return ", ".join(texts) if more <= 0 else ", ".join(texts[:LISTED]) + f" and {more} more"


def size_warnings(sizes: Mapping[str, Sizes], height: int, width: int) -> list[str]:
    """Warnings about pictures of different sizes, and about those stretched to ``height`` x ``width``.

    Args:
        sizes: sizes of the frames in the files, by split or sequence; each has at least one.
        height, width: frame size after resizing, in pixels.
    """
    lines = []
    stretched: dict[tuple[int, int], list[str]] = {}
    for where, found in sizes.items():
        if len(found) > 1:
            texts = [f"{w}x{h}: {count}" for (w, h), count in found.most_common(SIZES_NAMED)]
            dots = ", ..." if len(found) > SIZES_NAMED else ""
            lines.append(f"{where}: frames of different sizes ({', '.join(texts)}{dots}); all are resized")
        (w, h), _ = found.most_common(1)[0]
        if abs(math.log(w / h / (width / height))) > STRETCH:
            stretched.setdefault((w, h), []).append(where)
    for (w, h), places in stretched.items():
        more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
        lines.append(
            f"{', '.join(places[:LISTED])}{more}: frames are {w}x{h} (width x height) and are stretched to "
            f"{width}x{height}; set data.width and data.height to the same proportions to avoid that"
        )
    return lines
