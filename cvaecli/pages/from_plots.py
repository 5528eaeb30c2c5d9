"""What the pages use of ``cvaecli.plots``: table reading, the look of figures, and one run's figures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from .. import plots
from ..plots import style
from ..tables import AbsentError, Array, read_table

__all__ = ["AbsentError", "Array", "one_run_figures", "read_table", "style"]


def one_run_figures(run: Path, split: str) -> Iterator[tuple[str, str]]:
    """(kind, SVG text) of every figure that the run's files allow."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in plots.KINDS:
            if kind in ("grid", "samples", "compare"):  # pictures have a section of their own
                continue
            try:
                (path,) = plots.plot(kind, [run], Path(folder) / f"{kind}.svg", split=split)
            except AbsentError:
                continue  # an unfinished run has not all files yet
            yield kind, path.read_text(encoding="utf-8")
