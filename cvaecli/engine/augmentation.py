"""Augmentation: random changes of training pictures, the same for the frames and label images of a sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.schema import AugmentConfig
from ..data.clip import Clip
from ..errors import UserError
from .prefetch import to_device


def augment(
    frames: Tensor,
    condition: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    rows: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Flip, shift and zoom pictures: one random change per sample, the same for its frames and label images.

    Args:
        frames: ``[B, T, C, H, W]`` in [0, 1].
        condition: label images ``[B, T, C', H, W]``, changed in the same way; any tensor if no augmentation
            is configured.
        generator: on the CPU; the draws do not depend on the device.
        rows: the samples' numbers in a batch of ``batch_size``, if they are not a whole batch. Each is
            changed as it would be in the whole batch.

    Returns:
        The changed frames and condition; the same tensors if no augmentation is configured.
    """
    if not _wanted(config):
        return frames, condition
    B, _, _, H, W = frames.shape
    draws = torch.rand(batch_size or B, 4, generator=generator)
    if rows is not None:
        draws = draws[rows]
    mirror = torch.where(draws[:, 0] < config.flip, -1.0, 1.0)
    zoom = 1.0 + (2 * draws[:, 1] - 1) * config.zoom
    # Whole pixels: without zoom nothing is resampled, so nothing is blurred.
    pixels = torch.round((2 * draws[:, 2:] - 1) * torch.tensor(config.shift))
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = mirror / zoom, 1.0 / zoom
    theta[:, 0, 2], theta[:, 1, 2] = pixels[:, 1] * 2 / W, pixels[:, 0] * 2 / H
    grid = to_device(F.affine_grid(theta, [B, 1, H, W], align_corners=False), frames.device)
    return _warp(frames, grid), _warp(condition, grid)


def check_augmentation(config: AugmentConfig, clips: Sequence[Clip]) -> None:
    """Refuse augmentations that would change the pictures but not their conditions.

    Raises:
        UserError: an augmentation is configured and the clips' conditions are vectors.
    """
    if (wanted := _wanted(config)) and clips[0].condition.ndim == 2:
        keys = ", ".join(f"train.augment.{name}" for name in wanted)
        raise UserError(
            f"{keys}: the conditions are vectors (actions, positions), which would not fit a changed picture",
            "set train.augment={}",
        )


def _wanted(config: AugmentConfig) -> list[str]:
    """The augmentations that are switched on."""
    switches = {"flip": config.flip, "shift": any(config.shift), "zoom": config.zoom}
    return [name for name, on in switches.items() if on]


def _warp(pictures: Tensor, grid: Tensor) -> Tensor:
    B, T, C, H, W = pictures.shape
    warped = F.grid_sample(
        pictures.reshape(B, T * C, H, W), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return warped.reshape(B, T, C, H, W)
