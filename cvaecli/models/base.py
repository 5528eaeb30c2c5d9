"""The protocol that every model follows, so that the engine never asks which model it runs.

A clip is a sequence of steps. Step ``t`` predicts frame ``t`` from the previous frame (true or predicted),
the condition of frame ``t`` and a latent ``z_t``. ``z_t`` is drawn from the posterior where the true frame
``t`` is known (training), and from the prior otherwise (prediction). State that one step leaves for the next
(an LSTM's cell, skip features, a reference frame) is passed in and returned, never stored in the module.

If all inputs are known (a parallel model, or every step teacher-forced) the engine calls ``unroll`` once;
otherwise it calls ``step`` in a loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..settings import Section
from .layers import split_time

Features = dict[str, Tensor]
"""What a model computes for K steps at once: tensors ``[B, K, ...]``. The engine slices them along K."""

State = Any
"""A model's own tuple of tensors. The engine only passes it on."""


class Gaussian(NamedTuple):
    """A diagonal normal distribution: ``mu`` and ``logvar`` (log of the variance), of the same shape."""

    mu: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """``mu + noise * sigma`` (Kingma & Welling 2014). Noise 0 gives the mean."""
        return self.mu + noise * torch.exp(0.5 * self.logvar)


class Step(NamedTuple):
    """The result of one step, or of K steps with a time axis after the batch axis.

    Attributes:
        x_hat: predicted frame ``[B, C, H, W]`` (K steps: ``[B, K, C, H, W]``), not clamped.
        q: posterior, one Gaussian per latent level; empty if z came from the prior. It has fewer rows
            than ``x_hat`` if only the first rows had targets (``VideoCVAE.mixes``).
        p: prior, one Gaussian per latent level.
    """

    x_hat: Tensor
    q: tuple[Gaussian, ...]
    p: tuple[Gaussian, ...]


class ForeignWeights(NamedTuple):
    """Weights from another program's file.

    Attributes:
        state_dict: for ``load_state_dict``; tensors on the CPU.
        notes: facts and harmless oddities of the file, one line each.
    """

    state_dict: dict[str, Tensor]
    notes: list[str]


class ForeignSettings(NamedTuple):
    """What another program's file says about its model.

    Attributes:
        model: the config section ``model``; keys that are not there have their defaults.
        data: keys of the config section ``data``.
        condition: channels of its label images, or length of its condition vectors; 0: it has none.
        epochs: complete epochs of its training; 0 if unknown.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    condition: int
    epochs: int


class ModelConfig(Section):
    """Base of a model's settings. Each model declares ``name`` with its own name as type and default."""

    name: str


class VideoCVAE(nn.Module, ABC):
    """A conditional VAE that predicts video step by step."""

    Config: ClassVar[type[ModelConfig]]
    parallel: ClassVar[bool] = False
    """True for a model whose predictions do not depend on one another: ``unroll`` gets all steps at once."""
    sampling: ClassVar[str] = "windows"
    """How training batches are drawn: ``windows`` of consecutive frames, or ``pairs``, where the given
    frames come from anywhere in the clip and only the frames to predict are consecutive."""

    mixes: ClassVar[bool] = False
    """True for a model that can train on posterior rows and prior rows in one pass: if only the first rows of
    the batch have targets, it draws z from the posterior for these and from the prior for the others."""

    ends: ClassVar[tuple[str, ...]] = ()
    """First parts of the names of weights that read pictures, conditions or z, or write pictures or z. The
    optimiser Muon leaves them to AdamW."""

    def average_over_flips(self, wanted: bool = True) -> None:
        """From now on, outside training, average each prediction with that of the mirrored pictures, or not.

        Raises:
            UserError: the model cannot.
        """
        if not wanted:
            return
        name = self.Config.model_fields["name"].default
        raise UserError(
            f"eval.average_flips: the model {name} cannot average over flips",
            "set eval.average_flips=false; reference and anchored can",
        )

    @abstractmethod
    def noise_shapes(self, size: tuple[int, int]) -> list[tuple[int, ...]]:
        """Shape of one step's noise, without the batch axis, for each latent level.

        Args:
            size: (H, W) of the frames.
        """

    def check_batches(self, size: tuple[int, int], rows: int) -> None:
        """Refuse training batches that the model cannot train on.

        Args:
            size: (H, W) of the frames.
            rows: number of rows that pass through the model together, at the least.

        Raises:
            UserError: there are too few rows, or the frames have a size that the model cannot have.
        """
        self.noise_shapes(size)

    def set_condition_stats(self, mean: Tensor, std: Tensor) -> None:
        """Receive the mean and standard deviation ``[D]`` of the training clips' condition vectors.

        Called once, before training. A model that normalises its conditions keeps them with its weights;
        other models ignore them.
        """
        return

    def foreign_weights(self, path: Path) -> ForeignWeights | None:
        """Read weights that another program wrote for this architecture.

        Args:
            path: a file that is not a checkpoint of this tool.

        Returns:
            The weights; None (the default) for a model that cannot read other programs' files.

        Raises:
            UserError: the file cannot be read, or does not fit the model.
        """
        return None

    @classmethod
    def foreign_settings(cls, path: Path) -> ForeignSettings | None:
        """The settings that go with ``foreign_weights``; arguments and errors as there."""
        return None

    @abstractmethod
    def encode(self, condition: Tensor, targets: Tensor | None = None) -> Features:
        """Compute, for K steps at once, everything that needs no predicted frame.

        Args:
            condition: ``[B, K, ...]``; label images are in [0, 1].
            targets: the true frames ``[B, K, C, H, W]`` in [0, 1] if z is drawn from the posterior; with
                ``mixes`` possibly only for the first rows. None: z is drawn from the prior.
        """

    @abstractmethod
    def start(self, past: Tensor, condition: Tensor) -> State:
        """The state before the first predicted frame.

        Args:
            past: the given true frames ``[B, n_past, C, H, W]``.
            condition: their conditions ``[B, n_past, ...]``.
        """

    def burn_in(self, past: Tensor, condition: Tensor, noise: Sequence[Tensor]) -> tuple[Step | None, State]:
        """The training version of ``start``.

        A model may predict each given frame from the one before and return these ``n_past - 1`` predictions;
        the loss then includes them. The default returns None.

        Args:
            past, condition: as for ``start``.
            noise: ``[B, n_past - 1, *shape]`` per latent level.
        """
        return None, self.start(past, condition)

    @abstractmethod
    def step(
        self, state: State, x_prev: Tensor, features: Features, noise: Sequence[Tensor], posterior: bool
    ) -> tuple[Step, State]:
        """Predict one frame.

        Args:
            state: from ``start`` or the previous ``step``.
            x_prev: the previous frame, true or predicted, ``[B, C, H, W]``.
            features: one step of ``encode``'s result, ``[B, ...]`` each.
            noise: standard normal, one tensor ``[B, *shape]`` per latent level.
            posterior: draw z from the posterior (``encode`` was given targets), else from the prior.
        """

    def unroll(
        self, state: State, x_prev: Tensor, features: Features, noise: Sequence[Tensor], posterior: bool
    ) -> tuple[Step, State]:
        """``step`` for K steps whose inputs are all known; every argument has a time axis K after B.

        This loop is correct for every model. A model that can compute the steps together overrides it and
        must return the same numbers.
        """
        steps = []
        for k in range(x_prev.shape[1]):
            one, state = self.step(
                state, x_prev[:, k], slice_time(features, k), [n[:, k] for n in noise], posterior
            )
            steps.append(one)
        return stack_steps(steps), state


