"""Building blocks that models share, with the course template's attribute names, as in its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GATE_SLOPE = 0.1
"""Slope of the leaky ReLU in `GatedFeedForward`."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each followed by a leaky ReLU (0.01), plus a skip. H and W stay the same.

    After He et al. 2016, in the form that learned codecs and the course template use: the second activation
    comes before the addition, and the skip is a 1x1 convolution if the channels change.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = channel_match(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W] -> [N, out, H, W]``."""
        # In place: the backward pass needs only the activation's output, not its input.
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
        y: Tensor = self.conv2(self.depth_conv(self.conv1(x)))
        return y.add_(self.adaptor(x))  # in place: no gradient needs a convolution's output


class GatedFeedForward(nn.Module):
    """At each pixel ``x + W_out(a * leaky_relu(b, 0.1))``, where ``a`` and ``b`` are the halves of ``W x``.

    This is the course template's ConvFFN with expansion 2: ``W`` has 4 times the channels as output, so each
    half has twice as many as ``x``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 1)
        self.conv_out = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        weights = [part.to(x.dtype) for part in (self.conv.weight, _bias(self.conv))]
        # Two convolutions rather than the halves of one: halves of a channels-last tensor have gaps between
        # their pixels, which make elementwise operations on a CPU ten times slower.
        (w_a, w_b), (b_a, b_b) = (part.chunk(2) for part in weights)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            gate = F.leaky_relu(F.conv2d(x, w_b, b_b), GATE_SLOPE, inplace=True)
            return self.conv_out(F.conv2d(x, w_a, b_a) * gate).add_(x)  # type: ignore[no-any-return]
        out = self.conv_out.weight.to(x.dtype), _bias(self.conv_out).to(x.dtype)
        y: Tensor = _Gated.apply(x, w_a, b_a, w_b, b_b, *out)
        return y.add_(x)


class _Gated(torch.autograd.Function):
    """``W_out(W_a x * leaky_relu(W_b x))`` for training, with less memory than autograd needs.

    The backward pass computes the product of the halves again, and gradients overwrite tensors that are no
    longer needed.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_a: Tensor, b_a: Tensor, w_b: Tensor, b_b: Tensor, w: Tensor, b: Tensor
    ) -> Tensor:
        value = F.conv2d(x, w_a, b_a)
        gate = F.leaky_relu(F.conv2d(x, w_b, b_b), GATE_SLOPE, inplace=True)
        ctx.save_for_backward(x, value, gate, w_a, w_b, w)
        return F.conv2d(value * gate, w, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        x, value, gate, w_a, w_b, w = ctx.saved_tensors
        product = value * gate
        d_product, d_w, d_b = _pointwise_backward(dy, product, w)
        d_value = torch.mul(d_product, gate, out=product)
        d_gate = d_product.mul_(value)
        torch.ops.aten.leaky_relu_backward.grad_input(d_gate, gate, GATE_SLOPE, True, grad_input=d_gate)
        dx, d_w_a, d_b_a = _pointwise_backward(d_value, x, w_a)
        dx_b, d_w_b, d_b_b = _pointwise_backward(d_gate, x, w_b)
        return dx.add_(dx_b), d_w_a, d_b_a, d_w_b, d_b_b, d_w, d_b


def _pointwise_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a 1x1 convolution's input, weight and bias."""
    one, zero, all_three = [1, 1], [0, 0], [True] * 3
    dx, d_weight, d_bias = torch.ops.aten.convolution_backward(
        dy, x, weight, [len(weight)], one, zero, one, False, zero, 1, all_three
    )
    return dx, d_weight, d_bias


class DepthConvBlock(nn.Module):
    """Depth-wise convolution, then a gated feed-forward layer. H and W stay the same.

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


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def channel_match(in_channels: int, out_channels: int) -> nn.Module:
    """A skip connection: the identity, or a 1x1 convolution if the channels change."""
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm. In training its statistics are over the rows of all processes together."""

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        if self.training and several_processes():
            return batch_norm_per_step(self, x[:, None])[:, 0]
        return super().forward(x)


