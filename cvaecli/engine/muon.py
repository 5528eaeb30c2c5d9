"""Muon: gradient descent with momentum whose steps have singular values near 1 (Jordan et al. 2024).

A gradient has a few large singular values and many small ones. With the step's singular values near 1, what
few examples ask for is learned as fast as what all ask for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

SMALLEST = 32
"""Fewest rows and columns of a weight for Muon."""
RMS = 0.2
"""Root mean square of the entries of a step at learning rate 1. That of AdamW's steps is similar (Liu et al.
2025, "Muon is Scalable for LLM Training"), so both use the same learning rate."""
ITERATIONS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the polynomial that moves singular values from (0, 1] towards 1 (Jordan et al. 2024)."""


class Muon(torch.optim.AdamW):
    """Muon for matrices, AdamW for all other parameters.

    A convolution's weight is a matrix with a row for each output channel (input channel, if transposed).

    Args:
        matrices: weights of hidden layers (see ``is_matrix``).
        others: all other parameters.
        lr: a number, or a scalar on the parameters' device.
        momentum: decay rate of the mean of the gradients.
        weight_decay: of the matrices, times the learning rate. The other parameters have none.
        settings: of AdamW.
    """

    found_inf: Tensor | None = None
    """1 if this step must change nothing, else 0; a scalar on the device (see ``skipping``)."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float | Tensor,
        *,
        momentum: float,
        weight_decay: float,
        **settings: Any,
    ) -> None:
        # Muon's steps are as large at the end as at the beginning, and only weight decay limits what they add
        # up to. As strong a decay would let norms and biases shrink to nothing.
        groups = [
            {"params": list(matrices), "muon": True, "weight_decay": weight_decay},
            {"params": list(others), "muon": False, "weight_decay": 0.0},
        ]
        super().__init__(groups, lr, **settings)
        self._momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make a step. The gradients of the matrices are gone afterwards. ``closure`` is not supported."""
        alive = 1.0 if self.found_inf is None else 1.0 - self.found_inf
        for group in self.param_groups:
            if not group["muon"]:
                continue
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[min(len(p), p[0].numel())].append(p)
            for parameters in alike.values():
                self._step(parameters, alive, alive * group["lr"], group["weight_decay"])
            for p in group["params"]:
                p.grad = None  # AdamW passes over parameters without a gradient
        super().step()

    def _step(
        self, parameters: Sequence[Tensor], alive: float | Tensor, lr: float | Tensor, weight_decay: float
    ) -> None:
        """Step of some matrices whose shorter sides are equal."""
        means = []
        for p in parameters:
            state, gradient = self.state[p], p.grad
            assert gradient is not None
            if not state:
                state["step"] = torch.zeros(())  # AdamW expects it in every state
                state["momentum_buffer"] = torch.zeros_like(p)
            if isinstance(alive, Tensor):
                gradient.masked_fill_(alive == 0, 0.0)
            mean = state["momentum_buffer"].lerp_(gradient, (1 - self._momentum) * alive)
            means.append(_ordered(gradient.lerp_(mean, self._momentum), p).flatten(1))  # Nesterov's
        for p, step in zip(parameters, orthogonalised(means), strict=True):
            p.mul_(1 - lr * weight_decay)
            _ordered(p, p).view(len(p), -1).sub_(step * (lr * RMS * max(step.shape) ** 0.5))


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix large enough for Muon."""
    return parameter.ndim > 1 and min(len(parameter), parameter[0].numel()) >= SMALLEST


def _ordered(values: Tensor, weight: Tensor) -> Tensor:
    """Values of a weight's shape, their axes as the weight has them in memory: channels last, or as they are.
    The order of a matrix's columns makes no difference to Muon."""
    last = weight.movedim(1, -1).is_contiguous()
    return values.movedim(1, -1) if last else values


def orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The matrices with their singular values moved to between 0.7 and 1.2, except very small ones.

    Five iterations ``X <- a X + b X X' X + c (X X')² X``. They are done on ``X X'``, which is smaller than X;
    that needs the precision of float32. All ``X X'`` have one size, so each iteration is done on all at once.

    Args:
        matrices: float32; their shorter sides are equal.
    """
    a, b, c = COEFFICIENTS
    wide = [X if len(X) <= X.shape[1] else X.T for X in matrices]
    gram, total = torch.stack([X @ X.T for X in wide]), None
    norms = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp(min=1e-12)
    gram = gram / norms.square()[:, None, None]
    for n in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        total = factor if total is None else factor @ total
        if n < ITERATIONS - 1:
            gram = factor @ gram @ factor
    assert total is not None
    steps = [turn @ X for turn, X in zip(total / norms[:, None, None], wide, strict=True)]
    return [step if len(X) <= X.shape[1] else step.T for step, X in zip(steps, matrices, strict=True)]
