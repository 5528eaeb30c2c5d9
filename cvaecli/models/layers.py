"""Building blocks that models share; attribute names are the course template's, so its checkpoints load."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a leaky ReLU (0.01) after each, plus a skip; size is kept.

    After He et al. 2016, as learned codecs and the course template use it: the second activation
    comes before the addition, and the skip is a 1x1 convolution where the channels change.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = channel_match(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W] -> [N, out, H, W]``."""
        y: Tensor = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x)))) + self.skip(x)
        return y


class DepthConv(nn.Module):
    """1x1 convolution, leaky ReLU (0.01), depth-wise 3x3, 1x1, plus a skip (see `DepthConvBlock`)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels, in_channels, 1), nn.LeakyReLU(0.01))
        self.depth_conv = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1)
        self.adaptor = channel_match(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W] -> [N, out, H, W]``."""
        y: Tensor = self.conv2(self.depth_conv(self.conv1(x))) + self.adaptor(x)
        return y


class GatedFeedForward(nn.Module):
    """Per pixel ``x + W_out(a * leaky_relu(b, 0.1))`` with ``a, b`` the halves of ``W x``.

    The course template's ConvFFN: expansion 2, so ``W`` gives 4 times the channels, each half twice.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 1)
        self.conv_out = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        a, b = self.conv(x).chunk(2, dim=1)
        y: Tensor = self.conv_out(a * F.leaky_relu(b, 0.1))
        return x + y


class DepthConvBlock(nn.Module):
    """Depth-wise convolution, then a gated feed-forward layer; size is kept.

    After the DCVC family of learned video codecs (Li, Li & Lu 2022, "Hybrid Spatial-Temporal Entropy
    Modelling for Neural Video Compression", and its successors), in the course template's variant.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(DepthConv(in_channels, out_channels), GatedFeedForward(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W] -> [N, out, H, W]``."""
        y: Tensor = self.block(x)
        return y


def channel_match(in_channels: int, out_channels: int) -> nn.Module:
    """What a skip connection needs: nothing, or a 1x1 convolution where the channels change."""
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


def batch_norm_per_step(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``norm`` in training mode with each step's own statistics, as if it saw one step after the other.

    The steps become channels, so that one call normalises them all. The running statistics end where
    K updates in time order would leave them, written out: with momentum m, after K steps
    ``(1 - m)^K * running + sum_k m (1 - m)^(K - 1 - k) * batch_k``.

    Args:
        norm: affine, with running statistics and a fixed momentum (PyTorch's default kind).
        x: ``[B, K, C, H, W]``.

    Returns:
        ``[B, K, C, H, W]``.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    K, m = x.shape[1], norm.momentum
    # Momentum 1 leaves each step's mean and unbiased variance in the buffers given.
    mean, var = norm.running_mean.repeat(K), norm.running_var.repeat(K)
    y = F.batch_norm(
        x.flatten(1, 2), mean, var, norm.weight.repeat(K), norm.bias.repeat(K), True, 1.0, norm.eps
    )
    with torch.no_grad():
        age = torch.arange(K - 1, -1, -1, device=mean.device, dtype=mean.dtype)
        # (K, 1); multiplied and summed, as autocast would make a matrix product half precision.
        weights = (m * (1 - m) ** age)[:, None]
        norm.running_mean.mul_((1 - m) ** K).add_((weights * mean.view(K, -1)).sum(0))
        norm.running_var.mul_((1 - m) ** K).add_((weights * var.view(K, -1)).sum(0))
        norm.num_batches_tracked += K
    return y.view(x.shape)


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision values of autocast as float32: exp, KL and losses need the digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def split_time(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``[B * K, ...] -> [B, K, ...]`` for shape (B, K), a view; ``flatten(0, 1)`` is the way back."""
    return x.view(*shape, *x.shape[1:])