def several_processes() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _NormaliseTogether(torch.autograd.Function):
    """Batch norm of ``x [N, C, H, W]`` over the rows of all processes; N may differ between them.

    The processes exchange their statistics once each way.

    nn.SyncBatchNorm is not an option: it needs GPUs and normalises one step at a time.

    Returns:
        The normalised rows, and their mean and unbiased variance ``[C]``, without gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        mine = torch.cat((mean, var, mean.new_full((1,), x.numel() / len(mean))))
        all_ = mine.new_empty(dist.get_world_size(), len(mine))
        dist.all_gather(list(all_), mine)
        means, variances, counts = all_[:, : len(mean)], all_[:, len(mean) : -1], all_[:, -1:]
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        # The variance within the processes and that between them (Chan et al. 1979).
        var = (counts * (variances + (means - mean).square())).sum(0) / count
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps), count)
        unbiased = var * (count / (count - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        normalised = (x - mean[:, None, None]) * scale[:, None, None]
        d_weight, d_bias = (dy * normalised).sum((0, 2, 3)), dy.sum((0, 2, 3))
        sums = torch.cat((d_weight, d_bias))  # a copy: the gradients are those of this process's rows
        dist.all_reduce(sums)
        by_scale, by_mean = (sums / count).view(2, -1, 1, 1)
        dx = (weight * scale)[:, None, None] * (dy - by_mean - normalised * by_scale)
        return dx, d_weight, d_bias, None


def batch_norm_per_step(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Apply ``norm`` in training mode to each step separately, as if it saw the steps one after the other.

    The steps become channels, so that one call normalises all of them. The running statistics are the same as
    after K updates in time order: with momentum m,
    ``(1 - m)^K * running + sum_k m (1 - m)^(K - 1 - k) * batch_k``.

    Args:
        norm: affine, with running statistics and a fixed momentum (PyTorch's defaults).
        x: ``[B, K, C, H, W]``.

    Returns:
        ``[B, K, C, H, W]``.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    K, m = x.shape[1], norm.momentum
    steps, weight, bias = x.flatten(1, 2), norm.weight.repeat(K), norm.bias.repeat(K)
    y: Tensor
    if several_processes():
        y, mean, var = _NormaliseTogether.apply(at_least_float32(steps), weight, bias, norm.eps)
        y = y.to(steps.dtype)
    else:
        # With momentum 1 the buffers receive each step's mean and unbiased variance.
        mean, var = norm.running_mean.repeat(K), norm.running_var.repeat(K)
        y = F.batch_norm(steps, mean, var, weight, bias, True, 1.0, norm.eps)
    with torch.no_grad():
        age = torch.arange(K - 1, -1, -1, device=mean.device, dtype=mean.dtype)
        # (K, 1). Multiplied and summed: autocast would compute a matrix product in half precision.
        weights = (m * (1 - m) ** age)[:, None]
        norm.running_mean.mul_((1 - m) ** K).add_((weights * mean.view(K, -1)).sum(0))
        norm.running_var.mul_((1 - m) ** K).add_((weights * var.view(K, -1)).sum(0))
        norm.num_batches_tracked += K
    return y.view(x.shape)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision (from autocast) to float32, which exp, KL and losses need."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def split_time(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``[B * K, ...] -> [B, K, ...]`` for shape (B, K), as a view. ``flatten(0, 1)`` is the inverse."""
    return x.view(*shape, *x.shape[1:])


def join_time(parts: Sequence[Tensor]) -> Tensor:
    """Join maps ``[B, K_1, C, H, W]``, ``[B, K_2, C, H, W]``, ... along time.

    The result is channels-last in memory. ``torch.cat`` alone would make it contiguous, which slows down all
    later operations.
    """
    return torch.cat([part.movedim(2, -1) for part in parts], 1).movedim(-1, 2)


def places(cells: int, like: Tensor) -> Tensor:
    """Centres ``[cells]`` of a row of cells between -1 and 1, of the dtype and on the device of ``like``."""
    return (2 * torch.arange(cells, device=like.device, dtype=like.dtype) + 1) / cells - 1
