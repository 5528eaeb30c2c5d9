"""Building blocks that models share; attribute names are the course template's, so its checkpoints load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
        # In place: the backward pass needs only the activation's result, so its input need not be kept.
        y = F.leaky_relu(self.conv1(x), inplace=True)
        y = F.leaky_relu(self.conv2(y), inplace=True)
        return y + self.skip(x)  # type: ignore[no-any-return]


class DepthConv(nn.Module):
    """1x1 convolution, leaky ReLU (0.01), depth-wise 3x3, 1x1, plus a skip (see `DepthConvBlock`)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels, in_channels, 1), nn.LeakyReLU(0.01, inplace=True))
        self.depth_conv = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1)
        self.adaptor = channel_match(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W] -> [N, out, H, W]``."""
        h, depth = self.conv1(x), self.depth_conv
        parts = (h, depth.weight.to(h.dtype), _bias(depth).to(h.dtype))
        y: Tensor = pointwise_of(self.conv2, _depth_wise, *parts) + self.adaptor(x)
        return y


def _depth_wise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1, groups=len(weight))


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
        # Two convolutions, not one and its halves: channels-last halves have gaps between their pixels,
        # and elementwise kernels on a CPU are ten times slower across gaps.
        (w_a, w_b), (b_a, b_b) = self.conv.weight.chunk(2), _bias(self.conv).chunk(2)
        gate = F.leaky_relu(F.conv2d(x, w_b, b_b), 0.1, inplace=True)
        return x + pointwise_of(self.conv_out, torch.mul, F.conv2d(x, w_a, b_a), gate)


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


class _PointwiseOf(torch.autograd.Function):
    """See ``pointwise_of``."""

    @staticmethod
    def forward(
        ctx: Any, inner: Callable[..., Tensor], weight: Tensor, bias: Tensor, *inputs: Tensor
    ) -> Tensor:
        ctx.inner = inner
        ctx.save_for_backward(weight, *inputs)
        return F.conv2d(inner(*inputs), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        leaves = [part.detach().requires_grad_() for part in inputs]
        with torch.enable_grad():
            x = ctx.inner(*leaves)
        dx, d_weight, d_bias = torch.ops.aten.convolution_backward(
            dy, x.detach(), weight, [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True] * 3
        )
        return None, d_weight, d_bias, *torch.autograd.grad(x, leaves, dx)


def pointwise_of(conv: nn.Conv2d, inner: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``conv(inner(*inputs))`` of a 1x1 convolution; the backward pass computes ``inner`` again.

    For a cheap ``inner``, whose result then need not be kept: with two of these a `DepthConvBlock` keeps a
    quarter less.

    Args:
        inner: of tensors alone, all of one type, and differentiable in each of them.
    """
    weight, bias = (part.to(inputs[0].dtype) for part in (conv.weight, _bias(conv)))
    if torch.compiler.is_compiling():
        return F.conv2d(inner(*inputs), weight, bias)
    y: Tensor = _PointwiseOf.apply(inner, weight, bias, *inputs)
    return y


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def channel_match(in_channels: int, out_channels: int) -> nn.Module:
    """What a skip connection needs: nothing, or a 1x1 convolution where the channels change."""
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of all processes' rows together."""

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        if self.training and several_processes():
            return batch_norm_per_step(self, x[:, None])[:, 0]
        return super().forward(x)


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _normalise_together(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of ``x [N, C, H, W]`` over the rows of all processes, which may have different N.

    Not nn.SyncBatchNorm, which is for GPUs only and takes one step at a time.

    Returns:
        The normalised rows, and mean and unbiased variance ``[C]`` without gradient.
    """
    values = at_least_float32(x)
    here = values.new_full((1,), values.numel() / values.shape[1])
    sums = _SumOverProcesses.apply(torch.cat((values.sum((0, 2, 3)), here)))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - mean[:, None, None]
    var = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
    scale = weight * torch.rsqrt(var + eps)
    y = centred * scale[:, None, None] + bias[:, None, None]
    return y.to(x.dtype), mean.detach(), var.detach() * (count / (count - 1))


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes; every process's loss has a gradient for every summand."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


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
    steps, weight, bias = x.flatten(1, 2), norm.weight.repeat(K), norm.bias.repeat(K)
    if several_processes():
        y, mean, var = _normalise_together(steps, weight, bias, norm.eps)
    else:
        # Momentum 1 leaves each step's mean and unbiased variance in the buffers given.
        mean, var = norm.running_mean.repeat(K), norm.running_var.repeat(K)
        y = F.batch_norm(steps, mean, var, weight, bias, True, 1.0, norm.eps)
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
