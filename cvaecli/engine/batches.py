"""Training batches: which frames of which clips, as a function of (seed, epoch), gathered and augmented."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config.schema import RunConfig, TrainConfig
from ..data.clip import Clip, first_frames
from ..data.kinds import KINDS
from ..errors import UserError
from ..models.base import VideoCVAE
from ..seeding import stream
from .augmentation import augment
from .device import Device
from .prefetch import ahead, empty_on_host, to_device

RESIDENT_SHARE = 0.25
"""Share of the device's memory that the training frames may take to be kept there."""


class Batch(NamedTuple):
    """Rows of training frames.

    Attributes:
        frames: ``[B, T, C, H, W]`` in [0, 1].
        condition: ``[B, T, ...]``; label images are in [0, 1].
        first_input: what the first predicted step is fed, ``[B, C, H, W]``; None: the last given frame.
    """

    frames: Tensor
    condition: Tensor
    first_input: Tensor | None = None

    def rows(self, rows: slice) -> Batch:
        """Some of the rows."""
        first_input = None if self.first_input is None else self.first_input[rows]
        return Batch(self.frames[rows], self.condition[rows], first_input)


def to_float(values: Tensor) -> Tensor:
    """Pictures as bytes become [0, 1]; vectors stay as they are."""
    return values.float().div_(255.0) if values.dtype == torch.uint8 else values.float()


