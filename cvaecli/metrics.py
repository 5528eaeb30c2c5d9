"""Image quality of predicted frames: PSNR in dB and SSIM, one number a frame."""

from __future__ import annotations

import torch
from torch import Tensor


def shown(x_hat: Tensor) -> Tensor:
    """A prediction as it is scored and shown: float32 in [0, 1], NaN (a rollout that ran off) as black."""
    return torch.nan_to_num(x_hat.float().clamp(0, 1), nan=0.0)


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error over C, H, W of predictions as ``shown``: ``[B, T, C, H, W] -> [B, T]``."""
    return (shown(x_hat) - x.float()).square().mean((-3, -2, -1))


def psnr_from_mse(error: Tensor) -> Tensor:
    """``-10 log10(mse)`` in dB for data range 1; an exact frame counts 100 dB instead of infinity."""
    return -10.0 * torch.log10(error.clamp(min=1e-10))


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """PSNR of every frame: ``[B, T, C, H, W] -> [B, T]`` in dB, one error over all channels."""
    return psnr_from_mse(mse(x_hat, x))


def psnr_per_channel(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean of the colour channels' PSNRs, as the robot literature reports it (``finn_psnr``).

    Not below ``psnr`` (Jensen), so never compare the two. ``[B, T, C, H, W] -> [B, T]`` in dB.
    """
    error = (shown(x_hat) - x.float()).square().mean((-2, -1))
    return psnr_from_mse(error).mean(-1)


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity of every frame (Wang et al. 2004): ``[B, T, C, H, W] -> [B, T]``.

    11x11 Gaussian window of sigma 1.5, per channel, K1 0.01, K2 0.03, data range 1, averaged over the
    pixels whose window lies inside the frame. NaN where the frame is smaller than the window. Written
    out because libraries differ at the border, one of them between its own versions.
    """
    if min(x.shape[-2:]) < 11:
        return torch.full(x.shape[:2], torch.nan)
    a, b = shown(x_hat), x.float()
    window = torch.exp(-torch.arange(-5.0, 6.0).square() / (2 * 1.5**2))
    weights = (window / window.sum()).tolist()

    def blurred(values: Tensor) -> Tensor:
        # Sums, not convolutions: on some devices those keep ten bits, and the variances cancel.
        for axis in (-2, -1):
            size = values.shape[axis] - 10
            total = weights[0] * values.narrow(axis, 0, size)
            for k in range(1, 11):
                total.add_(values.narrow(axis, k, size), alpha=weights[k])
            values = total
        return values

    mu_a, mu_b, c1, c2 = blurred(a), blurred(b), 0.01**2, 0.03**2
    var_a, var_b = blurred(a * a) - mu_a**2, blurred(b * b) - mu_b**2
    covariance = blurred(a * b) - mu_a * mu_b
    similarity = (2 * mu_a * mu_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return similarity.mean((-3, -2, -1))
