"""The loss of a training step, as one module: what DistributedDataParallel and a CUDA graph wrap."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config.schema import RunConfig
from ..models.base import Step, VideoCVAE
from ..objective import reconstruction, total_kl
from ..seeding import stream
from .batches import Batch
from .compiled import compiled
from .device import Device
from .split import Split
from .unroll import Noise, draw_noise, unroll


class Part(NamedTuple):
    """Rows of a batch that are predicted together.

    Attributes:
        noise: behind their z and what is fed back.
        told: so many of them, the first, have z from the posterior, the others from the prior.
    """

    batch: Batch
    noise: Noise
    told: int


class Loss(nn.Module):
    """The loss of some rows of a global batch, such that the parts of a batch add up to the whole's.

    Args:
        model: on the device.
        split: of the global batch; gives the means their denominators.
        total_steps: of the whole run.
    """

    def __init__(
        self, model: VideoCVAE, config: RunConfig, device: Device, split: Split, total_steps: int
    ) -> None:
        super().__init__()
        self.model = model  # as a part of this module, for its parameters
        # Not as another part: it is the same model.
        self._run = functools.partial(unroll, compiled(model, config.runtime, device, total_steps))
        self._config, self._device, self._split = config, device, split

    def forward(
        self,
        parts: Sequence[Part],
        forced: Sequence[bool],
        ratio: float | Tensor,
        weight: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss of the rows, and the terms of it; nothing here waits for the device.

        Args:
            parts: the rows; those with z from the posterior are in the first part.
            forced, ratio: see ``unroll.unroll``.
            weight: of the KL term.

        Returns:
            The loss to be differentiated, whose gradient is this part's share of the whole batch's (with
            several processes, before DistributedDataParallel takes the mean), and ``[4]``: this part's
            share of the first four ``TRAIN_TERMS``, detached.
        """
        train = self._config.train
        with self._device.autocast():
            steps = [self._unroll(part, forced, ratio) for part in parts]
        errors = [
            # The last frames: those to predict, and past ones where the model predicts these too.
            reconstruction(some.x_hat, part.batch.frames[:, -some.x_hat.shape[1] :], train.recon).sum(0)
            for some, part in zip(steps, parts, strict=True)
        ]
        recon = torch.stack(errors).sum(0) / self._split.batch  # (K,)
        kl = total_kl(steps[0])  # (told rows, K) nats
        K = kl.shape[1]
        # Divided by all rows, as the reconstruction is: on a row with a KL term the two keep their ratio
        # whatever the share of rows without one (hybrid objective, Sohn et al. 2015).
        penalised = kl.clamp(min=self._config.kl.free_bits).sum(0) / self._split.batch
        weighted = weight * penalised
        per_step = recon + weighted  # (K,)
        loss = per_step.sum() if train.time_reduction == "sum" else per_step.mean()
        nats = kl.sum() / (self._split.told * K)
        terms = torch.stack([per_step.mean(), recon.mean(), nats, weighted.mean()])
        return loss * self._split.size, terms.detach()

    def parts(self, batch: Batch, n: int, step: int, forced: Sequence[bool]) -> list[Part]:
        """Part ``n`` of this process's rows of a step's batch, as ``forward`` wants them.

        Noise is a row's own, whoever computes the row: drawn for the whole batch, and cut.
        """
        rows, held, told = self._split.part(n), self._split.held(n), self._split.told

        def part(where: range, numbers: range, of: int, purpose: str, known: int) -> Part:
            mine = Batch(*(values[where.start : where.stop] for values in batch))
            generator = stream(self._config.seed, purpose, step, device=self._device.torch)
            forcing = self._config.teacher_forcing
            noise = draw_noise(self.model, mine.frames, forcing, forced, generator, numbers, of)
            return Part(mine, noise, known)

        first = part(held.told, rows.told, told, "z", len(held.told))
        if not rows.untold:
            return [first]
        others = range(rows.untold.start - told, rows.untold.stop - told)
        second = part(held.untold, others, self._split.batch - told, "z from the prior", 0)
        return [_joined(first, second)] if self.model.mixes else [first, second]

    def _unroll(self, part: Part, forced: Sequence[bool], ratio: float | Tensor) -> Step:
        n_past, forcing = self._config.data.n_past, self._config.teacher_forcing
        keep = self._config.train.kept_steps
        return self._run(part.batch, n_past, forcing, forced, ratio, part.noise, part.told, keep)


def _joined(first: Part, second: Part) -> Part:
    """The rows of both."""
    batch = Batch(*(torch.cat(values) for values in zip(first.batch, second.batch, strict=True)))
    one, two = first.noise, second.noise
    z = [torch.cat(levels) for levels in zip(one.z, two.z, strict=True)]
    fed = [
        None if a is None or b is None else torch.cat((a, b)) for a, b in zip(one.fed, two.fed, strict=True)
    ]
    return Part(batch, Noise(z, fed), first.told)


def kl_scale(config: RunConfig, model: VideoCVAE, frame_shape: Sequence[int]) -> float:
    """What ``kl.reduction`` multiplies the KL of a frame, in nats, by.

    Args:
        frame_shape: ``(C, H, W)``.
    """
    if config.kl.reduction == "sum":
        return 1.0
    if config.kl.reduction == "pixel":
        return 1.0 / math.prod(frame_shape)
    shapes = model.noise_shapes((frame_shape[-2], frame_shape[-1]))
    return 1.0 / sum(math.prod(shape) for shape in shapes)


def kl_factor(config: RunConfig, scale: float, beta: float) -> float:
    """The factor of the KL term, in nats per frame, in the loss: beta times ``kl.weight`` times its scale.

    Args:
        scale: from ``kl_scale``.
        beta: of the step.
    """
    return beta * config.kl.weight * scale
