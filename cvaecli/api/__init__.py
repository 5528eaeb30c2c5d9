"""Train, validate, predict, plot, export: what the commands do, as functions.

They connect config, data, model, engine and run folder. Progress goes to a ``Reporter``; results are returned
and written into the run folder.
"""

from __future__ import annotations

from .benchmark import bench
from .converting import convert
from .estimating import dry_run
from .exporting import export
from .plotting import plot, plot_schedule
from .prediction import export_gif, predict
from .resuming import resume
from .training import train
from .validation import evaluation, validate

__all__ = [
    "bench",
    "convert",
    "dry_run",
    "evaluation",
    "export",
    "export_gif",
    "plot",
    "plot_schedule",
    "predict",
    "resume",
    "train",
    "validate",
]
