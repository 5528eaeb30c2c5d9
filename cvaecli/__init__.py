"""Conditional variational autoencoders for video prediction.

These functions are the ones that the commands call: ``train``, ``resume``, ``validate``, ``predict``,
``export_gif``, ``export``, ``convert``, ``plot``, ``dry_run``, ``bench`` and ``load_config``. PyTorch and
matplotlib are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import bench, convert, dry_run, export, export_gif, plot, predict, resume, train, validate
    from .config.loading import load as load_config
    from .config.schema import RunConfig

__all__ = [
    "RunConfig",
    "bench",
    "convert",
    "dry_run",
    "export",
    "export_gif",
    "load_config",
    "plot",
    "predict",
    "resume",
    "train",
    "validate",
]

_HOME = {
    **{name: ("api", name) for name in __all__},
    "RunConfig": ("config.schema", "RunConfig"),
    "load_config": ("config.loading", "load"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOME[name]
    return getattr(import_module(f".{module}", __name__), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
