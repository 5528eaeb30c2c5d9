"""Averages of weights: over the steps of one training, and with the initial weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..models.base import VideoCVAE


class WeightAverage:
    """Exponential moving average of a model's weights and buffers.

    ``w <- d w + (1 - d) w_t`` with ``d = min(decay, (1 + n) / (10 + n))`` after n updates, so that the
    untrained weights are soon forgotten (the warm-up of TensorFlow's ExponentialMovingAverage).

    Args:
        model: on its device; training must change its weights in place, never replace them.
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
        """Add the model's weights after step ``n``, counted from 0, to the average."""
        decay = min(self._decay, (1 + n) / (10 + n))
        averages, weights = zip(*self._floats, strict=True)
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for counter, value in self._counters:
            counter.copy_(value)


@torch.no_grad()
def interpolate(model: nn.Module, initial: dict[str, Tensor]) -> None:
    """Blend every weight tensor with its initial value. The more its direction has changed, the larger the
    share of the initial value (after Model Stock, Jang et al. 2024).

    ``w <- alpha w + (1 - alpha) w_0`` with ``alpha = 2 cos / (1 + cos)`` and cos the cosine similarity of the
    tensor with its initial value, clamped to [0, 1]: towards -1 alpha would grow without bound. Buffers do
    not change, nor do tensors that start as zeros, whose cosine is undefined.

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