def slice_time(features: Features, k: int | slice) -> Features:
    """Step ``k`` (or several consecutive steps) of features ``[B, K, ...]``."""
    return {name: value[:, k] for name, value in features.items()}


def join_steps(parts: Sequence[Step]) -> Step:
    """Join steps ``[B, K_1, ...]``, ``[B, K_2, ...]``, ... along time."""
    return parts[0] if len(parts) == 1 else _combined(torch.cat, parts)


def stack_steps(steps: Sequence[Step]) -> Step:
    """Stack K steps ``[B, ...]`` along a new time axis: ``[B, K, ...]``."""
    return _combined(torch.stack, steps)


def _combined(together: Callable[..., Tensor], steps: Sequence[Step]) -> Step:
    """The steps' tensors put together along axis 1 by ``torch.cat`` or ``torch.stack``."""

    def join(gaussians: Sequence[tuple[Gaussian, ...]]) -> tuple[Gaussian, ...]:
        levels = zip(*gaussians, strict=True)
        return tuple(Gaussian(*(together(part, 1) for part in zip(*level, strict=True))) for level in levels)

    x_hat, q, p = zip(*steps, strict=True)
    return Step(together(x_hat, 1), join(q), join(p))


def fold_time(
    draw: Callable[[Features, Sequence[Tensor]], Step], features: Features, noise: Sequence[Tensor]
) -> Step:
    """Compute K steps as one batch of B * K: ``unroll`` for a model whose state never changes.

    Args:
        draw: computes steps ``[N, ...]`` from features and noise ``[N, ...]``.
        features, noise: ``[B, K, ...]`` each.

    Returns:
        The K steps, ``[B, K, ...]``.
    """
    K = noise[0].shape[1]
    flat = {name: value.flatten(0, 1) for name, value in features.items()}
    steps = draw(flat, [n.flatten(0, 1) for n in noise])

    def unfold(levels: tuple[Gaussian, ...]) -> tuple[Gaussian, ...]:
        return tuple(Gaussian(split_time(g.mu, (-1, K)), split_time(g.logvar, (-1, K))) for g in levels)

    return Step(split_time(steps.x_hat, (-1, K)), unfold(steps.q), unfold(steps.p))


def follows(x_prev: Tensor, targets: Tensor | None) -> bool:
    """Whether the previous frames ``[B, K, ...]``, from the second on, are the targets of the step before.

    Results for the targets can then be used again. True frames are recognised by their memory:
    both tensors are views of one clip.
    """
    if targets is None or x_prev.shape != targets.shape:
        return False
    return x_prev.shape[1] > 1 and x_prev[:, 1:].is_set_to(targets[:, :-1])
