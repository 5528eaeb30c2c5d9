"""Reconstruction and KL terms. Frames are in [0, 1]; KL is in nats."""

from __future__ import annotations

import torch
from torch import Tensor

from .models.base import Gaussian, Step


def reconstruction(x_hat: Tensor, x: Tensor, kind: str = "mse") -> Tensor:
    """Reconstruction term of every frame.

    Args:
        x_hat: predictions ``[..., C, H, W]``.
        x: true frames, same shape.
        kind: ``mse``: mean squared error over C, H, W. ``l1``: mean absolute error.
            ``optimal_sigma``: negative log-likelihood per pixel of a normal distribution at the
            variance that is best for this frame, log(MSE) / 2, constants left out (Rybkin et al.
            2021, "Simple and Effective VAE Training with Calibrated Decoders", eq. 5). It gives
            every frame's PSNR the same weight: d PSNR is proportional to d log(MSE).

    Returns:
        ``[...]``: one number per frame, float32.
    """
    difference = x_hat.float() - x.float()
    if kind == "l1":
        return difference.abs().mean((-3, -2, -1))
    mse = difference.square().mean((-3, -2, -1))
    if kind == "optimal_sigma":
        # 1e-6 (60 dB) keeps the gradient finite on frames that are already exact.
        return 0.5 * torch.log(mse + 1e-6)
    return mse


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) of diagonal normals in closed form, summed over all latent axes, in nats.

    ``0.5 * sum(logvar_p - logvar_q + (var_q + (mu_q - mu_p)^2) / var_p - 1)`` (Kingma & Welling
    2014, appendix B, for a standard normal p).

    Args:
        q, p: posterior and prior of K steps, ``[B, K, ...]``.

    Returns:
        ``[B, K]``, float32.
    """
    mu_q, logvar_q, mu_p, logvar_p = (v.float() for v in (*q, *p))
    terms = logvar_p - logvar_q + (logvar_q.exp() + (mu_q - mu_p).square()) * torch.exp(-logvar_p) - 1.0
    return 0.5 * terms.flatten(2).sum(-1)


def total_kl(steps: Step) -> Tensor:
    """KL of K steps summed over the latent levels, for the rows with a posterior: ``[B, K]`` in nats."""
    rows = len(steps.q[0].mu)
    levels = zip(steps.q, steps.p, strict=True)
    return torch.stack([kl_divergence(q, Gaussian(p.mu[:rows], p.logvar[:rows])) for q, p in levels]).sum(0)
