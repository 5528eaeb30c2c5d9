"""Train, resume, and try a training without doing it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint as checkpoints
from ..data.clip import VideoData
from ..data.robot import condition_stats
from ..engine.device import Device, prepare
from ..engine.fit import EpochEvent, StepEvent, Trainer
from ..errors import UserError
from ..reporter import Reporter, Silent
from ..run import Run, describe_environment, find
from ..schema import RunConfig
from ..signals import InterruptedRun, Interruption
from .joining import RUNS, build_model, load_data, load_initial_weights, refuse_overrides
from .validation import save_strip, validate


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
    reporter = reporter or Silent()
    device = prepare(config.runtime)
    data = load_data(config, ("train", "val"), reporter)
    trainer = _trainer(config, data, device, reporter)
    run = Run.create(runs, stem or config.model_name, name)
    run.write_config(config)
    run.update_info(
        **describe_environment(),
        seed=config.seed,
        device=device.name,
        precision=device.precision,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        data={"source": data.source, "fingerprint": data.fingerprint},
        status="running",
    )
    run.make_latest()
    return _fit(run, trainer, data, reporter)


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
    home, _ = find(run, runs)
    refuse_overrides(overrides, ("train.", "eval.", "runtime.", "data.root"))
    saved, warning = checkpoints.load_for_resume(home)
    if warning:
        reporter.warn(warning)
    config = checkpoints.config_of(saved, overrides)
    device = prepare(config.runtime)
    data = load_data(config, ("train", "val"), reporter)
    if data.fingerprint != saved["data_fingerprint"]:
        raise UserError(
            f"{data.source}: not the data this run was trained on (fingerprint {data.fingerprint}, "
            f"was {saved['data_fingerprint']})",
            "restore them, or start a new run",
        )
    trainer = _trainer(config, data, device, reporter, fresh=False)
    trainer.load_state_dict(saved["trainer"], saved["model"])
    home.forget_after(trainer.step)
    home.write_config(config)
    home.make_latest()
    if trainer.finished:
        reporter.note(
            f"{home.path}: all {trainer.step} steps are done; raise train.epochs or a stop to train longer"
        )
    else:
        reporter.note(f"resuming {home.path} at epoch {trainer.epoch}, step {trainer.step}")
    home.update_info(status="running", resumed_at_step=trainer.step, device=device.name)
    return _fit(home, trainer, data, reporter)


def _trainer(
    config: RunConfig, data: VideoData, device: Device, reporter: Reporter, fresh: bool = True
) -> Trainer:
    """``fresh``: tell the model its data's statistics and start from ``train.init``, whose statistics then
    hold, for its weights know no others. A resumed training has both in its checkpoint."""
    train_clips = data.splits["train"]
    model = build_model(config, train_clips[0].condition.shape[1:])
    if fresh and train_clips[0].condition.ndim == 2:
        mean, std = condition_stats(train_clips)
        model.set_condition_stats(torch.from_numpy(mean), torch.from_numpy(std))
    if fresh and config.train.init is not None:
        load_initial_weights(model, config.train.init, reporter)
    return Trainer(model, config, device, train_clips, data.splits["val"])


def _fit(run: Run, trainer: Trainer, data: VideoData, reporter: Reporter) -> Run:
    """Run the trainer's events into the run folder, then validate."""
    try:
        with Interruption() as interruption, reporter.training(trainer.config.train.epochs):

            def stop_if_asked() -> None:
                if interruption.signum is not None:
                    checkpoints.save_last(run, _checkpoint(trainer, data))
                    raise InterruptedRun(
                        interruption.signum,
                        f"interrupted at step {trainer.step}; everything is saved",
                        f"go on with: cvae train --resume {run.path}",
                    )

            def validating(done: int, total: int) -> None:
                reporter.validating(done, total)
                stop_if_asked()

            trainer.on_validation = validating
            saved_at = time.monotonic()
            for event in trainer.events():
                if isinstance(event, StepEvent):
                    _log_step(run, event)
                    reporter.step(event)
                    if time.monotonic() - saved_at > 60 * trainer.config.train.save_minutes:
                        checkpoints.save_last(run, _checkpoint(trainer, data))
                        saved_at = time.monotonic()
                else:
                    _log_epoch(run, trainer, data, event)
                    reporter.epoch(event)
                    saved_at = time.monotonic()
                if not trainer.finished:
                    stop_if_asked()
    except (InterruptedRun, KeyboardInterrupt):
        run.update_info(status="interrupted")
        raise
    except BaseException as error:
        run.update_info(status="failed", error=str(error) or type(error).__name__)
        raise
    run.update_info(status="finished", steps=trainer.step, train_seconds=round(trainer.seconds, 1))
    validate(run.path, reporter=reporter, overrides=[], data=data)
    return run


def _log_step(run: Run, event: StepEvent) -> None:
    if event.terms is not None:
        run.add_step(
            {
                "step": event.step,
                "epoch": event.epoch,
                **event.terms,
                "beta": event.beta,
                "tfr": event.tfr,
                "forced": event.forced,
                "lr": event.lr,
                "frames_per_s": event.frames_per_s,
            }
        )


def _log_epoch(run: Run, trainer: Trainer, data: VideoData, event: EpochEvent) -> None:
    """Checkpoints first: the row of an epoch says that the epoch is safe."""
    saved = _checkpoint(trainer, data)
    checkpoints.save_last(run, saved)
    weights_only = {key: value for key, value in saved.items() if key != "trainer"}
    if event.best:
        checkpoints.save(run, "best", weights_only)
    every = trainer.config.train.save_every
    if every and event.complete and (event.epoch + 1) % every == 0:
        checkpoints.save(run, f"epoch-{event.epoch:04d}", weights_only)
    run.add_metrics(event.row)
    if event.evaluation and trainer.config.eval.sample_strips:
        save_strip(event.evaluation, run.path / "samples" / f"epoch-{event.epoch:04d}.png")


def _checkpoint(trainer: Trainer, data: VideoData) -> dict[str, Any]:
    return {
        "format": checkpoints.FORMAT,
        "config": trainer.config.to_yaml(),
        "model": trainer.trained.state_dict(),
        "condition_shape": list(data.splits["train"][0].condition.shape[1:]),
        "data_fingerprint": data.fingerprint,
        "epoch": trainer.epoch,
        "step": trainer.step,
        "psnr": trainer.best_psnr,
        "trainer": trainer.state_dict(),
    }


def dry_run(config: RunConfig, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Everything a training does first, and one step of it; leaves no run behind.

    Returns:
        Sizes and estimates: ``parameters``, ``train_frames``, ``steps``, ``seconds_per_step``,
        ``estimated_minutes`` (training alone, without validations), ``peak_memory_gb``, shapes.
    """
    reporter = reporter or Silent()
    device = prepare(config.runtime)
    data = load_data(config, ("train", "val"), reporter)
    trainer = _trainer(config, data, device, reporter)
    total = trainer.total_steps
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
        "steps": steps,
        "seconds_per_step": round(seconds, 4),
        "estimated_minutes": round(seconds * steps / 60, 1),
        "peak_memory_gb": round(_peak_memory(device) / 1e9, 2),
    }


def _peak_memory(device: Device) -> float:
    """Bytes: of the accelerator, or of this process."""
    if device.torch.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device.torch))
    try:
        import resource
        import sys
    except ImportError:  # not a POSIX system
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
