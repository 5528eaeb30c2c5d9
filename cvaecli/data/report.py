"""What is wrong or odd with a data set, in lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

LISTED = 20
"""Lines of one kind that are written out; further ones are only counted."""


@dataclass
class Report:
    """Everything found in one pass over a data set.

    Attributes:
        faults: what makes it unusable, one line each, with the file and the remedy.
        warnings: what is odd but usable, one line each.
        summary: what it holds, a line or two per split.
    """

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the data can be used."""
        return not self.faults


def capped(lines: Sequence[str], where: str) -> list[str]:
    """At most ``LISTED`` of ``lines``, then a line that counts the rest."""
    if len(lines) <= LISTED:
        return list(lines)
    return [*lines[:LISTED], f"{where}: and {len(lines) - LISTED} more like these"]


def spans(numbers: Sequence[int], step: int = 1) -> str:
    """Sorted numbers as short text, e.g. ``0-7, 9, 12-20``; long lists end in a count."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + step:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    more = len(texts) - LISTED
    return ", ".join(texts) if more <= 0 else ", ".join(texts[:LISTED]) + f" and {more} more"
