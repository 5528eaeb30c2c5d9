"""The parts of a model that a training step calls, compiled; the model itself stays as it is."""

from __future__ import annotations

from typing import cast

import torch

from ..config.schema import RuntimeConfig
from ..models.base import VideoCVAE
from .device import Device

WORTH_IT = 5000
"""Steps of a run on CUDA that pay for the minute or two of compiling: a choice, not a measurement. On a CPU a
compiled step of the course architecture was as fast as a plain one, after 87 s of compiling."""


class _Compiled:
    """Looks like the model to ``unroll``; copies of the model do not inherit it."""

    def __init__(self, model: VideoCVAE) -> None:
        self.parallel, self.buffers = model.parallel, model.buffers
        for name in ("encode", "burn_in", "step", "unroll"):
            setattr(self, name, torch.compile(getattr(model, name), dynamic=False))


def compiled(model: VideoCVAE, runtime: RuntimeConfig, device: Device, total_steps: int) -> VideoCVAE:
    """The model for training steps, compiled where ``runtime.compile`` says so.

    Args:
        total_steps: of the whole run, so that a resumed one decides alike.
    """
    pays = device.torch.type == "cuda" and total_steps >= WORTH_IT
    if runtime.compile == "on" or (runtime.compile == "auto" and pays):
        return cast(VideoCVAE, _Compiled(model))
    return model
