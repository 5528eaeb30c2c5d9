"""How rare the label of each training frame is: ``train.rarity`` draws frames with rare labels more often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 32
"""Height to which labels are reduced before they are compared, in pixels."""
NEAREST = 0.021
"""Share of the labels that are nearer than the distance which counts: 40 of 1,890."""
MOST = 2000
"""Each label is compared with at most so many others, evenly spaced over the training frames."""
LEAST = 0.2
"""Smallest rarity: frames with equal labels must be drawn, too."""
CHUNK = 1000


def rarity(labels: Sequence[np.ndarray]) -> Tensor:
    """How far each label is from those most like it: the distance that ``NEAREST`` of the others are within.

    Args:
        labels: the label images of each clip, uint8 ``[T, C, H, W]``.

    Returns:
        ``[N]``, float64, of all clips one after the other, in units of their mean; 1 if all labels are equal.
    """
    small = torch.cat([_small(part) for clip in labels for part in _chunks(clip)])
    others = small[:: -(-len(small) // MOST)]
    k = min(1 + max(1, round(NEAREST * len(others))), len(others))  # the first is the label itself
    parts = torch.split(small, CHUNK)
    distance = torch.cat([torch.cdist(part, others).kthvalue(k, 1).values for part in parts])
    if not distance.any():
        return torch.ones_like(distance)
    return (distance / distance.mean()).clamp_min(LEAST)


def _chunks(clip: np.ndarray) -> Iterator[np.ndarray]:
    return (clip[first : first + CHUNK] for first in range(0, len(clip), CHUNK))


def _small(labels: np.ndarray) -> Tensor:
    """``[T, C, H, W]`` to ``[T, values]``. Soft, because thin sticks hardly overlap, and with the ink's mean
    column in the middle, because a pose is the same wherever the person stands."""
    # float64: distances of nearly equal labels would be rounding errors in float32.
    ink = 1 - torch.from_numpy(labels.astype(np.float64)) / 255
    ink = F.avg_pool2d(ink, max(1, ink.shape[-2] // ROWS), ceil_mode=True)
    soft = F.avg_pool2d(F.max_pool2d(ink, 3, 1, 1), 5, 1, 2)
    inked, column = ink.amax(1).sum(1), torch.arange(ink.shape[-1])
    mean = (inked @ column.double()) / inked.sum(1).clamp_min(1e-6)
    source = (column - len(column) // 2 + mean.round().long()[:, None]) % len(column)
    return F.avg_pool2d(soft.gather(-1, source[:, None, None].expand_as(soft)), 2, ceil_mode=True).flatten(1)
