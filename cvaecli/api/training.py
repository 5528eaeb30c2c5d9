"""Train, resume, and try a training without doing it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint as checkpoints
from ..config.loading import load
from ..config.schema import RunConfig
from ..data.clip import VideoData
from ..data.robot import condition_stats
from ..engine import measure
from ..engine.device import Device, prepare
from ..engine.distributed import ALONE, World, join
from ..engine.fit import Trainer
from ..errors import UserError
from ..launch import several, told_once_a_machine
from ..reporter import Reporter, Silent
from ..run import Run, describe_environment, find
from .fitting import fit
from .loading import RUNS, build_model, load_data, load_initial_weights, refuse_overrides
from .tensorboard import require as require_tensorboard


def train(
    config: RunConfig,
    *,
    name: str | None = None,
    stem: str | None = None,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> Run:
    """Train a model from nothing, validate it, and leave everything in a new run folder.

    Args:
        config: see ``config.load``.
        name: the run's name; ``<stem>-001``... when unset. ``stem`` defaults to the model's name.
        runs: folder of the runs.

    Returns:
        The run, with checkpoints, metrics, sample strips and ``eval/val``.

    Raises:
        UserError: the data or the config cannot be used; no run is left behind.
        InterruptedRun: Ctrl-C or SIGTERM; the checkpoint to resume from is saved.
        CvaeError: the loss is not finite; the last good checkpoint is kept.
    """
    with join(config.runtime.device) as world:
        reporter = (reporter or Silent()) if world.leads else Silent()
        data, trainer = _prepared(config, reporter, world)
        run = world.once(lambda: _new_run(config, runs, stem, name, data, trainer))
        return fit(run, trainer, data, reporter)


def _new_run(
    config: RunConfig, runs: Path, stem: str | None, name: str | None, data: VideoData, trainer: Trainer
) -> Run:
    run = Run.create(runs, stem or config.model_name, name)
    run.write_config(config)
    run.update_info(
        **describe_environment(),
        seed=config.seed,
        device=trainer.device.name,
        processes=trainer.world.size,
        precision=trainer.device.precision,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        data={"source": data.source, "fingerprint": data.fingerprint},
        status="running",
    )
    run.make_latest()
    return run


def resume(
    run: str | Path, overrides: Sequence[str] = (), *, runs: Path = RUNS, reporter: Reporter | None = None
) -> Run:
    """Go on with an interrupted training, bit for bit on the same machine where nothing is overridden.

    Args:
        run: see ``run.find``.
        overrides: of train.*, eval.*, runtime.* and data.root; the data must be the same ones.

    Raises:
        UserError: nothing to resume, other data, or an override that would make it another run.
    """
    reporter = reporter or Silent()
    with told_once_a_machine():
        home, _ = find(run, runs)
        refuse_overrides(overrides, ("train.", "eval.", "runtime.", "data.root"))
        # Where there are several processes they must meet before they read the checkpoint.
        device = load(home.path / "config.yaml", overrides).runtime.device if several() else "auto"
    with join(device) as world:
        reporter = reporter if world.leads else Silent()
        saved, warning = world.once(lambda: checkpoints.load_for_resume(home))
        if warning:
            reporter.warn(warning)
        config = checkpoints.config_of(saved, overrides)
        data, trainer = _prepared(config, reporter, world, saved)
        world.once(lambda: _note_resumption(home, trainer, reporter))
        return fit(home, trainer, data, reporter)


def _note_resumption(run: Run, trainer: Trainer, reporter: Reporter) -> None:
    run.forget_after(trainer.step)
    run.write_config(trainer.config)
    run.make_latest()
    if trainer.finished:
        reporter.note(
            f"{run.path}: all {trainer.step} steps are done; raise train.epochs or a stop to train longer"
        )
    else:
        reporter.note(f"resuming {run.path} at epoch {trainer.epoch}, step {trainer.step}")
    run.update_info(
        status="running",
        resumed_at_step=trainer.step,
        device=trainer.device.name,
        processes=trainer.world.size,
    )


def _prepared(
    config: RunConfig, reporter: Reporter, world: World, saved: Mapping[str, Any] | None = None
) -> tuple[VideoData, Trainer]:
    """The data and the trainer, going on from the checkpoint ``saved``; no process goes on without all.

    Raises:
        UserError: these are not the data that the checkpoint was trained on.
    """
    with world.agreeing():
        require_tensorboard(config)
        device = prepare(config.runtime)
    data = load_data(config, ("train", "val"), reporter, world)
    with world.agreeing():
        if saved is not None and data.fingerprint != saved["data_fingerprint"]:
            raise UserError(
                f"{data.source}: not the data this run was trained on (fingerprint {data.fingerprint}, "
                f"was {saved['data_fingerprint']})",
                "restore them, or start a new run",
            )
        trainer = build_trainer(config, data, device, reporter, saved is None, world)
        if saved is not None:
            trainer.load_state_dict(saved["trainer"], saved["model"])
    return data, trainer


def build_trainer(
    config: RunConfig,
    data: VideoData,
    device: Device,
    reporter: Reporter,
    fresh: bool = True,
    world: World = ALONE,
) -> Trainer:
    """A fresh model and what trains it.

    Args:
        fresh: tell the model its data's statistics and start from ``train.init``, whose statistics then
            hold, for its weights know no others. A resumed training has both in its checkpoint.
    """
    train_clips = data.splits["train"]
    model = build_model(config, train_clips[0].condition.shape[1:])
    if fresh and train_clips[0].condition.ndim == 2:
        mean, std = condition_stats(train_clips)
        model.set_condition_stats(torch.from_numpy(mean), torch.from_numpy(std))
    if fresh and config.train.init is not None:
        load_initial_weights(model, config.train.init, reporter)
    return Trainer(model, config, device, train_clips, data.splits["val"], world)


def dry_run(config: RunConfig, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Everything a training does first, and one step of it; leaves no run behind.

    Returns:
        Sizes and estimates: ``parameters``, ``train_frames``, ``steps``, ``seconds_per_step``,
        ``estimated_minutes`` (training alone, without validations), ``peak_memory_gb``, shapes.
    """
    with join(config.runtime.device) as world:
        reporter = (reporter or Silent()) if world.leads else Silent()
        return _report(*_prepared(config, reporter, world))


def _report(data: VideoData, trainer: Trainer) -> dict[str, Any]:
    config, device, total = trainer.config, trainer.device, trainer.total_steps
    # Within the first epoch: its end would be a whole validation.
    count = min(3, trainer.sampler.steps(0), config.train.max_steps or total)
    times = [time.perf_counter()]
    for _ in itertools.islice(trainer.events(), count):
        device.synchronize()
        times.append(time.perf_counter())
    seconds = times[-1] - times[-2]
    steps = min(total, config.train.max_steps or total)
    train_clips = data.splits["train"]
    return {
        "model": config.model_name,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "device": device.name,
        "precision": device.precision,
        "data": data.source,
        "splits": {split: [clip.n_frames for clip in clips] for split, clips in data.splits.items()},
        "frame_shape": list(train_clips[0].frames.shape[1:]),
        "condition_shape": list(train_clips[0].condition.shape[1:]),
        "batch": [config.train.batch_size, config.train.window],
        "processes": trainer.world.size,
        "steps": steps,
        "seconds_per_step": round(seconds, 4),
        "estimated_minutes": round(seconds * steps / 60, 1),
        "peak_memory_gb": round(measure.peak_memory(device) / 1e9, 2),
    }
