"""Models by name. A module or package here that defines ``MODEL`` is a model, named after its file."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from .base import VideoCVAE


def names() -> list[str]:
    """Names of all models."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if hasattr(_module(name), "MODEL"))


def load(name: str) -> type[VideoCVAE]:
    """The model class of one of ``names()``."""
    model: type[VideoCVAE] = _module(name).MODEL
    return model


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
