"""Figures drawn only from a run folder's files: metrics.csv, steps.csv, eval/<split>/, config.yaml, run.json.

Neither torch nor the run's data is needed, so a copied folder can be plotted anywhere. ``plot`` writes files.
Every kind is also a function ``<kind>_figure(Request) -> Figure``, which ``drawer(kind)`` returns. Several
runs make one comparison; they differ in colour and line style, for readers who print in grey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .kinds import KINDS, PLANNED, drawer

if TYPE_CHECKING:
    from .drawing import plot, plot_planned, save
    from .runs import Request, Run, make_runs

__all__ = ["KINDS", "PLANNED", "Request", "Run", "drawer", "make_runs", "plot", "plot_planned", "save"]

_HOME = {
    **dict.fromkeys(("plot", "plot_planned", "save"), "drawing"),
    **dict.fromkeys(("Request", "Run", "make_runs"), "runs"),
}


def __getattr__(name: str) -> Any:
    """Import modules that need matplotlib on first use: `cvae plot --help` needs only the names of the
    kinds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
