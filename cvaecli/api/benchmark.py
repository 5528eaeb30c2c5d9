"""How fast a config is on this device, and what fraction of the device's peak that is."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..config.schema import RunConfig
from ..data.clip import Clip, VideoData
from ..engine import graph, measure
from ..engine.batches import stacked
from ..engine.device import Device, prepare
from ..engine.events import Event, StepEvent
from ..engine.fit import Trainer
from ..engine.measure import Peak
from ..engine.rollout import prior_noise, rollout
from ..models.base import VideoCVAE
from ..reporter import Advance, Reporter, Silent
from ..run import describe_environment
from .loading import load_data, warn_of_unusable_gpu
from .preparation import build_trainer

WARM_UP = graph.WARM_UP
"""Number of steps after the first one that are not timed either; a CUDA graph is recorded at the last."""

BLOCKS = 5
"""Number of blocks that the timed steps are divided into; the result is the median block."""


def bench(
    config: RunConfig,
    *,
    steps: int = 10,
    frames: int = 128,
    from_process_start: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure a config's training and rollout on this device with the engine's own loops, without a run
    folder.

    The training steps are those of the config's first epoch. The rollout predicts one clip, whose conditions
    are repeated if it is shorter than ``frames``.

    Args:
        steps: optimiser steps to time, after four that are not timed.
        frames: frames to predict in the timed rollout.
        from_process_start: measure the time to the first step from the start of the process, including
            imports, instead of from this call.

    Returns:
        ``train_frames_per_s`` and ``rollout_frames_per_s`` (predicted frames); ``peak_gflops``, the faster of
        ``peak_gflops_matmul`` and ``peak_gflops_conv``; ``train_fraction_of_peak`` and
        ``rollout_fraction_of_peak`` (FLOPs of a frame as the tool computes it, times frames/s, divided by the
        peak); memory of training and rollout (see ``measure.memory_gb``);
        ``seconds_to_first_step``; and model, device, versions, data and sizes.

    Raises:
        UserError: the data or the config cannot be used.
    """
    reporter = reporter or Silent()
    age = measure.process_age() if from_process_start else None
    began = time.perf_counter() - (age or 0.0)
    device = prepare(config.runtime)
    warn_of_unusable_gpu(config, reporter)
    data = load_data(config, ("train", "val"), reporter)
    if device.torch.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device.torch)
    trainer = new_trainer(config, steps, data, device)
    events = trainer.events()
    first = next(events)
    assert isinstance(first, StepEvent)
    device.synchronize()
    to_first_step = time.perf_counter() - began
    with reporter.task("Timing training steps") as advance:
        seconds_per_step = _time_steps(events, steps, device, advance)
    with reporter.task("Timing the rollout") as advance:
        seconds = _time_rollout(trainer, data, frames, advance)
    memory = measure.memory_gb(device)
    events.close()  # type: ignore[attr-defined]  # gives back the memory of its graphs
    del trainer, events
    with reporter.task("Counting, measuring the peak"):
        flops = _count(config, data, device, frames)
        peak = measure.measure_peak(device)
    predicted = config.train.batch_size * (config.train.window - config.data.n_past)
    return {
        **_setting(config, data, device),
        "forced": first.forced,
        "steps": steps,
        "seconds_per_step": round(seconds_per_step, 5),
        **_against_peak("train", predicted, seconds_per_step, flops["train"], peak),
        "frames": frames,
        "rollout_seconds": round(seconds, 4),
        **_against_peak("rollout", frames, seconds, flops["rollout"], peak),
        "peak_gflops": round(max(peak), 2),
        "peak_gflops_matmul": round(peak.matmul, 2),
        "peak_gflops_conv": round(peak.conv, 2),
        **memory,
        "seconds_to_first_step": round(to_first_step, 3),
        "first_step_counted_from": "call" if age is None else "process start",
    }


def _against_peak(name: str, frames: int, seconds: float, flops: float, peak: Peak) -> dict[str, float]:
    """Frames per second, GFLOP per frame, and the fraction of the peak that follows from both."""
    return {
        f"{name}_frames_per_s": round(frames / seconds, 3),
        f"{name}_gflop_per_frame": round(flops / frames / 1e9, 5),
        f"{name}_fraction_of_peak": round(flops / seconds / max(peak) / 1e9, 4),
    }


