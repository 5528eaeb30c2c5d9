"""The blocks of the reference and the anchored model's U-Net."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .latents import last_convolution

FEW_CELLS = 256  # up to this number the attention weights for all pairs of cells take little memory
HEAD_WIDTH = 32  # fewest channels of an attention head, if the model has as many


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with groups of 16 channels: with fewer, it is up to ten times slower on a CPU."""
    return nn.GroupNorm(channels // 16, channels)


def gaussian_head(inputs: int, z_dim: int) -> nn.Sequential:
    """1x1 convolutions to mu and logvar, which start near zero."""
    last = last_convolution(128, z_dim)
    return nn.Sequential(nn.Conv2d(inputs, 128, 1), nn.SiLU(), last)


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016b). Initially only its skip has an effect."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = group_norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W] -> [B, outputs, H, W]``."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        total: Tensor = h.add_(self.skip(x))  # in place: no gradient needs a convolution's output
        return total


def _attention_kernel(x: Tensor, cells: int) -> contextlib.AbstractContextManager[object]:
    """PyTorch's choice of kernel, except for few cells in training on a CPU, where the backward pass of its
    fused kernel takes 4 times as long as plain matrix products."""
    if x.device.type == "cpu" and x.requires_grad and cells <= FEW_CELLS:
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


class SelfAttention(nn.Module):
    """Self-attention over all cells (Vaswani et al. 2017). It has no position parameters, so any size
    works."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        most = max(1, channels // HEAD_WIDTH)
        self.heads = next(n for n in range(most, 0, -1) if channels % n == 0)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, C, H, W]``."""
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).flatten(2).view(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        with _attention_kernel(x, H * W):
            y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(B, C, H, W)
        mixed: Tensor = self.out(y.contiguous(memory_format=torch.channels_last))
        return mixed.add_(x)
