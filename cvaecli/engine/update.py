"""One optimiser step: the gradient of all parts of a batch, its clipping, and the change of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config.schema import TrainConfig
from .distributed import World
from .loss import Part
from .optimizer import clip_gradients
from .skipping import Skips


class Update:
    """An optimiser step as a function of tensors, which a CUDA graph can record (see ``graph``).

    Args:
        loss: ``Loss``, wrapped by ``World.wrap``.
        optimizer: of the loss's parameters.
        skips: of the same model and optimizer.
    """

    def __init__(
        self,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        train: TrainConfig,
        world: World,
        skips: Skips,
    ) -> None:
        self._skips = skips
        self._loss, self._optimizer, self._train, self._world = loss, optimizer, train, world
        self._parameters = list(loss.parameters())

    def __call__(
        self,
        parts: Sequence[Sequence[Part]],
        forced: Sequence[bool],
        ratio: float | Tensor,
        weight: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Make the step. The host does not wait for the device.

        Args:
            parts: see ``Loss.parts``; one item for each part of ``train.accumulate``.
            forced, ratio, weight: see ``Loss.forward``.

        Returns:
            The loss terms of the whole batch ``[4]``; the gradient's norm ``[1]``.
        """
        self._skips.keep()
        self._optimizer.zero_grad(set_to_none=True)
        shares = []
        for n, rows in enumerate(parts, start=1):
            with self._world.accumulating(self._loss, n < len(parts)):
                loss, terms = self._loss(rows, forced, ratio, weight)
                loss.backward()
            shares.append(terms)
        norm = clip_gradients(self._parameters, self._train.grad_clip)
        total = self._world.add(shares[0] if len(shares) == 1 else torch.stack(shares).sum(0))
        self._skips.decide(total, norm)  # the same in all processes
        self._optimizer.step()
        return total, norm[None]
