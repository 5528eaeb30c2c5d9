"""Models by name. ``models/<name>.py`` exports ``MODEL``: adding a model is adding that one file."""

from __future__ import annotations

import importlib
import pkgutil

from .base import VideoCVAE

_NOT_MODELS = {"base", "layers", "pose_checkpoint"}


def names() -> list[str]:
    """Names of all models."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_MODELS)


def load(name: str) -> type[VideoCVAE]:
    """The model class of a name out of ``names()``."""
    model: type[VideoCVAE] = importlib.import_module(f"{__name__}.{name}").MODEL
    return model
