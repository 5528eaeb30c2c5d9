"""Shared code for z: the prior N(0, I), and Gaussians from a network's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Gaussian
from .layers import at_least_float32


def standard_normal(like: Tensor) -> Gaussian:
    """N(0, I) in the shape of ``like``; float32, without allocating memory."""
    zeros = like.new_zeros((), dtype=torch.float32).expand(like.shape)
    return Gaussian(zeros, zeros)


def to_gaussian(output: Tensor) -> Gaussian:
    """``mu`` and ``logvar`` in float32, each half of the channels ``[N, 2 * z_dim, ...]``."""
    mu, logvar = at_least_float32(output).chunk(2, 1)
    return Gaussian(mu, logvar)


def clamp_logvar(gaussian: Gaussian, bound: float | tuple[float, float] | None) -> Gaussian:
    """The Gaussian with ``logvar`` clamped to [-bound, bound] or to an interval; None: unchanged."""
    if bound is None:
        return gaussian
    low, high = (-bound, bound) if isinstance(bound, float | int) else bound
    return Gaussian(gaussian.mu, gaussian.logvar.clamp(low, high))


def last_convolution(inputs: int, z_dim: int) -> nn.Conv2d:
    """1x1 convolution to mu and logvar with near-zero initial weights: it starts near N(0, I) for any
    input."""
    conv = nn.Conv2d(inputs, 2 * z_dim, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
