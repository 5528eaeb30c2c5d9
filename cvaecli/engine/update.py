"""One optimiser step: the gradient of all micro-batches, its clipping, and the change of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config.schema import TrainConfig
from .distributed import World
from .loss import Group
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
        micro_batches: Sequence[Sequence[Group]],
        forced: Sequence[bool],
        ratio: float | Tensor,
        factor: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Make the step. The host does not wait for the device.

        Args:
            micro_batches: ``train.accumulate`` of them; see ``Loss.groups``.
            forced, ratio, factor: see ``Loss.forward``.

        Returns:
            The loss terms of the whole batch ``[4]``; the gradient's norm ``[1]``.
        """
        self._skips.keep()
        self._optimizer.zero_grad(set_to_none=True)
        shares = []
        for n, groups in enumerate(micro_batches, start=1):
            with self._world.accumulating(self._loss, n < len(micro_batches)):
                loss, terms = self._loss(groups, forced, ratio, factor)
                loss.backward()
            shares.append(terms)
        norm = clip_gradients(self._parameters, self._train.grad_clip)
        total = self._world.add(shares[0] if len(shares) == 1 else torch.stack(shares).sum(0))
        self._skips.decide(total, norm)  # the same in all processes
        self._optimizer.step()
        return total, norm[None]
