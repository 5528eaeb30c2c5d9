"""Predict a training batch over time: all steps together if possible, otherwise one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..models.base import Features, State, Step, VideoCVAE, join_steps, slice_time, stack_steps
from .batches import Batch
from .device import recomputed
from .teacher_forcing import Feed

T = TypeVar("T")


class DrawnNoise(NamedTuple):
    """The standard normal noise of a training step, drawn before it.

    Attributes:
        z: noise from which z is sampled, one tensor ``[B, T - 1, *shape]`` per latent level.
        feedback: for each predicted step but the first, the noise ``[B, C, H, W]`` added to the frame that is
            fed to it; None if none is added.
    """

    z: list[Tensor]
    feedback: list[Tensor | None]


def draw_noise(
    model: VideoCVAE,
    frames: Tensor,
    noisy: Sequence[bool],
    generator: torch.Generator,
    rows: range,
    batch_size: int,
) -> DrawnNoise:
    """Noise for some rows of a batch, drawn for all rows and cut, so that a row's noise does not depend on
    how the batch is divided.

    Args:
        frames: the frames of these rows, ``[len(rows), T, C, H, W]``.
        noisy: see ``teacher_forcing.noisy_inputs``.
        generator: on the frames' device.
        rows: numbers of the rows in the batch of ``batch_size`` rows.
    """
    T, size = frames.shape[1], frames.shape[2:]

    def draw(*shape: int) -> Tensor:
        whole = torch.randn(batch_size, *shape, generator=generator, device=frames.device)
        return whole[rows.start : rows.stop]

    z = [draw(T - 1, *shape) for shape in model.noise_shapes((size[1], size[2]))]
    return DrawnNoise(z, [draw(*size) if wanted else None for wanted in noisy])


def unroll(
    model: VideoCVAE,
    batch: Batch,
    n_past: int,
    feed: Feed,
    drawn: DrawnNoise,
    posterior_rows: int,
    kept_steps: int | None = None,
) -> Step:
    """Predict the last K = T - n_past frames of a batch, and before them any past frames that the model's
    burn-in predicts.

    Args:
        batch: frames ``[B, T, C, H, W]`` and conditions ``[B, T, ...]``.
        drawn: see ``draw_noise``.
        posterior_rows: how many rows, from the first on, have z from the posterior; the others have it from
            the prior, as in prediction. All or none, unless the model ``mixes``.
        kept_steps: ``train.kept_steps``.
    """
    frames, condition, P, posterior = batch.frames, batch.condition, n_past, posterior_rows > 0

    def run(function: Callable[..., T], *arguments: Any) -> T:
        return recomputed(model, function, *arguments) if kept_steps else function(*arguments)

    noise = [n[:, P - 1 :] for n in drawn.z]
    features = run(model.encode, condition[:, P:], frames[:posterior_rows, P:] if posterior else None)
    given, state = model.burn_in(frames[:, :P], condition[:, :P], [n[:, : P - 1] for n in drawn.z])
    pieces = [] if given is None else [given]
    if given is not None and not posterior:
        # Prior rows have no KL term, so they have none for the steps between past frames either.
        pieces = [given._replace(q=())]
    together, K = feed.all_known(model) and batch.first_input is None, len(feed.forced)
    known = frames[:, P - 1 :]
    x = known[:, 0] if batch.first_input is None else batch.first_input
    for first in range(0, K, kept_steps or K):
        these = slice(first, min(first + (kept_steps or K), K))
        some, some_noise = slice_time(features, these), [n[:, these] for n in noise]
        true = known[:, these.start : these.stop + 1]  # the true inputs of these steps, and one more frame
        if together:
            steps, state = run(model.unroll, state, true[:, :-1], some, some_noise, posterior)
        else:
            feedback = drawn.feedback[these]
            steps, state, x = run(
                _one_by_one, model, state, x, true, some, some_noise, feed, first, feedback, posterior
            )
        pieces.append(steps)
    return join_steps(pieces)


def _one_by_one(
    model: VideoCVAE,
    state: State,
    x: Tensor,
    true: Tensor,
    features: Features,
    noise: Sequence[Tensor],
    feed: Feed,
    first: int,
    feedback: Sequence[Tensor | None],
    posterior: bool,
) -> tuple[Step, State, Tensor]:
    """Compute consecutive steps, each with the input that ``feed`` chooses.

    Args:
        x: the input of the first of these steps, which is step ``first``.
        true: ``[B, K + 1, C, H, W]``, the true frames before each of the K steps and after the last.

    Returns:
        The steps, the state after them, and the input of the next step (the last prediction if there is no
        next step).
    """
    steps = []
    for k in range(true.shape[1] - 1):
        step, state = model.step(state, x, slice_time(features, k), [n[:, k] for n in noise], posterior)
        steps.append(step)
        x = step.x_hat.float()
        if first + k + 1 < len(feed.forced):
            x = feed.after(first + k, x, true[:, k + 1], feedback[k])
    return stack_steps(steps), state, x
