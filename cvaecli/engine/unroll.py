"""A training batch predicted step by step, fed as the teacher-forcing coin says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.base import Features, State, Step, VideoCVAE, join_steps, slice_time, stack_steps
from ..schema import TeacherForcingConfig
from .batches import Batch


def unroll(
    model: VideoCVAE,
    batch: Batch,
    n_past: int,
    forcing: TeacherForcingConfig | None,
    forced: Sequence[bool],
    ratio: float,
    generator: torch.Generator,
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
        generator: of the noise behind z and of the feedback noise, on the batch's device.
        posterior: z from the posterior, or as in prediction from the prior.
    """
    frames, condition, P = batch.frames, batch.condition, n_past
    B, T, _, H, W = frames.shape
    drawn = [
        torch.randn(B, T - 1, *shape, generator=generator, device=frames.device)
        for shape in model.noise_shapes((H, W))
    ]
    noise = [n[:, P - 1 :] for n in drawn]
    features = model.encode(condition[:, P:], frames[:, P:] if posterior else None)
    given, state = model.burn_in(frames[:, :P], condition[:, :P], [n[:, : P - 1] for n in drawn])
    if model.parallel or (forcing and all(forced) and forcing.mode == "replace"):
        steps: Step = model.unroll(state, frames[:, P - 1 : -1], features, noise, posterior)[0]
    else:
        assert forcing is not None
        fed = _Feed(forcing, ratio, generator)
        steps = _free_running(model, state, frames[:, P - 1 :], features, noise, forced, fed, posterior)
    return steps if given is None else join_steps(given, steps)


def _free_running(
    model: VideoCVAE,
    state: State,
    frames: Tensor,
    features: Features,
    noise: Sequence[Tensor],
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
            x = feed(step.x_hat.float(), frames[:, k + 1], forced[k + 1])
    return stack_steps(steps)


class _Feed:
    """The next step's input: the true frame, a blend of both, or the prediction."""

    def __init__(self, forcing: TeacherForcingConfig, ratio: float, generator: torch.Generator) -> None:
        self._forcing, self._ratio, self._generator = forcing, ratio, generator

    def __call__(self, x_hat: Tensor, x: Tensor, is_forced: bool) -> Tensor:
        forcing = self._forcing
        if is_forced and forcing.mode == "replace":
            return x
        if forcing.detach == "on" or (forcing.detach == "unforced" and not is_forced):
            x_hat = x_hat.detach()
        if forcing.noise:
            noise = torch.randn(x.shape, generator=self._generator, device=x.device)
            x_hat = x_hat + forcing.noise * noise
        return self._ratio * x + (1 - self._ratio) * x_hat if is_forced else x_hat
