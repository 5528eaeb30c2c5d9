"""Training batches: which frames of which clips, as a function of (seed, epoch), gathered on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.clip import Clip
from ..errors import UserError
from ..schema import TrainConfig
from ..seeding import stream
from .augment import augment
from .device import Device

RESIDENT_SHARE = 0.25
"""Share of the device's memory that the training frames may take to be kept there."""


class Batch(NamedTuple):
    """``frames [B, T, C, H, W]`` in [0, 1]; ``condition [B, T, ...]`` (label images in [0, 1])."""

    frames: Tensor
    condition: Tensor


def to_float(values: Tensor) -> Tensor:
    """Pictures as bytes become [0, 1]; vectors stay as they are."""
    return values.float().div_(255.0) if values.dtype == torch.uint8 else values.float()


class Frames:
    """The training frames: on the device when they fit, otherwise read from the memory map."""

    def __init__(self, clips: Sequence[Clip], device: Device) -> None:
        self._device = device.torch
        self._clips = clips
        size = sum(clip.frames.nbytes + clip.condition[: clip.n_frames].nbytes for clip in clips)
        self.resident = size <= RESIDENT_SHARE * _free_memory(device.torch)
        self._starts = np.cumsum([0] + [clip.n_frames for clip in clips])
        if self.resident:
            # Copied out of the read-only memory map: PyTorch has no read-only tensors.
            frames = np.concatenate([clip.frames for clip in clips])
            condition = np.concatenate([clip.condition[: clip.n_frames] for clip in clips])
            self._frames = torch.from_numpy(frames).to(self._device)
            self._condition = torch.from_numpy(condition).to(self._device)

    def gather(self, clip: Tensor, frame: Tensor) -> Batch:
        """Frames ``frame [B, T]`` of the clips ``clip [B]`` (both int64 on the CPU)."""
        if self.resident:
            index = (torch.from_numpy(self._starts)[clip][:, None] + frame).to(self._device)
            return Batch(to_float(self._frames[index]), to_float(self._condition[index]))
        rows = [(self._clips[int(c)], f.numpy()) for c, f in zip(clip, frame, strict=True)]
        frames = torch.from_numpy(np.stack([one.frames[f] for one, f in rows]))
        condition = torch.from_numpy(np.stack([one.condition[f] for one, f in rows]))
        return Batch(to_float(frames.to(self._device)), to_float(condition.to(self._device)))


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        import os

        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 4e9  # no such question on this system: assume a small machine


class Sampler:
    """Draws the batches of an epoch.

    ``windows``: runs of ``window`` consecutive frames, their starts ``stride`` apart; shuffled, each
    start also moves forward at random by less than a stride. ``pairs``: the same with the given frames
    taken from anywhere in the clip and only the others consecutive; ``window`` 2 is one pair.
    No batch holds frames of two clips in one row. The last incomplete batch is dropped.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        train: TrainConfig,
        sampling: str,
        seed: int,
        partial: float = 1.0,
        n_past: int = 1,
    ) -> None:
        """``lengths`` are the clips' frame counts; ``partial`` is ``data.partial``.

        Raises:
            UserError: too few frames for one batch.
        """
        self._train, self._seed = train, seed
        self._free = n_past if sampling == "pairs" else 0  # frames of a row from anywhere in the clip
        self._run = train.window - self._free  # consecutive frames of a row
        self._all = self._places(_first_frames(lengths, partial))
        fast = partial * train.fast_partial
        self._fast = self._places(_first_frames(lengths, fast)) if train.fast_epochs else self._all
        for places in (self._all, self._fast):
            if not len(places):
                raise UserError(
                    f"train.window: {train.window}, but no training clip has {self._run} frames",
                    "lower train.window, or raise data.partial",
                )
            if len(places) < train.batch_size and train.steps_per_epoch is None:
                raise UserError(
                    f"train.batch_size: {train.batch_size}, but the training clips hold only {len(places)} "
                    f"runs of {self._run} frames",
                    "lower train.batch_size or train.window, or raise data.partial",
                )

    def _places(self, lengths: Sequence[int]) -> np.ndarray:
        """``[N, 4]``: clip, first and last possible start of a run, length of the clip."""
        rows: list[tuple[int, int, int, int]] = []
        stride = self._train.stride or self._run
        for clip, length in enumerate(lengths):
            last = length - self._run
            rows += [
                (clip, start, min(start + stride - 1, last), length) for start in range(0, last + 1, stride)
            ]
        return np.array(rows, dtype=np.int64).reshape(-1, 4)

    def steps(self, epoch: int) -> int:
        """Optimiser steps of an epoch."""
        if self._train.steps_per_epoch is not None:
            return self._train.steps_per_epoch
        return len(self._fast if epoch < self._train.fast_epochs else self._all) // self._train.batch_size

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(clip ``[B]``, frame ``[B, T]``) of each batch from number ``first`` on."""
        places = self._fast if epoch < self._train.fast_epochs else self._all
        B, steps = self._train.batch_size, self.steps(epoch)
        passes = -(-steps * B // len(places))
        order = np.concatenate([self._order(len(places), epoch, k) for k in range(passes)])
        for step in range(first, steps):
            yield self._draw(places[order[step * B : (step + 1) * B]], epoch, step)

    def _order(self, n: int, epoch: int, k: int) -> np.ndarray:
        if not self._train.shuffle:
            return np.arange(n)
        permutation: np.ndarray = torch.randperm(n, generator=stream(self._seed, "order", epoch, k)).numpy()
        return permutation

    def _draw(self, rows: np.ndarray, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        clip, low, high, length = torch.from_numpy(rows).unbind(1)
        generator = stream(self._seed, "draw", epoch, step)
        start = low
        if self._train.shuffle:
            start = low + (torch.rand(len(rows), generator=generator) * (high - low + 1)).long()
        run = start[:, None] + torch.arange(self._run)
        anywhere = (torch.rand(len(rows), self._free, generator=generator) * length[:, None]).long()
        return clip, torch.cat([anywhere, run], 1)


def _first_frames(lengths: Sequence[int], share: float) -> list[int]:
    """The clips' lengths when only the first ``share`` of all frames is used."""
    left = int(sum(lengths) * share)
    kept = []
    for length in lengths:
        kept.append(min(length, left))
        left -= kept[-1]
    return kept


def batches(
    frames: Frames, sampler: Sampler, train: TrainConfig, seed: int, epoch: int, first: int = 0
) -> Iterator[Batch]:
    """The batches of an epoch from number ``first`` on, gathered and augmented."""
    for step, (clip, frame) in enumerate(sampler.epoch(epoch, first), start=first):
        batch = frames.gather(clip, frame)
        yield Batch(*augment(*batch, train.augment, stream(seed, "augment", epoch, step)))
