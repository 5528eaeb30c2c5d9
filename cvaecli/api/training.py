"""Train a new model; write what happens in a training into the run folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import checkpoint as checkpoints
from ..config.schema import RunConfig
from ..data.clip import VideoData
from ..engine.distributed import LostProcessError, World, detecting_lost_processes, join
from ..engine.events import EpochEvent, Event, StepEvent
from ..engine.fit import Trainer
from ..engine.skipping import NoFiniteStepError, NotFiniteError
from ..errors import CvaeError, ReportedElsewhereError
from ..reporter import Reporter, Silent
from ..run import Run, describe_environment
from ..signals import InterruptedRun, Interruption
from .loading import RUNS
from .preparation import prepared
from .tensorboard import opened as opened_tensorboard
from .validation import save_strip, validate

SLOW = 30 * 60.0
"""Seconds. A training on a CPU that will take longer than this says so after its first steps."""
MEASURED = 15.0
"""Seconds of training that this estimate is based on."""


def train(
    config: RunConfig,
    *,
    name: str | None = None,
    stem: str | None = None,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> Run:
    """Train a new model and validate it; all files go to a new run folder.

    Args:
        config: see ``config.loading.load``.
        name: the run's name; ``<stem>-001``, ``<stem>-002``... when unset. ``stem`` defaults to the model's
            name.
        runs: folder for run folders.

    Returns:
        The run, with checkpoints, metrics, sample strips and ``eval/val``.

    Raises:
        UserError: the data or the config cannot be used; no run folder is left behind.
        InterruptedRun: Ctrl-C or SIGTERM; a checkpoint to resume from is saved.
        CvaeError: more than ``train.max_skips`` steps were not finite; the last good state is saved.
    """
    with join(config.runtime.device) as world:
        reporter = (reporter or Silent()) if world.leads else Silent()
        data, trainer = prepared(config, reporter, world)
        run = world.once(lambda: _new_run(config, runs, stem, name, data, trainer))
        with in_use(run, world):
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
        prior_share=trainer.prior_share,
        epoch_steps=[trainer.sampler.steps(epoch) for epoch in (0, config.train.fast_epochs)],
        data={"source": data.source, "fingerprint": data.fingerprint},
        status="running",
    )
    return run


# --- from events to files -----------------------------------------------------------------------------


@contextlib.contextmanager
def in_use(run: Run, world: World) -> Iterator[None]:
    """Keep other trainings from the run folder.

    Raises:
        UserError: another process trains this run.
    """
    with contextlib.ExitStack() as stack:
        with world.agreeing():
            if world.leads:
                stack.enter_context(run.locked())
        yield


def fit(run: Run, trainer: Trainer, data: VideoData, reporter: Reporter) -> Run:
    """Train, write events to the run folder, and validate at the end.

    With several processes all call this; only the first one writes.
    """
    world = trainer.world
    try:
        with Interruption() as interruption, _lost_process_reported(run, world):
            trainer.stop_requested = lambda: interruption.signum or 0
            trainer.on_validation = reporter.validating
            with (
                reporter.training(trainer.config.train.epochs),
                opened_tensorboard(run, trainer) as to_tensorboard,
            ):
                _consume(run, trainer, data, reporter, to_tensorboard)
            if trainer.interrupted:
                _save_interrupted(run, trainer, data)
    except (InterruptedRun, KeyboardInterrupt):
        if world.leads:
            run.update_info(status="interrupted")
        raise
    except BaseException as error:
        if world.leads:
            if isinstance(error, NotFiniteError) and not isinstance(error, NoFiniteStepError):
                _save_good(run, trainer, data, error)
            with contextlib.suppress(OSError, CvaeError):  # the disk may be full, or the folder gone
                run.update_info(status="failed", error=str(error) or type(error).__name__)
        raise
    if world.leads:
        run.update_info(status="finished", steps=trainer.step, train_seconds=round(trainer.seconds, 1))
    validate(run.path, reporter=reporter, config=trainer.config, data=data, world=world)
    return run


def _consume(
    run: Run, trainer: Trainer, data: VideoData, reporter: Reporter, to_tensorboard: Callable[[Event], None]
) -> None:
    """Train to the end; the first process writes rows and checkpoints and reports progress."""
    saved_at, duration = time.monotonic(), _Duration(trainer)
    for event in trainer.events():
        if not trainer.world.leads:
            continue
        run.require()
        to_tensorboard(event)
        if isinstance(event, EpochEvent):
            _log_epoch(run, trainer, data, event)
            reporter.epoch(event)
            saved_at = time.monotonic()
            continue
        _log_step(run, trainer, event)
        for line in event.skips:
            reporter.warn(line)
        reporter.step(event)
        if line := duration.line():
            reporter.note(line)
        if time.monotonic() - saved_at > 60 * trainer.config.train.save_minutes:
            save_last(run, checkpoint(trainer, data))
            saved_at = time.monotonic()


class _Duration:
    """Estimates once, from the first steps, how much longer a training on a CPU takes."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._first: tuple[int, float] | None = None  # a step, and the seconds of training by then
        self._done = trainer.device.torch.type != "cpu"

    def line(self) -> str:
        """The estimate if it is due and long, else an empty string. Call it after every step."""
        trainer, train = self._trainer, self._trainer.config.train
        if self._done:
            return ""
        if self._first is None:  # skip the first step, which allocates and may compile
            self._first = trainer.step, trainer.seconds
        steps, seconds = trainer.step - self._first[0], trainer.seconds - self._first[1]
        if not steps or seconds < MEASURED:
            return ""
        self._done = True
        left = min(trainer.total_steps, train.max_steps or trainer.total_steps) - trainer.step
        each = seconds / steps
        lasts = left * each
        if train.max_minutes is not None:
            lasts = min(lasts, 60 * train.max_minutes - trainer.seconds)
        if lasts < SLOW:
            return ""
        text = f"{lasts / 3600:.1f} hours" if lasts > 5400 else f"{lasts / 60:.0f} minutes"
        return (
            f"about {text} to go on this CPU ({left} steps, {each:.1f} s each, validations not counted); "
            "quicker: --config quickstart, or fewer train.epochs"
        )


