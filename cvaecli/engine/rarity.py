"""How rare the label of each training frame is: ``train.rarity`` draws frames with rare labels more often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 8
"""Labels are compared as pictures of about so many cells in height: thin sticks hardly overlap."""
NEAREST = 0.021
"""Share of the labels that are nearer than the distance which counts: 40 of 1,890."""
MOST = 4000
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
    """``[T, C, H, W]`` to ``[T, values]``."""
    # float64: distances of nearly equal labels would be rounding errors in float32.
    pictures = torch.from_numpy(labels.astype(np.float64))
    side = max(1, pictures.shape[-2] // CELLS)
    return F.avg_pool2d(pictures, side, ceil_mode=True).flatten(1)
