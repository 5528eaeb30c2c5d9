"""Averages of weights: over the steps of one training, and with the initial weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..models.base import VideoCVAE


class WeightAverage:
    """Exponential moving average of a model's weights and buffers.

    ``w <- d w + (1 - d) w_t`` with ``d = min(decay, (1 + n) / (10 + n))`` after n updates, so that the
    first steps do not linger (the warm-up of TensorFlow's ExponentialMovingAverage).

    Args:
        model: on its device; its weights are changed in place from here on, never replaced.
    """

    def __init__(self, model: VideoCVAE, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay
        # Looked up once: training changes these tensors in place.
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take in the model's weights after step ``n`` (from 0)."""
        decay = min(self._decay, (1 + n) / (10 + n))
        mine, theirs = zip(*self._floats, strict=True)
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for counter, value in self._counters:
            counter.copy_(value)


@torch.no_grad()
def interpolate(model: nn.Module, initial: dict[str, Tensor]) -> None:
    """Blend every weight with its initial value by how much its direction has kept.

    ``alpha = 2 cos / (1 + cos)``, ``w <- alpha w + (1 - alpha) w_0`` with cos the cosine similarity of
    the tensor with its initial value (after Model Stock, Jang et al. 2024). Buffers are left out, and
    tensors that start as zeros, whose cosine is undefined. cos is clamped to [0, 1]: towards -1 alpha
    explodes, and a negative alpha would point away from both.

    Args:
        initial: the weights before training, by parameter name.
    """
    for name, weight in model.named_parameters():
        start = initial[name].to(weight.device)
        norms = weight.norm() * start.norm()
        if norms == 0:
            continue
        cos = ((weight * start).sum() / norms).clamp(0, 1)
        weight.lerp_(start, 1 - 2 * cos / (1 + cos))
