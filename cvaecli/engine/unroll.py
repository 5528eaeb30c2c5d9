"""A training batch predicted step by step, fed as the teacher-forcing coin says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.base import Features, State, Step, VideoCVAE, join_steps, slice_time, stack_steps
from ..schema import TeacherForcingConfig
from .batches import Batch


class Noise(NamedTuple):
    """The standard normal noise of a training step, drawn before it.

    Attributes:
        z: one tensor ``[B, T - 1, *shape]`` a latent level.
        fed: what is added to the frame ``[B, C, H, W]`` that each step but the first is fed, times
            ``teacher_forcing.noise``; None where nothing is.
    """

    z: list[Tensor]
    fed: list[Tensor | None]


def draw_noise(
    model: VideoCVAE,
    frames: Tensor,
    forcing: TeacherForcingConfig | None,
    forced: Sequence[bool],
    generator: torch.Generator,
    rows: range,
    of: int,
) -> Noise:
    """The noise of the rows ``rows`` of a batch of ``of``: what others hold the rest changes nothing.

    Args:
        frames: of these rows, ``[len(rows), T, C, H, W]``.
        forcing, forced: as for ``unroll``.
        generator: on the frames' device.
    """
    T, size = frames.shape[1], frames.shape[2:]

    def draw(*shape: int) -> Tensor:
        whole = torch.randn(of, *shape, generator=generator, device=frames.device)
        return whole[rows.start : rows.stop]

    z = [draw(T - 1, *shape) for shape in model.noise_shapes((size[1], size[2]))]
    if forcing is None or model.parallel or not forcing.noise:
        return Noise(z, [None] * (len(forced) - 1))
    true = forcing.mode == "replace"
    return Noise(z, [None if is_forced and true else draw(*size) for is_forced in forced[1:]])


def unroll(
    model: VideoCVAE,
    batch: Batch,
    n_past: int,
    forcing: TeacherForcingConfig | None,
    forced: Sequence[bool],
    ratio: float | Tensor,
    drawn: Noise,
    posterior: bool,
) -> Step:
    """The K = T - n_past predicted frames of a batch, and the past ones of a burn-in before them.

    Where every input is known, all steps go through the model at once.

    Args:
        batch: frames ``[B, T, C, H, W]`` and conditions ``[B, T, ...]``.
        forcing: None for models that feed nothing back.
        forced: for each of the K steps, whether its input is teacher-forced; the first step is fed the
            true past frame in any case.
        ratio: teacher-forcing ratio, the share of the true frame in a blend.
        drawn: the noise behind z and of the feedback, see ``draw_noise``.
        posterior: z from the posterior, or as in prediction from the prior.
    """
    frames, condition, P = batch.frames, batch.condition, n_past
    noise = [n[:, P - 1 :] for n in drawn.z]
    features = model.encode(condition[:, P:], frames[:, P:] if posterior else None)
    given, state = model.burn_in(frames[:, :P], condition[:, :P], [n[:, : P - 1] for n in drawn.z])
    if model.parallel or (forcing and all(forced) and forcing.mode == "replace"):
        steps: Step = model.unroll(state, frames[:, P - 1 : -1], features, noise, posterior)[0]
    else:
        assert forcing is not None
        fed = _Feed(forcing, ratio)
        steps = _free_running(
            model, state, frames[:, P - 1 :], features, noise, drawn.fed, forced, fed, posterior
        )
    if given is None:
        return steps
    # On the prior there is no KL term, and so none for the steps between past frames either.
    return join_steps(given if posterior else given._replace(q=()), steps)


def _free_running(
    model: VideoCVAE,
    state: State,
    frames: Tensor,
    features: Features,
    noise: Sequence[Tensor],
    fed_noise: Sequence[Tensor | None],
    forced: Sequence[bool],
    feed: _Feed,
    posterior: bool,
) -> Step:
    """Step by step; ``frames [B, 1 + K, ...]`` are true."""
    x, steps = frames[:, 0], []
    for k in range(frames.shape[1] - 1):
        step, state = model.step(state, x, slice_time(features, k), [n[:, k] for n in noise], posterior)
        steps.append(step)
        if k + 1 < len(forced):
            x = feed(step.x_hat.float(), frames[:, k + 1], forced[k + 1], fed_noise[k])
    return stack_steps(steps)


class _Feed:
    """The next step's input: the true frame, a blend of both, or the prediction."""

    def __init__(self, forcing: TeacherForcingConfig, ratio: float | Tensor) -> None:
        self._forcing, self._ratio = forcing, ratio

    def __call__(self, x_hat: Tensor, x: Tensor, is_forced: bool, noise: Tensor | None) -> Tensor:
        forcing = self._forcing
        if is_forced and forcing.mode == "replace":
            return x
        if forcing.detach == "on" or (forcing.detach == "unforced" and not is_forced):
            x_hat = x_hat.detach()
        if noise is not None:
            x_hat = x_hat + forcing.noise * noise
        return self._ratio * x + (1 - self._ratio) * x_hat if is_forced else x_hat
