"""The kinds of figure, named once: the command line, ``plot`` and ``all`` read this table.

Nothing heavy is imported here: ``cvae plot --help`` lists the kinds without loading matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .runs import Request


class Kind(NamedTuple):
    """One kind of figure. ``module`` (of this package) holds ``<name>_figure(request) -> Figure``."""

    module: str
    help: str
    planned: bool = False
    """It depends only on the config, so it can be drawn without a run."""


KINDS: dict[str, Kind] = {
    "training": Kind("training", "loss, reconstruction, PSNR, beta and tfr over training"),
    "loss": Kind("loss", "training and validation loss"),
    "psnr": Kind("psnr", "PSNR of each predicted frame"),
    "epochs": Kind("epochs", "validation PSNR over training, with beta and tfr"),
    "beta": Kind("schedules", "KL weight", planned=True),
    "tfr": Kind("schedules", "teacher-forcing ratio", planned=True),
    "lr": Kind("schedules", "learning rate", planned=True),
    "kl": Kind("loss", "KL in nats per frame"),
    "gap": Kind("gap", "PSNR of each frame with z from the posterior and from the prior, and KL"),
    "grid": Kind("grid", "pictures: truth and predictions over time (also as .gif)"),
    "samples": Kind("samples", "several sampled futures of one clip, with the truth"),
    "compare": Kind("compare", "settings over seeds, with a table (.md, .csv)"),
}
PLANNED = tuple(name for name, kind in KINDS.items() if kind.planned)


def drawer(name: str) -> Callable[[Request], Figure]:
    """The function that draws this kind."""
    module = import_module(f".{KINDS[name].module}", __package__)
    draw: Callable[[Request], Figure] = getattr(module, f"{name}_figure")
    return draw
