"""Image quality of predicted frames: PSNR in dB and SSIM, one number per frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

INK_DISTANCE = 5
"""Pixels from a label's ink that count as near it: at 64x32 about half of a person's width."""


def shown(x_hat: Tensor) -> Tensor:
    """A prediction as it is scored and shown: float32 in [0, 1], NaN (from a diverged rollout) as black."""
    return torch.nan_to_num(x_hat.float().clamp(0, 1), nan=0.0)


def as_bytes(x_hat: Tensor) -> Tensor:
    """A prediction as it is ``shown``, uint8 of the same shape."""
    return shown(x_hat).mul(255).round().byte()


def not_finite(x_hat: Tensor) -> Tensor:
    """Which predicted frames contain a NaN or an infinity: ``[B, T, C, H, W] -> [B, T]``, boolean."""
    return ~x_hat.isfinite().all(-1).all(-1).all(-1)


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error over C, H, W of predictions as ``shown``: ``[B, T, C, H, W] -> [B, T]``."""
    return (shown(x_hat) - x.float()).square().mean((-3, -2, -1))


def near_ink(label: Tensor, distance: int = INK_DISTANCE) -> Tensor:
    """Which pixels are near something drawn: ``[..., C, H, W] -> [..., 1, H, W]``, boolean.

    Ink is what differs by more than a tenth of the data range from the background, the picture's median
    colour.

    Args:
        label: label images in [0, 1].
        distance: in pixels, along either axis.
    """
    background = label.flatten(-2).median(-1).values[..., None, None]
    ink = ((label - background).abs() > 0.1).any(-3, keepdim=True)
    near = ink.flatten(0, -4).float()
    for reach in ((distance, 0), (0, distance)):  # a square as columns of rows
        near = F.max_pool2d(near, tuple(2 * r + 1 for r in reach), stride=1, padding=reach)
    return near.bool().reshape(ink.shape)


def mse_within(x_hat: Tensor, x: Tensor, where: Tensor) -> Tensor:
    """The part of ``mse`` that pixels ``where [B, T, 1, H, W]`` contribute: ``[B, T]``."""
    return ((shown(x_hat) - x.float()).square() * where).mean((-3, -2, -1))


def psnr_from_mse(error: Tensor) -> Tensor:
    """``-10 log10(mse)`` in dB for data range 1; an exact frame gets 100 dB instead of infinity."""
    return -10.0 * torch.log10(error.clamp(min=1e-10))


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """PSNR of every frame from its error over all channels: ``[B, T, C, H, W] -> [B, T]`` in dB."""
    return psnr_from_mse(mse(x_hat, x))


def psnr_per_channel(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean of the colour channels' PSNRs, as the robot literature reports it (``finn_psnr``).

    It is never below ``psnr`` (Jensen's inequality), so the two must not be compared. ``[B, T, C, H, W] ->
    [B, T]`` in dB.
    """
    error = (shown(x_hat) - x.float()).square().mean((-2, -1))
    return psnr_from_mse(error).mean(-1)


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity of every frame (Wang et al. 2004): ``[B, T, C, H, W] -> [B, T]``.

    11x11 Gaussian window of sigma 1.5, per channel, K1 0.01, K2 0.03, data range 1, averaged over the
    pixels whose window lies inside the frame. NaN where the frame is smaller than the window.
    """
    # Imported late: the library takes seconds to load.
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(x.shape[-2:]) < 11:
        return torch.full(x.shape[:2], torch.nan)
    # TF32 keeps ten bits, too few for SSIM, which subtracts nearly equal numbers.
    with torch.backends.cudnn.flags(allow_tf32=False):
        _, image = structural_similarity_index_measure(
            shown(x_hat).flatten(0, 1),
            x.float().flatten(0, 1),
            gaussian_kernel=True,
            sigma=1.5,
            kernel_size=11,
            data_range=1.0,
            reduction="none",
            return_full_image=True,
        )
    # The library's own mean includes the reflected border; the definition and scikit-image do not.
    return image[..., 5:-5, 5:-5].mean((-3, -2, -1)).reshape(x.shape[:2])
