"""A training's events turned into its run folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from .. import checkpoint as checkpoints
from ..data.clip import VideoData
from ..engine.distributed import LostProcessError, World, detecting_lost_processes
from ..engine.fit import EpochEvent, StepEvent, Trainer
from ..errors import ToldElsewhereError
from ..reporter import Reporter
from ..run import Run
from ..signals import InterruptedRun, Interruption
from .validation import save_strip, validate


def fit(run: Run, trainer: Trainer, data: VideoData, reporter: Reporter) -> Run:
    """Run the trainer's events into the run folder, then validate.

    Of several processes all call this, and the first one writes.
    """
    world = trainer.world
    try:
        with Interruption() as interruption, _losses_told(run, world):
            trainer.asked = lambda: interruption.signum or 0
            trainer.on_validation = reporter.validating
            with reporter.training(trainer.config.train.epochs):
                _consume(run, trainer, data, reporter)
            if trainer.interrupted:
                _save_interrupted(run, trainer, data)
    except (InterruptedRun, KeyboardInterrupt):
        if world.leads:
            run.update_info(status="interrupted")
        raise
    except BaseException as error:
        if world.leads:
            run.update_info(status="failed", error=str(error) or type(error).__name__)
        raise
    if world.leads:
        run.update_info(status="finished", steps=trainer.step, train_seconds=round(trainer.seconds, 1))
    validate(run.path, reporter=reporter, overrides=[], data=data, world=world)
    return run


def _consume(run: Run, trainer: Trainer, data: VideoData, reporter: Reporter) -> None:
    """Go through the events; the first process logs, tells and saves."""
    saved_at = time.monotonic()
    for event in trainer.events():
        if not trainer.world.leads:
            continue
        if isinstance(event, EpochEvent):
            _log_epoch(run, trainer, data, event)
            reporter.epoch(event)
            saved_at = time.monotonic()
            continue
        _log_step(run, event)
        reporter.step(event)
        if time.monotonic() - saved_at > 60 * trainer.config.train.save_minutes:
            checkpoints.save_last(run, checkpoint(trainer, data))
            saved_at = time.monotonic()


def _save_interrupted(run: Run, trainer: Trainer, data: VideoData) -> None:
    """Save and raise. The others wait: the launcher ends everyone as soon as one has gone."""
    world, signum = trainer.world, trainer.interrupted
    with world.agreeing():
        if world.leads:
            checkpoints.save_last(run, checkpoint(trainer, data))
            run.update_info(status="interrupted")
    raise world.told_once(
        InterruptedRun(
            signum,
            f"interrupted at step {trainer.step}; everything is saved",
            f"go on with: cvae train --resume {run.path}",
        )
    )


@contextlib.contextmanager
def _losses_told(run: Run, world: World) -> Iterator[None]:
    """One process tells that another is gone, and notes it in the run: the first, or if that is the one that
    is gone the next."""
    try:
        with detecting_lost_processes():
            yield
    except LostProcessError as error:
        patience = time.monotonic() + (0 if world.leads else 2 + world.rank / 4)
        while run.info().get("status") == "running" and time.monotonic() < patience:
            time.sleep(0.1)
        if run.info().get("status") != "running":
            raise ToldElsewhereError(error.exit_code) from None
        run.update_info(status="failed", error=error.message)
        saved = run.checkpoint_path("last").is_file()
        hint = (
            f"go on with: cvae train --resume {run.path}" if saved else "nothing was saved yet: start again"
        )
        raise LostProcessError(error.message, hint) from None


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
    saved = checkpoint(trainer, data)
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


def checkpoint(trainer: Trainer, data: VideoData) -> dict[str, Any]:
    """What a checkpoint file holds."""
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
