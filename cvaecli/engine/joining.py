"""Poses that were never filmed: two frames of a clip joined along a line, their labels alike.

After CutMix (Yun et al. 2019). Here both parts come from one clip, the line crosses the label's sticks, and
of several frames the one is taken that fits best along the line.
"""

from __future__ import annotations

import torch
from torch import Tensor

CANDIDATES = 16
"""Frames (or runs of frames) to choose from for each row."""
DRAWS = 4 + CANDIDATES
"""Random numbers that a row needs."""


def joining(draws: Tensor, share: float) -> Tensor:
    """Numbers of the rows that are joined with others, from their ``draws`` ``[B, DRAWS]`` in [0, 1)."""
    return (draws[:, 0] < share).nonzero()[:, 0]


def candidates(draws: Tensor, frame: Tensor, length: Tensor) -> Tensor:
    """Frame numbers of the candidates: runs that begin anywhere in the row's clip, ``[B, CANDIDATES, K]``.

    Args:
        frame: those of the row's own run of consecutive frames, ``[B, K]``.
        length: frames of the row's clip, ``[B]``.
    """
    K = frame.shape[1]
    starts = (draws[:, 4:] * (length[:, None] - K + 1)).long()
    return starts[..., None] + torch.arange(K)


def joined(
    frames: Tensor, labels: Tensor, other_frames: Tensor, other_labels: Tensor, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of which one side of a line is replaced by the candidate that fits best.

    Args:
        frames: ``[B, K, C, H, W]``.
        labels: ``[B, K, C', H, W]`` in [0, 1], white where there is nothing.
        other_frames, other_labels: candidates, ``[B, CANDIDATES, K, ...]``.
        draws: on the CPU.

    Returns:
        Frames and labels of the same shapes.
    """
    replaced, seam = _lines(1 - labels[:, -1].amin(1), draws[:, 1:4].to(labels.device))
    wrong = (other_frames - frames[:, None]).square().mean((2, 3)) * seam[:, None]
    best = wrong.sum((2, 3)).argmin(1)
    row, replaced = torch.arange(len(frames), device=frames.device), replaced[:, None, None]
    return (
        torch.where(replaced, other_frames[row, best], frames),
        torch.where(replaced, other_labels[row, best], labels),
    )


def _lines(ink: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """One side of a line for each row, and the three pixels on both sides of it, bool ``[B, H, W]``.

    The line is horizontal or vertical, and parts the ink ``[B, H, W]`` at a random quantile.
    """
    across = _line(ink.sum(2), draws[:, 1])[:, :, None], _line(ink.sum(1), draws[:, 1])[:, None, :]
    vertical, other_side = (draws[:, 0] < 0.5)[:, None, None], (draws[:, 2] < 0.5)[:, None, None]
    distance = torch.where(vertical, across[1].expand_as(ink), across[0].expand_as(ink))
    return (distance < 0) ^ other_side, distance.abs() <= 1


def _line(ink: Tensor, quantile: Tensor) -> Tensor:
    """Distance in pixels to the place that has the share ``quantile`` of the ink ``[B, N]`` before it."""
    N = ink.shape[1]
    share = ink.cumsum(1) / ink.sum(1, keepdim=True).clamp(min=1e-6)
    place = (share < quantile[:, None]).sum(1, keepdim=True).clamp(2, N - 2)
    return torch.arange(N, device=ink.device) - place
