"""The parts of ``cvaecli.plots`` that the pages use: the look of figures, and one run's figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from ..plots import KINDS, Request, drawer, make_runs, style
from ..tables import AbsentError

__all__ = ["one_run_figures", "style"]

ELSEWHERE = ("grid", "samples", "compare")
"""Kinds that a run's page leaves out: pictures have their own section."""


def one_run_figures(run: Path, split: str) -> Iterator[tuple[str, Figure]]:
    """(kind, figure) of every figure that the run's files allow."""
    request = Request(make_runs([run]), split)
    for kind in KINDS:
        if kind in ELSEWHERE:
            continue
        try:
            yield kind, drawer(kind)(request)
        except AbsentError:
            continue  # an unfinished run does not have all files yet
