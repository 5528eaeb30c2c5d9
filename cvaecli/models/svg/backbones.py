"""Encoders and decoders of the SVG model: VGG (3x3 convolutions, pooling) and DCGAN (4x4, stride 2).

- names, shapes and order of the state-dict entries are the original's (``c1.0.main.0.weight``, ...)
- maps are numbered by *stage*, 0 being the coarsest: the decoder's stage s gets the encoder's map s
- the first convolution of a decoder stage is split, ``W [d, skip] = W_d d + W_s skip``. The second term is
  computed once for all steps that share a skip map, which saves a third of the arithmetic over many steps
- the original is made for 64x64, where the last map is 4x4 and a 4x4 convolution turns it into a vector.
  At other multiples of 16 the map is averaged to 4x4 there, and repeated from 4x4 in the decoder
- batch norm in training: a batch holds B * steps frames (batch-major) and each step is normalised
  separately; with steps = 1 all are normalised together

After Denton & Fergus 2018; Simonyan & Zisserman 2015 (VGG); Radford et al. 2016 (DCGAN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import BatchNorm, batch_norm_per_step, places, split_time

Norm = Literal["batch", "group"]
Conv = nn.Conv2d | nn.ConvTranspose2d

STAGES = 4
SIDE = 4  # height and width of the map that becomes the vector
CELL = 16  # pixels per side that one cell of this map covers; frame sizes are multiples of it


class Layer(nn.ModuleList):
    """A convolution (entry 0), its norm (entry 1), the condition's scale and shift, and an activation.

    Args:
        condition_dim: length of the condition that scales and shifts the channels; 0: there is none.
        activation: leaky ReLU (0.2), or tanh.
    """

    def __init__(
        self, conv: nn.Module, channels: int, norm: Norm, condition_dim: int = 0, activation: str = "leaky"
    ) -> None:
        super().__init__([conv, make_norm(norm, channels)])
        self.activation = activation
        self.modulate = nn.Linear(condition_dim, 2 * channels) if condition_dim else None
        self.slope: nn.Linear | None = None

    def add_slope(self) -> None:
        """Add condition-dependent slopes, to the right and downward, to the condition's shift.

        A uniform shift can tell the next convolutions that something is there, but not where.
        """
        if self.modulate is not None:
            self.slope = nn.Linear(self.modulate.in_features, self.modulate.out_features)

    def forward(
        self, x: Tensor, steps: int = 1, side: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """``[N, C, H, W]`` with N = B * steps. For ``side`` see ``Decoder.sides``; ``condition [N, D]``."""
        y = convolve(self[0], x, 0)
        if side is not None:
            y = add_side(y, side)
        y = normalise(self[1], y, steps)
        if self.modulate is not None and condition is not None:
            scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, 1)
            if self.slope is not None:
                right, down = self.slope(condition)[:, :, None, None].chunk(2, 1)
                shift = shift + right * places(y.shape[3], y) + down * places(y.shape[2], y)[:, None]
            y = y * (1 + scale) + shift
        return torch.tanh(y) if self.activation == "tanh" else F.leaky_relu(y, 0.2, inplace=True)


class Block(nn.Module):
    """A layer named ``main``, as in the original (vgg_layer, dcgan_conv, dcgan_upconv)."""

    def __init__(self, conv: Conv, norm: Norm, condition_dim: int = 0) -> None:
        super().__init__()
        self.main = Layer(conv, conv.out_channels, norm, condition_dim)

    def forward(
        self, x: Tensor, steps: int = 1, side: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """See ``Layer``."""
        y: Tensor = self.main(x, steps, side, condition)
        return y


class Encoder(nn.Module):
    """Frames to vectors and four maps. Stages are named ``c1`` to ``c4``, finest first."""

    pooled: bool  # max-pool each map for the next stage; strided convolutions have halved it already

    def __init__(self, g_dim: int, width: int, norm: Norm) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(STAGES)]
        for k, (inputs, outputs) in enumerate(pairwise([3, *widths]), start=1):
            setattr(self, f"c{k}", self._stage(k, inputs, outputs, norm))
        self.c5 = Layer(nn.Conv2d(widths[-1], g_dim, SIDE), g_dim, norm, activation="tanh")

    def _stage(self, k: int, inputs: int, outputs: int, norm: Norm) -> nn.Module:
        raise NotImplementedError

    def forward(self, x: Tensor, steps: int = 1) -> tuple[Tensor, list[Tensor]]:
        """``[N, 3, H, W]`` in [0, 1] to a vector ``[N, g_dim]`` in (-1, 1) and the maps of all stages."""
        maps: list[Tensor] = []
        for k in range(1, STAGES + 1):
            stage = getattr(self, f"c{k}")
            for block in stage if isinstance(stage, nn.ModuleList) else (stage,):
                x = block(x, steps)
            maps.insert(0, x)
            if self.pooled:
                x = F.max_pool2d(x, 2)
        return self.c5(resize(x, (SIDE, SIDE)), steps).flatten(1), maps


class VGGEncoder(Encoder):
    """3x3 convolutions, two, two, three and three; maps at full size, 1/2, 1/4, 1/8."""

    pooled = True

    def _stage(self, k: int, inputs: int, outputs: int, norm: Norm) -> nn.Module:
        channels = [inputs] + [outputs] * (2 if k <= 2 else 3)
        return nn.ModuleList(Block(nn.Conv2d(i, o, 3, padding=1), norm) for i, o in pairwise(channels))


class DCGANEncoder(Encoder):
    """4x4 convolutions of stride 2; maps at 1/2, 1/4, 1/8, 1/16."""

    pooled = False

    def _stage(self, k: int, inputs: int, outputs: int, norm: Norm) -> nn.Module:
        return Block(nn.Conv2d(inputs, outputs, 4, 2, 1), norm)


class Decoder(nn.Module):
    """Vectors and skip maps to frames. The caller runs the stages, so that it can add latents to each.

    ``d = first(g, size)``, then for each stage ``d = stage(s, enter(d), sides[s])``.
    """

    coarsest: int  # pixels per side that a cell of stage 0 covers

    def __init__(self, g_dim: int, width: int, norm: Norm, condition_dim: int = 0) -> None:
        super().__init__()
        self.channels = [width * 2**k for k in reversed(range(STAGES))]
        """Channels of each stage's input, and of the encoder's map of that stage."""
        conv = nn.ConvTranspose2d(g_dim, self.channels[0], SIDE)
        self.upc1 = Layer(conv, self.channels[0], norm, condition_dim)
        for s, inputs in enumerate(self.channels):
            outputs = self.channels[s + 1] if s + 1 < STAGES else 3
            setattr(self, f"upc{s + 2}", self._stage(s, inputs, outputs, norm, condition_dim))

    def _stage(self, s: int, inputs: int, outputs: int, norm: Norm, condition_dim: int) -> nn.Module:
        raise NotImplementedError

    def enter(self, d: Tensor) -> Tensor:
        """Resize ``d`` to the size of the next stage's skip map."""
        raise NotImplementedError

    def first(self, g: Tensor, cells: tuple[int, int], steps: int, condition: Tensor | None) -> Tensor:
        """``[N, g_dim]`` to ``[N, C, H / 16, W / 16]``, cells = (H / 16, W / 16)."""
        d: Tensor = self.upc1(g[:, :, None, None], steps, condition=condition)
        return resize(d, cells)

    def stage(self, s: int, d: Tensor, side: Tensor, steps: int, condition: Tensor | None) -> Tensor:
        """Apply one stage. The last one gives the frame before its sigmoid."""
        for k, block in enumerate(self._blocks(s)):
            skip = side if k == 0 else None
            if isinstance(block, Block):
                d = block(d, steps, skip, condition)
            else:
                d = convolve(block, d, 0) if skip is None else add_side(convolve(block, d, 0), skip)
        return d

    def sides(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The term that each stage's skip map adds to the output of its first convolution."""
        return tuple(
            convolve(block.main[0] if isinstance(block, Block) else block, skip, skip.shape[1], bias=False)
            for block, skip in zip((self._blocks(s)[0] for s in range(STAGES)), maps, strict=True)
        )

    def _blocks(self, s: int) -> list[nn.Module]:
        stage: nn.Module = getattr(self, f"upc{s + 2}")
        return list(stage) if isinstance(stage, nn.ModuleList) else [stage]


class VGGDecoder(Decoder):
    """Mirrors ``VGGEncoder``: nearest up-sampling, then 3x3 convolutions, three, three, two and two."""

    coarsest = 8

    def _stage(self, s: int, inputs: int, outputs: int, norm: Norm, condition_dim: int) -> nn.Module:
        channels = [2 * inputs] + [inputs] * (2 if s < 2 else 1)
        channels += [outputs] if s + 1 < STAGES else []
        blocks: list[nn.Module] = [
            Block(nn.Conv2d(i, o, 3, padding=1), norm, condition_dim) for i, o in pairwise(channels)
        ]
        if s + 1 == STAGES:
            blocks.append(nn.ConvTranspose2d(inputs, outputs, 3, 1, 1))
        return nn.ModuleList(blocks)

    def enter(self, d: Tensor) -> Tensor:
        """Twice the size."""
        return F.interpolate(d, scale_factor=2, mode="nearest")


class DCGANDecoder(Decoder):
    """Mirrors ``DCGANEncoder``: transposed 4x4 convolutions of stride 2."""

    coarsest = 16

    def _stage(self, s: int, inputs: int, outputs: int, norm: Norm, condition_dim: int) -> nn.Module:
        conv = nn.ConvTranspose2d(2 * inputs, outputs, 4, 2, 1)
        return Block(conv, norm, condition_dim) if s + 1 < STAGES else nn.ModuleList([conv])

    def enter(self, d: Tensor) -> Tensor:
        """``d`` unchanged: the stage itself up-samples."""
        return d


BACKBONES: dict[str, tuple[type[Encoder], type[Decoder]]] = {
    "vgg": (VGGEncoder, VGGDecoder),
    "dcgan": (DCGANEncoder, DCGANDecoder),
}


# --- parts ----------------------------------------------------------------------------------------


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Batch norm, or group norm with groups of about 16 channels."""
    if norm == "batch":
        return BatchNorm(channels)
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)


def normalise(norm: nn.Module, x: Tensor, steps: int) -> Tensor:
    """Apply ``norm`` to ``[B * steps, C, H, W]``; in training, batch norm treats each step separately."""
    if norm.training and isinstance(norm, nn.BatchNorm2d):
        # With one step too: a plain call keeps the running statistics for its backward pass, and autograd
        # refuses them once a later call has changed them in place.
        return batch_norm_per_step(norm, split_time(x, (-1, steps))).flatten(0, 1)
    y: Tensor = norm(x)
    return y


def convolve(conv: nn.Module, x: Tensor, first: int, bias: bool = True) -> Tensor:
    """``conv`` applied to some of its input channels: from ``first`` on, as many as ``x`` has."""
    assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(conv.padding, tuple)
    channels, b = slice(first, first + x.shape[1]), conv.bias if bias else None
    if isinstance(conv, nn.ConvTranspose2d):
        return F.conv_transpose2d(x, conv.weight[channels], b, conv.stride, conv.padding)
    return F.conv2d(x, conv.weight[:, channels], b, conv.stride, conv.padding)


def add_side(y: Tensor, side: Tensor) -> Tensor:
    """Add ``side [n, ...]`` to ``y [n * K, ...]``: each row of ``side`` to K consecutive rows of ``y``."""
    rows = side.shape[0]  # not len(side): that is a fixed number in an exported graph
    if rows == y.shape[0]:
        return y + side
    return (split_time(y, (rows, -1)) + side[:, None]).flatten(0, 1)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps: means of cells to shrink, repeated cells to grow."""
    if x.shape[-2:] == size:
        return x
    if torch.are_deterministic_algorithms_enabled():  # which refuse the gradient of the call below on CUDA
        return _means(_means(x, -2, size[0]), -1, size[1])
    return F.interpolate(x, size, mode="area")


def _means(x: Tensor, axis: int, cells: int) -> Tensor:
    """Resize one axis: each of ``cells`` is the mean of the cells that it overlaps."""
    n = x.shape[axis]
    bounds = [(k * n // cells, -(-(k + 1) * n // cells)) for k in range(cells)]
    return torch.cat([x.narrow(axis, a, b - a).mean(axis, keepdim=True) for a, b in bounds], axis)