def stacked(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Equal parts of several clips, ``[T, ...]`` each, as one batch ``[B, T, ...]`` of floats."""
    return to_float(to_device(np.stack(arrays), device))


def sampling(config: RunConfig, model: type[VideoCVAE]) -> str:
    """How batches are drawn, ``windows`` or ``pairs``: see ``train.sampling``."""
    vectors = bool(KINDS[config.data.kind].columns)
    return config.train.sampling or ("windows" if vectors else model.sampling)


Draw = tuple[Tensor, Tensor]
"""Which frames make a batch: clips ``[B]`` and frame numbers ``[B, T]``, int64 on the CPU."""

FirstInput = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""From clips ``[B]``, frame numbers ``[B, T]``, frames ``[B, T, C, H, W]`` and the step in the epoch to
``Batch.first_input``."""


class Frames:
    """The training frames: on the device when they fit, otherwise read from the memory map.

    The set may be larger than memory: what was read stays in the system's page cache as long as there is
    room. It counts as shared memory, not as this process's own.
    """

    def __init__(self, clips: Sequence[Clip], device: Device) -> None:
        self._device = device.torch
        self._clips = clips
        size = sum(clip.frames.nbytes + clip.condition[: clip.n_frames].nbytes for clip in clips)
        self.resident = size <= RESIDENT_SHARE * _free_memory(device.torch)
        self._starts = np.cumsum([0] + [clip.n_frames for clip in clips])
        if self.resident:
            self._frames = self._joined([clip.frames for clip in clips])
            self._condition = self._joined([clip.condition[: clip.n_frames] for clip in clips])

    def _joined(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """The arrays one after the other, on the device. The host holds a copy of one at a time."""
        dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
        joined = torch.empty(sum(map(len, arrays)), *arrays[0].shape[1:], dtype=dtype, device=self._device)
        for start, array in zip(self._starts[:-1], arrays, strict=True):
            # A copy: PyTorch has no read-only tensors.
            joined[start : start + len(array)] = torch.from_numpy(array.copy())
        return joined

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Batch]]:
        """Each draw with its batch.

        Frames that are not resident are read in a thread, a few batches ahead of the one in use.
        """
        if self.resident:
            yield from ((draw, self.gather(*draw)) for draw in draws)
        elif self._device.type == "cpu":
            yield from ahead((draw, self.gather(*draw)) for draw in draws)
        else:  # the other thread reads bytes; this one copies them to the device and converts them there
            for draw, parts in ahead((draw, self._read(*draw)) for draw in draws):
                yield draw, self._on_device(parts)

    def gather(self, clip: Tensor, frame: Tensor) -> Batch:
        """The batch of one draw."""
        if not self.resident:
            return self._on_device(self._read(clip, frame))
        index = to_device(torch.from_numpy(self._starts)[clip][:, None] + frame, self._device)
        return Batch(to_float(self._frames[index]), to_float(self._condition[index]))

    def _on_device(self, parts: tuple[Tensor, Tensor]) -> Batch:
        frames, condition = (to_float(part.to(self._device, non_blocking=True)) for part in parts)
        return Batch(frames, condition)

    def _read(self, clip: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Frames and conditions as stored in the memory map, copied into the host's memory."""
        chosen = [self._clips[c] for c in clip.tolist()]
        frames = self._gathered([one.frames for one in chosen], frame)
        return frames, self._gathered([one.condition for one in chosen], frame)

    def _gathered(self, arrays: Sequence[np.ndarray], frame: Tensor) -> Tensor:
        dtype = torch.uint8 if arrays[0].dtype == np.uint8 else torch.float32
        made = empty_on_host((*frame.shape, *arrays[0].shape[1:]), dtype, self._device)
        for row, array, wanted in zip(made.numpy(), arrays, frame.numpy(), strict=True):
            row[:] = array[wanted]
        return made


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        free = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        # Each process on this machine keeps its own copy.
        return free / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    except (ValueError, OSError, AttributeError):
        return 4e9  # unknown on this system: assume a small machine


class Sampler:
    """Draws the batches of an epoch.

    ``windows``: runs of ``window`` consecutive frames that start ``stride`` apart. With shuffling each start
    also moves forward by a random amount below the stride. ``pairs``: the given frames are drawn at random
    from the whole clip and only the others are consecutive; a ``window`` of 2 is one pair.
    All frames of a row come from one clip. The last incomplete batch is dropped.
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
        """``lengths`` are the clips' frame counts; ``sampling`` is windows or pairs; ``partial`` is
        ``data.partial``.

        Raises:
            UserError: too few frames for one batch.
        """
        self._train, self._seed = train, seed
        # Numbers of frames of a row: those from anywhere in the clip, and consecutive ones.
        self._anywhere = n_past if sampling == "pairs" else 0
        self._run = train.window - self._anywhere
        self._all = self._starts(first_frames(lengths, partial))
        fast = partial * train.fast_partial
        self._fast = self._starts(first_frames(lengths, fast)) if train.fast_epochs else self._all
        shares = "data.partial" + (", train.fast_partial" if train.fast_epochs else "")
        for starts in (self._all, self._fast):
            if not len(starts):
                raise UserError(
                    f"train.window: {train.window}, but no training clip has {self._run} frames",
                    f"lower train.window, or raise {shares}",
                )
            if len(starts) < train.batch_size and train.steps_per_epoch is None:
                raise UserError(
                    f"train.batch_size: {train.batch_size}, but the training clips hold only {len(starts)} "
                    f"runs of {self._run} frames",
                    f"lower train.batch_size or train.window, or raise {shares}",
                )

    @classmethod
    def of(cls, config: RunConfig, model: type[VideoCVAE], clips: Sequence[Clip]) -> Sampler:
        """The sampler of a training on these clips; raises what the constructor does."""
        lengths, data = [clip.n_frames for clip in clips], config.data
        return cls(lengths, config.train, sampling(config, model), config.seed, data.partial, data.n_past)

    def _starts(self, lengths: Sequence[int]) -> np.ndarray:
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

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Draw]:
        """The draw of each batch from number ``first`` on."""
        starts = self._fast if epoch < self._train.fast_epochs else self._all
        B, steps = self._train.batch_size, self.steps(epoch)
        order = self._order(len(starts), epoch, steps * B)
        for step in range(first, steps):
            yield self._draw(starts[order[step * B : (step + 1) * B]], epoch, step)

    def _order(self, n: int, epoch: int, count: int) -> np.ndarray:
        """Which of ``n`` starts the ``count`` rows of an epoch take, pass after pass.

        With shuffling each pass of each epoch has its own order. Without it an epoch of ``steps_per_epoch``
        continues where the last one stopped; the first epoch and the first after the fast ones begin at 0.
        """
        if self._train.shuffle:
            passes = range(-(-count // n))
            orders = [torch.randperm(n, generator=stream(self._seed, "order", epoch, k)) for k in passes]
            return torch.cat(orders).numpy()
        train, start = self._train, 0
        if train.steps_per_epoch is not None:
            earlier = epoch if epoch < train.fast_epochs else epoch - train.fast_epochs
            start = earlier * count
        return np.arange(start, start + count) % n

    def _draw(self, starts: np.ndarray, epoch: int, step: int) -> Draw:
        clip, low, high, length = torch.from_numpy(starts).unbind(1)
        generator = stream(self._seed, "draw", epoch, step)
        start = low
        if self._train.shuffle:
            start = low + (torch.rand(len(starts), generator=generator) * (high - low + 1)).long()
        run = start[:, None] + torch.arange(self._run)
        anywhere = (torch.rand(len(starts), self._anywhere, generator=generator) * length[:, None]).long()
        return clip, torch.cat([anywhere, run], 1)


def batches(
    frames: Frames,
    sampler: Sampler,
    train: TrainConfig,
    seed: int,
    epoch: int,
    first: int = 0,
    rows: Sequence[int] | None = None,
    first_input: FirstInput | None = None,
) -> Iterator[Batch]:
    """The batches of an epoch from number ``first`` on, gathered and augmented.

    Args:
        rows: only these rows of every batch; all when unset. The rows themselves are the same.
        first_input: the function that chooses ``Batch.first_input``, before augmentation.
    """
    mine = slice(None) if rows is None else rows
    draws = ((clip[mine], frame[mine]) for clip, frame in sampler.epoch(epoch, first))
    for step, (draw, batch) in enumerate(frames.batches(draws), start=first):
        pictures = batch.frames
        if first_input is not None:
            pictures = torch.cat((pictures, first_input(*draw, pictures, step)[:, None]), 1)
        generator = stream(seed, "augment", epoch, step)
        changed = augment(pictures, batch.condition, train.augment, generator, rows, train.batch_size)
        if first_input is None:
            yield Batch(*changed)
        else:
            yield Batch(changed[0][:, :-1], changed[1], changed[0][:, -1])
