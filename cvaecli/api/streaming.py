"""Videos predicted several at a time and handed on piece by piece: memory does not grow with length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .. import metrics
from ..config.schema import RunConfig
from ..data.clip import Clip
from ..engine.batches import to_float
from ..engine.device import Device
from ..engine.prefetch import on_host, to_device
from ..engine.rollout import Noise, prior_noise, rollout
from ..models.base import VideoCVAE


class Video(NamedTuple):
    """A video to predict.

    Attributes:
        clip: gives the first frames and the conditions.
        frames: number of its frames, given ones included.
        sample: another number, other noise.
    """

    clip: Clip
    frames: int
    sample: int = 0


def predicted(
    model: VideoCVAE, videos: Sequence[Video], config: RunConfig, device: Device
) -> Iterator[npt.NDArray[np.uint8]]:
    """The given frames, then the predicted ones, of videos of equal length.

    Each video has its own noise, a function of (seed, sample, clip, frame): it is the same in whatever
    company it is predicted (up to rounding: a device may add up in another order for another batch).
    Conditions are read from the memory map piece by piece, as they are needed.

    Yields:
        uint8 ``[B, k, H, W, C]``, in turn for the given frames and for every ``eval.chunk`` predicted ones.
    """
    P, n, chunk = config.data.n_past, videos[0].frames, config.eval.chunk

    def load(part: str, first: int, last: int) -> torch.Tensor:
        rows = [getattr(video.clip, part)[first:last] for video in videos]
        return to_float(to_device(np.stack(rows), device.torch))

    yield np.moveaxis(np.stack([video.clip.frames[:P] for video in videos]), 2, -1)
    conditions = (load("condition", first, min(first + chunk, n)) for first in range(P, n, chunk))
    past, past_condition = load("frames", 0, P), load("condition", 0, P)
    noise = _noise(model, videos, config)
    pieces = rollout(model, past, past_condition, conditions, noise, device)
    shown = (metrics.shown(x_hat).mul(255).round().byte().movedim(2, -1).contiguous() for x_hat in pieces)
    for piece in on_host(shown):
        yield piece.numpy()


def _noise(model: VideoCVAE, videos: Sequence[Video], config: RunConfig) -> Noise:
    """Each row's noise is what it would be alone."""
    alone = [
        prior_noise(
            model,
            [video.clip.name],
            (video.clip.frames.shape[2], video.clip.frames.shape[3]),
            prior=config.eval.prior,
            seed=config.seed,
            n_past=config.data.n_past,
            sample=video.sample,
        )
        for video in videos
    ]
    return lambda first, count: [
        torch.cat(rows) for rows in zip(*(one(first, count) for one in alone), strict=True)
    ]
