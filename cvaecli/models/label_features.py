"""What the reference and the anchored model see of a label image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GAIN = 4.0
"""Factor of the hues: thin sticks are faint in small pictures."""


def channels(colours: int, hues: int) -> int:
    """Number of channels of ``label_features`` for labels of ``colours`` channels."""
    return 3 * (hues + 1 if hues else colours)


def label_features(label: Tensor, hues: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    """A label image inverted, its 3x3 maximum, and a wide soft halo.

    Thin sticks cover few pixels. The halos tell nearby pixels which stick is close.

    Args:
        label: ``[B, C, H, W]`` in [0, 1].
        hues: if not 0, the inverted image is split into so many hues first, and C must be 3.
        dtype: of the result; the label's own when unset.

    Returns:
        ``[B, channels(C, hues), H, W]``, channels-last in memory.
    """
    ink = split_hues(1.0 - label, hues) if hues else 1.0 - label
    ink = ink.to(dtype or label.dtype, memory_format=torch.channels_last)
    near = _max_of_3x3(ink)
    halo = _mean_of_5x5(_max_of_3x3(_max_of_3x3(near)))
    return torch.cat((ink, near, halo), 1)


def split_hues(ink: Tensor, hues: int) -> Tensor:
    """Grey, and the strength of each of some evenly spaced hues: ``[B, 3, H, W] -> [B, 1 + hues, H, W]``.

    Ink of a channel's own hue has its full strength there, ink of a neighbour's hue none. All channels are
    proportional to the ink: a stick that covers half a pixel has half the strength.
    """
    red, green, blue = ink.unbind(1)
    # The colour without its grey, in a plane where the angle is the hue and the length the strength.
    x, y = red - (green + blue) / 2, (green - blue) * (math.sqrt(3) / 2)
    strength = torch.sqrt(x * x + y * y)
    step, found = 2 * math.pi / hues, [ink.amin(1)]
    for n in range(hues):
        along = x * math.cos(n * step) + y * math.sin(n * step)
        found.append(F.relu(along - strength * math.cos(step)) / (1 - math.cos(step)))
    return torch.stack(found, 1) * GAIN


# Written with shifted pictures: on a CPU, PyTorch's pooling takes 10 times as long.


def _max_of_3x3(x: Tensor) -> Tensor:
    """Maximum over 3x3 pixels, for values >= 0; beyond the border there are zeros."""
    H, W = x.shape[-2:]
    x = F.pad(x, (1, 1, 1, 1))
    x = torch.maximum(torch.maximum(x[..., :W], x[..., 1 : W + 1]), x[..., 2:])
    return torch.maximum(torch.maximum(x[..., :H, :], x[..., 1 : H + 1, :]), x[..., 2:, :])


def _mean_of_5x5(x: Tensor) -> Tensor:
    """Mean over 5x5 pixels; beyond the border there are zeros."""
    H, W = x.shape[-2:]
    x = F.pad(x, (2, 2, 2, 2))
    x = x[..., :W] + x[..., 1 : W + 1] + x[..., 2 : W + 2] + x[..., 3 : W + 3] + x[..., 4:]
    x = x[..., :H, :] + x[..., 1 : H + 1, :] + x[..., 2 : H + 2, :] + x[..., 3 : H + 3, :] + x[..., 4:, :]
    return x / 25
