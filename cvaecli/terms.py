"""The names of the numbers that training and validation log, shared by the engine and the run folder."""

from __future__ import annotations

TRAIN_TERMS = ("loss", "recon", "kl", "kl_weighted", "grad_norm")
"""Measured at every training step. The first four are means over predicted frames, and
``loss = recon + kl_weighted``.

``kl`` is the plain KL in nats, over the rows of the batch whose z comes from the posterior.
``kl_weighted`` is its part of the loss: the KL, at least ``kl.free_bits``, times beta, ``kl.weight`` and the
scale of ``kl.reduction``. Rows whose z comes from the prior count as 0.
``grad_norm`` is the gradient's norm before clipping."""

VAL_TERMS = ("loss", "recon", "kl", "kl_weighted", "psnr", "psnr_one_step", "psnr_posterior", "nan_frames")
"""Measured at every validation. ``loss = recon + kl_weighted`` with the rollout's ``recon`` and the KL of the
posterior pass, weighted as in the epoch's last training step, over all frames.
``nan_frames`` counts the rollout's frames with a NaN or an infinity."""
