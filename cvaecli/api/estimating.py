"""Estimate the time and memory of a training from a few steps of it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

from ..config.schema import RunConfig
from ..data.clip import Clip, VideoData
from ..engine import measure
from ..engine.distributed import join
from ..engine.fit import Trainer
from ..engine.graph import WARM_UP
from ..reporter import Reporter, Silent
from .preparation import prepared


def dry_run(config: RunConfig, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Start a training and do a few steps of it; no run folder is left behind.

    Returns:
        Sizes and estimates: ``parameters``, ``steps``, ``seconds_per_step``, ``estimated_minutes`` (training
        alone, without validations), memory (see ``measure.memory_gb``), shapes; ``splits`` has for each split
        the number of ``clips``, of their ``frames`` in total, and of the frames of the ``shortest`` and
        ``longest`` clip.
    """
    with join(config.runtime.device) as world:
        reporter = (reporter or Silent()) if world.leads else Silent()
        return _report(*prepared(config, reporter, world))


def _report(data: VideoData, trainer: Trainer) -> dict[str, Any]:
    config, device, total = trainer.config, trainer.device, trainer.total_steps
    # The last step counts: with CUDA graphs the first replay after the recording. Stay within the first
    # epoch: it ends with a whole validation.
    wanted = WARM_UP + 2 if trainer.graphs else 3
    count = min(wanted, trainer.sampler.steps(0), config.train.max_steps or total)
    measure.reset_peak_memory(device)  # a sweep does several dry runs in one process
    times = [time.perf_counter()]
    for _ in itertools.islice(trainer.events(), count):
        device.synchronize()
        times.append(time.perf_counter())
    seconds = times[-1] - times[-2]
    steps = min(total, config.train.max_steps or total)
    minutes = min(seconds * steps / 60, config.train.max_minutes or math.inf)
    train_clips = data.splits["train"]
    return {
        "model": config.model_name,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "device": device.name,
        "precision": device.precision,
        "data": data.source,
        "splits": {split: _lengths(clips) for split, clips in data.splits.items()},
        "frame_shape": list(train_clips[0].frames.shape[1:]),
        "condition_shape": list(train_clips[0].condition.shape[1:]),
        "batch": [config.train.batch_size, config.train.window],
        "prior_share": trainer.prior_share,
        "processes": trainer.world.size,
        "steps": steps,
        "seconds_per_step": round(seconds, 4),
        "estimated_minutes": round(minutes, 1),
        **measure.memory_gb(device),
    }


def _lengths(clips: Sequence[Clip]) -> dict[str, int]:
    frames = [clip.n_frames for clip in clips]
    return {"clips": len(frames), "frames": sum(frames), "shortest": min(frames), "longest": max(frames)}
