"""Data: every source is converted once into uint8 clips in a memory-mapped cache.

`load` opens a data set, `check` reports its faults. The kinds of data set are declared in `kinds`.
Names are imported on first use, so that reading the declarations does not need NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clip import Clip, VideoData
    from .kinds import KINDS, Kind, Source
    from .loading import MIN_FRAMES, check, kind_of, load
    from .report import Report

__all__ = [
    "KINDS",
    "MIN_FRAMES",
    "Clip",
    "Kind",
    "Report",
    "Source",
    "VideoData",
    "check",
    "kind_of",
    "load",
]

_HOME = {
    **dict.fromkeys(("Clip", "VideoData"), "clip"),
    **dict.fromkeys(("KINDS", "Kind", "Source"), "kinds"),
    **dict.fromkeys(("MIN_FRAMES", "check", "kind_of", "load"), "loading"),
    "Report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
