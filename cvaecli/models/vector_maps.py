"""What the reference and the anchored model see of condition vectors, such as actions and positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import places

HIDDEN = 128  # units of the hidden layers


class VectorMaps(nn.Module):
    """Turns a vector into maps that are added to a U-Net's own: each channel is ``a + b x + c y``.

    ``a``, ``b`` and ``c`` are computed from the vector, ``x`` and ``y`` are the place in the picture. Cut off
    by the network's nonlinearities, such planes become edges whose place and direction the vector
    determines. The idea of giving convolutions the coordinates is CoordConv's (Liu et al. 2018).

    Args:
        length: D, the length of the vectors.
        channels: number of channels of each map.

    Attributes:
        mean, std: ``[D]``, by which vectors are normalised; 0 and 1 until ``normalise_by``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, length: int, channels: Sequence[int]) -> None:
        super().__init__()
        self._sizes = [3 * n for n in channels]
        self.net = nn.Sequential(
            nn.Linear(length, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, sum(self._sizes)),
        )
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("std", torch.ones(length))

    def normalise_by(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and standard deviation ``[D]`` of the vectors."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, vectors: Tensor) -> Tensor:
        """The coefficients of all maps: ``[N, D] -> [N, 3 * sum(channels)]``."""
        coefficients: Tensor = self.net((vectors - self.mean) / self.std)
        return coefficients

    def add(self, h: Tensor, coefficients: Tensor, number: int) -> Tensor:
        """``h [N, C, H, W]`` plus map ``number``."""
        N, C, H, W = h.shape
        own = coefficients.split_with_sizes(self._sizes, 1)[number].view(N, 3, C)
        y, x = torch.meshgrid(places(H, own), places(W, own), indexing="ij")
        planes = torch.stack((torch.ones_like(x), x, y), 2).view(H * W, 3)
        # A matrix product: one operation for the whole map, in the channels-last order of h.
        return h + (planes @ own).to(h.dtype).view(N, H, W, C).permute(0, 3, 1, 2)
