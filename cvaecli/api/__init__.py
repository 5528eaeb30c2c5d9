"""Train, validate, predict, plot, export: config, data, model, engine and run folder joined.

The command line and Python users call the same functions. Progress goes to a ``Reporter``; results
are returned and written into the run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..run import find
from .benchmark import bench
from .loading import RUNS
from .prediction import export_gif, predict
from .training import dry_run, resume, train
from .validation import evaluation, validate

__all__ = ["bench", "dry_run", "evaluation", "export_gif", "plot", "predict", "resume", "train", "validate"]


def plot(
    kind: str, run_specs: Sequence[str | Path], *, out: Path | None = None, runs: Path = RUNS
) -> list[Path]:
    """Figures from the run folders' files; several runs become one comparison. See ``plots.plot``."""
    from .. import plots

    specs: Sequence[str | Path | None] = run_specs or [None]
    return plots.plot(kind, [find(spec, runs)[0].path for spec in specs], out)
