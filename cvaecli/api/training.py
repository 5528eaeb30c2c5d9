"""Train a model into a run folder, or try out a training without a run folder."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint as checkpoints
from ..config.schema import RunConfig
from ..data.clip import Clip, VideoData, first_frames
from ..data.robot import condition_stats
from ..engine import measure
from ..engine.device import Device, prepare
from ..engine.distributed import ALONE, LostProcessError, World, detecting_lost_processes, join
from ..engine.fit import EpochEvent, Event, StepEvent, Trainer
from ..engine.graph import WARM_UP
from ..engine.skipping import NoFiniteStepError, NotFiniteError
from ..errors import CvaeError, ReportedElsewhereError, UserError
from ..reporter import Reporter, Silent
from ..run import Run, describe_environment
from ..signals import InterruptedRun, Interruption
from .loading import RUNS, build_model, load_data, load_initial_weights, warn_of_unusable_gpu
from .tensorboard import opened as opened_tensorboard
from .tensorboard import require as require_tensorboard
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


# --- data, model and run folder -----------------------------------------------------------------------


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
    run.make_latest()
    return run


def prepared(
    config: RunConfig, reporter: Reporter, world: World, saved: Mapping[str, Any] | None = None
) -> tuple[VideoData, Trainer]:
    """The data and the trainer, in the state of the checkpoint ``saved`` if there is one.

    With several processes, an error in one ends all.

    Raises:
        UserError: the checkpoint was trained on other data.
    """
    with world.agreeing():
        require_tensorboard(config)
        device = prepare(config.runtime)
    warn_of_unusable_gpu(config, reporter)
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
            try:
                trainer.load_state_dict(saved["trainer"], saved["model"])
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise UserError(
                    f"the checkpoint does not fit this model or this version: {error!r:.200}",
                    "start a new run from its weights: train.init=FILE",
                ) from None
    wanted, effective = config.train.prior_share, trainer.prior_share
    if abs(wanted - effective) > 1e-9:
        reporter.warn(
            f"train.prior_share: {wanted:g} of a batch of {config.train.batch_size} is "
            f"{effective * config.train.batch_size:.0f} rows, a share of {effective:g}"
        )
    return data, trainer


def build_trainer(
    config: RunConfig,
    data: VideoData,
    device: Device,
    reporter: Reporter,
    new: bool = True,
    world: World = ALONE,
) -> Trainer:
    """A new model, and the trainer for it.

    Args:
        new: whether the training is new. Then the model gets the statistics of its training data; with
            ``train.init`` it gets the weights and the statistics of that file instead, because the weights
            were trained with those. A resumed training has both in its checkpoint.
    """
    train_clips = data.splits["train"]
    model = build_model(config, train_clips[0].condition.shape[1:])
    if new and train_clips[0].condition.ndim == 2:
        used = first_frames([clip.n_frames for clip in train_clips], config.data.partial)
        mean, std = condition_stats(train_clips, used)
        model.set_condition_stats(torch.from_numpy(mean), torch.from_numpy(std))
    if new and config.train.init is not None:
        load_initial_weights(model, config.train.init, reporter)
    return Trainer(model, config, device, train_clips, data.splits["val"], world)


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
