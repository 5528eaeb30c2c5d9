"""Go on with an interrupted training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import checkpoint as checkpoints
from ..config.loading import load
from ..engine.distributed import join
from ..engine.fit import Trainer
from ..launch import several, told_once_a_machine
from ..reporter import Reporter, Silent
from ..run import Run, find
from .loading import RUNS, refuse_overrides
from .training import fit, prepared


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
        data, trainer = prepared(config, reporter, world, saved)
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