def first_epoch(config: RunConfig, steps: int) -> RunConfig:
    """The config with a first epoch that does not end, in a validation, before these steps are timed."""
    enough = {"steps_per_epoch": steps + WARM_UP + 2, "max_steps": None, "max_minutes": None}
    return config.model_copy(update={"train": config.train.model_copy(update=enough)})


def new_trainer(config: RunConfig, steps: int, data: VideoData, device: Device) -> Trainer:
    """The trainer of a new run, with at least ``steps`` steps to time (see ``first_epoch``)."""
    return build_trainer(first_epoch(config, steps), data, device, Silent())


def _time_steps(events: Iterator[Event], steps: int, device: Device, advance: Advance) -> float:
    """Seconds per optimiser step, including its batch and its report: the median over the blocks."""
    for _ in itertools.islice(events, WARM_UP):
        pass
    times, done = [], 0
    for n in range(min(BLOCKS, steps)):
        count = (steps - done) // (min(BLOCKS, steps) - n)
        device.synchronize()
        began = time.perf_counter()
        for _ in itertools.islice(events, count):
            pass
        device.synchronize()
        times.append((time.perf_counter() - began) / count)
        done += count
        advance(done, steps)
    return statistics.median(times)


def _time_rollout(trainer: Trainer, data: VideoData, frames: int, advance: Advance) -> float:
    """Seconds of one clip's rollout, including its start, after an untimed warm-up."""
    config, device = trainer.config, trainer.device
    model = device.for_inference(trainer.trained.eval())
    clip = data.splits["val"][0]
    for _ in clip_rollout(model, clip, min(frames, config.eval.chunk), config, device):
        pass
    device.synchronize()
    began, done = time.perf_counter(), 0
    for x_hat in clip_rollout(model, clip, frames, config, device):
        done += x_hat.shape[1]
        advance(done, frames)
    device.synchronize()
    return time.perf_counter() - began


def clip_rollout(
    model: VideoCVAE, clip: Clip, frames: int, config: RunConfig, device: Device, clips: int = 1
) -> Iterator[torch.Tensor]:
    """``engine.rollout`` of a clip in pieces of ``eval.chunk``, its conditions repeated as often as needed.

    Args:
        model: in evaluation mode, on the device; pass it through ``Device.for_inference`` first.
        frames: number of frames to predict.
        clips: number of rows of the batch; they differ only in their noise.

    Yields:
        ``[clips, k, C, H, W]``, k at most ``config.eval.chunk``.
    """
    P, chunk = config.data.n_past, config.eval.chunk
    numbers, names = P + np.arange(frames) % (clip.n_steps - P), [clip.name + n * "'" for n in range(clips)]
    size = (clip.frames.shape[2], clip.frames.shape[3])

    def load(values: np.ndarray) -> torch.Tensor:
        return stacked([values] * clips, device.torch)

    pieces = (load(clip.condition[numbers[k : k + chunk]]) for k in range(0, frames, chunk))
    noise = prior_noise(model, names, size, prior=config.eval.prior, seed=config.seed, n_past=P)
    return rollout(model, load(clip.frames[:P]), load(clip.condition[:P]), pieces, noise, device)


def _count(config: RunConfig, data: VideoData, device: Device, frames: int) -> dict[str, float]:
    """FLOPs of one training step and of a rollout, counted on a new, uncompiled model."""
    plain = config.runtime.model_copy(update={"compile": "off", "graphs": False})
    trainer = new_trainer(config.model_copy(update={"runtime": plain}), 1, data, device)
    events = trainer.events()
    train = measure.count_flops(lambda: next(events))
    model, clip = device.for_inference(trainer.trained.eval()), data.splits["val"][0]
    one, two = (
        measure.count_flops(lambda n=n: list(clip_rollout(model, clip, n, config, device)))  # type: ignore[misc]
        for n in (1, 2)
    )
    return {"train": train, "rollout": one + (frames - 1) * (two - one)}


def _setting(config: RunConfig, data: VideoData, device: Device) -> dict[str, Any]:
    """Model, sizes, device and versions that the numbers belong to."""
    return {
        "model": config.model_name,
        "device": device.name,
        "precision": device.precision,
        "compile": config.runtime.compile,
        "threads": torch.get_num_threads(),
        "versions": describe_environment()["versions"],
        "data": data.source,
        "batch": [config.train.batch_size, config.train.window],
        "frame_size": list(data.frame_size),
    }
