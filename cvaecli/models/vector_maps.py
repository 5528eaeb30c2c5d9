"""What the reference and the anchored model see of condition vectors, such as actions and positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

HIDDEN = 128  # units of the hidden layers
WAVES = 5  # cosines along each axis: from constant to four half waves over the picture


class MapWeights(NamedTuple):
    """The weights of a vector's maps, ``[N, WAVES**2 * C]`` each, finest level first.

    Attributes:
        down: one for each level on the way down.
        up: one for each level on the way up, which are all but the coarsest.
    """

    down: tuple[Tensor, ...] = ()
    up: tuple[Tensor, ...] = ()


class VectorMaps(nn.Module):
    """Turns a vector into smooth maps that are added to a U-Net's features, so that it knows what is where.

    A channel of a map is a sum of ``WAVES * WAVES`` products ``cos(pi i x) cos(pi j y)``, where x and y go
    from 0 to 1 over the picture (the basis of the discrete cosine transform). A small network computes the
    weights of this sum from the vector, for pictures of any size.

    Args:
        length: D, the length of the vectors.
        widths: channels of the U-Net's levels, finest first.

    Attributes:
        mean, std: ``[D]``, by which vectors are normalised; 0 and 1 until ``normalise_by``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, length: int, widths: Sequence[int]) -> None:
        super().__init__()
        self._levels = len(widths)
        self._sizes = [WAVES**2 * channels for channels in (*widths, *widths[:-1])]
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
        """The weights of all maps side by side, of those on the way down first: ``[N, D] -> [N, ...]``."""
        weights: Tensor = self.net((vectors - self.mean) / self.std)
        return weights

    def split(self, weights: Tensor) -> MapWeights:
        """The weights of each map."""
        each = weights.split_with_sizes(self._sizes, 1)
        return MapWeights(each[: self._levels], each[self._levels :])


def add_map(h: Tensor, weights: Tensor) -> Tensor:
    """``h [N, C, H, W]`` plus the map with these weights, ``[N, WAVES**2 * C]``."""
    N, C, H, W = h.shape
    y, x = _cosines(H, h.device), _cosines(W, h.device)
    waves = (y[:, None, :, None] * x[:, None, :]).view(H * W, WAVES**2).to(weights.dtype)
    # One matrix product for the whole map, in the channels-last order of h.
    values = waves @ weights.view(N, WAVES**2, C)
    return h + values.to(h.dtype).view(N, H, W, C).permute(0, 3, 1, 2)


def _cosines(cells: int, device: torch.device) -> Tensor:
    """The cosines at the centres of a row of cells: ``[cells, WAVES]``."""
    x = (torch.arange(cells, device=device) + 0.5) / cells
    return torch.cos(torch.pi * x[:, None] * torch.arange(WAVES, device=device))
