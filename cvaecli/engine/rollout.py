"""Prediction: from the given frames and the conditions, one frame after the other, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..models.base import State, Step, VideoCVAE, slice_time, stack_steps
from ..seeding import frame_noise
from .device import Device
from .prefetch import to_device

Noise = Callable[[int, int], Sequence[Tensor]]
"""``noise(first, count)``: the noise of ``count`` steps from predicted step ``first`` (counted from 0) on,
one tensor ``[B, count, *shape]`` per latent level."""


def prior_noise(
    model: VideoCVAE,
    clips: Sequence[str],
    size: tuple[int, int],
    *,
    prior: str,
    seed: int,
    n_past: int,
    sample: int = 0,
) -> Noise:
    """The noise of a rollout.

    Args:
        clips: the clips' names, one per batch row.
        size: (H, W) of the frames.
        prior: ``sample``, or ``mean`` for zeros: z is the prior's mean.
        n_past: frame number of the first predicted frame.
        sample: number of the sample; each has its own noise.
    """
    shapes = model.noise_shapes(size)
    if prior == "mean":
        return lambda first, count: [torch.zeros(len(clips), count, *shape) for shape in shapes]
    return lambda first, count: frame_noise(
        seed, clips, range(n_past + first, n_past + first + count), shapes, sample
    )


def rollout(
    model: VideoCVAE,
    past: Tensor,
    past_condition: Tensor,
    conditions: Iterable[Tensor],
    noise: Noise,
    device: Device,
) -> Iterator[Tensor]:
    """Predict free-running: each frame from the model's own previous prediction.

    Args:
        model: in evaluation mode; pass it through ``Device.for_inference`` first to avoid casts at every
            step.
        past: true frames ``[B, n_past, C, H, W]`` on the device.
        past_condition: their conditions ``[B, n_past, ...]``.
        conditions: conditions of the steps to predict, in pieces ``[B, k, ...]`` of any size; may be endless.
        noise: see ``Noise``.

    Yields:
        The predictions of each piece, ``[B, k, C, H, W]``, float32, not clamped. They do not depend on how
        the conditions are divided into pieces.
    """
    with torch.inference_mode(), device.autocast():
        state = model.start(past, past_condition)
    x, first = past[:, -1], 0
    for piece in conditions:
        K = piece.shape[1]
        drawn = [to_device(n, past.device) for n in noise(first, K)]
        with torch.inference_mode(), device.autocast():
            steps, state = predict(model, state, x, piece, drawn)
        predicted = steps.x_hat.float()
        x, first = predicted[:, -1], first + K
        yield predicted


def predict(
    model: VideoCVAE, state: State, x: Tensor, condition: Tensor, noise: Sequence[Tensor]
) -> tuple[Step, State]:
    """Predict the next K steps with z from the prior, each from the prediction before it. A parallel model
    predicts all at once.

    Args:
        x: the frame before these steps, ``[B, C, H, W]``.
        condition: ``[B, K, ...]``.

    Returns:
        The steps and the state after them.
    """
    features = model.encode(condition)
    K = condition.shape[1]
    if model.parallel:
        return model.unroll(state, x[:, None].expand(-1, K, -1, -1, -1), features, noise, posterior=False)
    steps = []
    for k in range(K):
        step, state = model.step(state, x, slice_time(features, k), [n[:, k] for n in noise], posterior=False)
        x = step.x_hat.float()
        steps.append(step)
    return stack_steps(steps), state
