"""Skip an optimiser step whose loss or gradient is not finite, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import CvaeError


class NotFiniteError(CvaeError):
    """Too many steps had a term or a gradient that is NaN or infinite, or a weight is."""


class NoFiniteStepError(NotFiniteError):
    """No step of an epoch was finite: the weights are useless, even if they are finite."""


def require_finite(model: nn.Module, step: int) -> None:
    """Raise a `NotFiniteError` if a weight or a statistic is not finite."""
    values = [value.isfinite().all() for value in model.state_dict().values()]
    if values and not torch.stack(values).all():
        raise NotFiniteError(
            f"training stopped at step {step}: a weight is not finite",
            "lower optim.lr or set train.grad_clip",
        )


class Skips:
    """Makes a step that is not finite change nothing: no weight, no moment, no running statistic.

    ::

        skips.keep()                  # before the forward pass
        skips.decide(loss, norm)      # after the backward pass
        optimizer.step()

    Args:
        model: on its device; training must change its buffers in place.
        optimizer: with fused kernels, which read the decision on the device.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._buffers = list(model.buffers())  # batch norm's statistics change in the forward pass
        self._kept = [buffer.clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Remember the buffers."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def decide(self, *values: Tensor) -> None:
        """If any of ``values`` is not finite, restore the buffers and let the optimiser skip its step."""
        bad = ~torch.stack([value.isfinite().all() for value in values]).all()
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            buffer.copy_(torch.where(bad, kept, buffer))
        # What torch.amp.GradScaler sets too: fused kernels then change neither weights nor moments.
        self._optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
