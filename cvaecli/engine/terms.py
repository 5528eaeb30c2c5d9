"""What is measured at every step: kept on the device, fetched when reported, summed up over an epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import CvaeError, UserError
from ..terms import TRAIN_TERMS


class NotFiniteError(CvaeError):
    """The training came upon a NaN or an infinity."""


class Terms:
    """The terms of an epoch's steps, those not reported yet still on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums = torch.zeros(len(TRAIN_TERMS), dtype=torch.float64)  # over this epoch's reported steps
        self._pending: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        """Take a step's terms, a tensor ``[len(TRAIN_TERMS)]``; it is not waited for."""
        self._pending.append(values)

    def clear(self) -> None:
        """An epoch is over: its sums begin anew. What is pending is reported already."""
        self._sums.zero_()

    def report(self, step: int, epoch: int) -> dict[str, float] | None:
        """The means of the pending terms, which are added to the epoch's sums; None where there are none.

        Args:
            step: steps done in all, for the error.
        """
        if not self._pending:
            return None
        values = self.fetch(step, epoch)
        self._pending.clear()
        self._sums += values.sum(0)
        return dict(zip(TRAIN_TERMS, values.mean(0).tolist(), strict=True))

    def means(self, step: int, epoch: int, count: int) -> dict[str, float]:
        """The means over the ``count`` steps of the epoch so far."""
        means = (self._sums + self.fetch(step, epoch).sum(0)) / max(count, 1)
        return dict(zip(TRAIN_TERMS, means.tolist(), strict=True))

    def fetch(self, step: int, epoch: int) -> Tensor:
        """The pending terms ``[n, len(TRAIN_TERMS)]`` from the device; they stay pending.

        Raises:
            NotFiniteError: a term is not finite; names the step and the term.
        """
        if not self._pending:
            return torch.zeros(0, len(TRAIN_TERMS), dtype=torch.float64)
        values = torch.stack(self._pending).double().cpu()
        if not values.isfinite().all():
            row = int((~values.isfinite()).any(1).nonzero()[0])
            raise _not_finite(step - len(values) + row, epoch, values[row])
        return values

    def state_dict(self, step: int, epoch: int) -> dict[str, Any]:
        """For ``load_state_dict``. Nothing is summed up: saving must not change the next report's means."""
        return {"pending": self.fetch(step, epoch), "sums": self._sums.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``.

        Raises:
            UserError: another version of this tool wrote it, which measured other terms.
        """
        if len(state["sums"]) != len(TRAIN_TERMS):
            raise UserError(
                "the checkpoint is of another version of this tool and cannot be resumed",
                "start a new run from its weights: train.init=FILE",
            )
        self._sums = state["sums"].clone()
        self._pending = list(state["pending"].to(self._device, torch.float32))


def _not_finite(step: int, epoch: int, values: Tensor) -> NotFiniteError:
    hints = {
        "recon": "the prediction blew up: lower optim.lr or train.grad_clip, or use a sigmoid output",
        "kl": "the posterior's variance blew up: set model.logvar_clamp, lower optim.lr or kl.weight",
        "loss": "lower kl.weight or optim.lr",
        "grad_norm": "the gradient blew up: lower optim.lr, or set teacher_forcing.detach=on",
    }
    term = next(name for name in hints if not values[TRAIN_TERMS.index(name)].isfinite())
    value = float(values[TRAIN_TERMS.index(term)])
    return NotFiniteError(
        f"training stopped at step {step + 1} (epoch {epoch}): {term} is {value}",
        hints[term] + "; the last checkpoint, if there is one, is good",
    )
