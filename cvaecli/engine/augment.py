"""Random changes of training pictures: one draw a sample, shared by its frames and label images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.schema import AugmentConfig
from ..data.clip import Clip
from ..errors import UserError


def augment(
    frames: Tensor,
    condition: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    rows: Sequence[int] | None = None,
    of: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Flip, shift and zoom a batch, or the rows ``rows`` of a batch of ``of``.

    Args:
        frames: ``[B, T, C, H, W]`` in [0, 1].
        condition: label images ``[B, T, C', H, W]``, changed alike; anything where nothing is configured.
        generator: on the CPU; the draws do not depend on the device.

    Returns:
        The changed frames and condition; the same tensors where nothing is configured.
    """
    if not _wanted(config):
        return frames, condition
    B, _, _, H, W = frames.shape
    draws = torch.rand(of or B, 4, generator=generator)
    if rows is not None:
        draws = draws[rows]
    mirror = torch.where(draws[:, 0] < config.flip, -1.0, 1.0)
    zoom = 1.0 + (2 * draws[:, 1] - 1) * config.zoom
    # Whole pixels: without zoom nothing is resampled, so nothing is blurred.
    pixels = torch.round((2 * draws[:, 2:] - 1) * torch.tensor(config.shift))
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = mirror / zoom, 1.0 / zoom
    theta[:, 0, 2], theta[:, 1, 2] = pixels[:, 1] * 2 / W, pixels[:, 0] * 2 / H
    grid = F.affine_grid(theta, [B, 1, H, W], align_corners=False).to(frames.device)
    return _warp(frames, grid), _warp(condition, grid)


def check_augmentation(config: AugmentConfig, clips: Sequence[Clip]) -> None:
    """Refuse what would change the pictures and leave their conditions as they are.

    Raises:
        UserError: an augmentation is wanted and the clips' conditions are vectors.
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
