"""Teacher forcing: the coin, whether all inputs are known in advance, and what is fed to each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..config.schema import TeacherForcingConfig
from ..models.base import VideoCVAE
from ..schedules import tfr
from ..seeding import stream


def forced(
    forcing: TeacherForcingConfig | None, seed: int, step: int, epoch: int, *, time_steps: int
) -> list[bool]:
    """Which time steps of a batch are teacher-forced, decided by a coin toss (``teacher_forcing.coin``).

    The coin is a function of the seed and the epoch (or step), not of a consumed generator.

    Args:
        forcing: None for models that feed nothing back; then no step is forced.

    Returns:
        ``time_steps`` flags; all the same unless a coin is tossed for every step.
    """
    ratio = tfr(forcing, epoch) if forcing else 0.0
    if forcing is None or ratio in (0.0, 1.0):
        return [ratio == 1.0] * time_steps
    toss = epoch if forcing.coin == "epoch" else step
    coins = torch.rand(time_steps, generator=stream(seed, "coin", toss))
    if forcing.coin != "step":
        return [bool(coins[0] < ratio)] * time_steps
    return [bool(coin < ratio) for coin in coins]


def noisy_inputs(forcing: TeacherForcingConfig | None, forced: Sequence[bool]) -> list[bool]:
    """For each step but the first, whether ``teacher_forcing.noise`` is added to its input: always if the
    input contains a prediction.

    Args:
        forced: see ``Feed``.
    """
    if forcing is None or not forcing.noise:
        return [False] * (len(forced) - 1)
    return [not (is_forced and forcing.mode == "replace") for is_forced in forced[1:]]


class Feed(NamedTuple):
    """What is fed to the K predicted steps of a batch.

    Attributes:
        config: None for models that feed nothing back.
        forced: for each of the K steps, whether its input is teacher-forced. The first flag changes no
            input: the first step is fed the last given frame, or ``Batch.first_input``.
        ratio: teacher-forcing ratio, the share of the true frame in a blend.
    """

    config: TeacherForcingConfig | None
    forced: Sequence[bool]
    ratio: float | Tensor

    def all_known(self, model: VideoCVAE) -> bool:
        """Whether no step needs an earlier prediction: the model is parallel, or all steps are fed true
        frames. The steps can then be computed together."""
        return model.parallel or bool(self.config and self.config.mode == "replace" and all(self.forced))

    def after(self, k: int, x_hat: Tensor, x: Tensor, noise: Tensor | None) -> Tensor:
        """The input of the step after step ``k``: the true frame, a blend of both, or the prediction.

        Args:
            x_hat, x: the predicted and the true frame of step ``k``, ``[B, C, H, W]``.
            noise: standard normal, in the frame's shape; None if none is added.
        """
        config = self.config
        assert config is not None, "a model without feedback predicts all steps together"
        is_forced = self.forced[k + 1]
        if is_forced and config.mode == "replace":
            return x
        if config.detach == "on" or (config.detach == "unforced" and not is_forced):
            x_hat = x_hat.detach()
        if noise is not None:
            x_hat = x_hat + config.noise * noise
        return self.ratio * x + (1 - self.ratio) * x_hat if is_forced else x_hat