def _save_interrupted(run: Run, trainer: Trainer, data: VideoData) -> None:
    """Save, then raise. No process may end before: the launcher ends all as soon as one is gone."""
    world, signum = trainer.world, trainer.interrupted
    with world.agreeing():
        if world.leads:
            run.require()
            save_last(run, checkpoint(trainer, data))
            run.update_info(status="interrupted")
    raise world.reported_once(
        InterruptedRun(
            signum,
            f"interrupted at step {trainer.step}; everything is saved",
            f"continue with: cvae train --resume {run.path}",
        )
    )


def _save_good(run: Run, trainer: Trainer, data: VideoData, error: NotFiniteError) -> None:
    """Save the state after a failure. Skipped steps change nothing, so it is good unless a weight is not
    finite; then the last checkpoint stays."""
    with contextlib.suppress(NotFiniteError):
        save_last(run, checkpoint(trainer, data))
    last = run.checkpoint_path("last")
    if last.is_file():
        error.hint += (
            f"; the last good state is saved, to start from it with other settings: train.init={last}"
        )


@contextlib.contextmanager
def _lost_process_reported(run: Run, world: World) -> Iterator[None]:
    """If another process ends, one of the remaining ones reports it and records it in the run.

    That is the first process or, if that one ended, the next.
    """
    try:
        with detecting_lost_processes():
            yield
    except LostProcessError as error:
        deadline = time.monotonic() + (0 if world.leads else 2 + world.rank / 4)
        while run.info().get("status") == "running" and time.monotonic() < deadline:
            time.sleep(0.1)
        if run.info().get("status") != "running":
            raise ReportedElsewhereError(error.exit_code) from None
        run.update_info(status="failed", error=error.message)
        saved = run.checkpoint_path("last").is_file()
        hint = (
            f"continue with: cvae train --resume {run.path}"
            if saved
            else "nothing was saved yet: start again"
        )
        raise LostProcessError(error.message, hint) from None


def _log_step(run: Run, trainer: Trainer, event: StepEvent) -> None:
    if event.skips:
        run.update_info(skipped_steps=trainer.skipped)
    if event.row is not None:
        run.add_step(event.row)


def _log_epoch(run: Run, trainer: Trainer, data: VideoData, event: EpochEvent) -> None:
    """Write everything that belongs to an epoch, ``last.pt`` at the end.

    If the process is killed before that, the run goes on from an earlier checkpoint and writes all of it
    again. In any other order something of the epoch could be missing for good.
    """
    run.add_metrics(event.row)
    if event.evaluation and trainer.config.eval.sample_strips:
        save_strip(event.evaluation, run.path / "samples" / f"epoch-{event.epoch:04d}.png")
    saved = checkpoint(trainer, data)
    weights_only = {key: value for key, value in saved.items() if key != "trainer"}
    if event.best:
        checkpoints.save(run, "best", weights_only)
    every = trainer.config.train.save_every
    if every and event.complete and (event.epoch + 1) % every == 0:
        checkpoints.save(run, f"epoch-{event.epoch:04d}", weights_only)
    save_last(run, saved)


def save_last(run: Run, saved: Mapping[str, Any]) -> None:
    """Write a checkpoint as ``last.pt``, after the rows of all steps that it has done are on the disk."""
    run.keep_steps()
    checkpoints.save_last(run, saved)


def checkpoint(trainer: Trainer, data: VideoData) -> dict[str, Any]:
    """The content of a checkpoint file; ``epoch`` counts complete epochs."""
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
