"""Resume an interrupted training, and record which settings have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from .. import checkpoint as checkpoints
from ..config.loading import changes, load
from ..config.schema import RunConfig
from ..data.clip import VideoData
from ..engine.batches import Sampler
from ..engine.distributed import join
from ..engine.fit import Trainer
from ..errors import UserError
from ..launch import one_report_per_machine, several
from ..reporter import Reporter, Silent
from ..run import Run, describe_environment, find_run
from ..schedules import Scheduled
from .loading import RUNS
from .preparation import prepared
from .training import fit, in_use

CHANGEABLE = ("train.", "eval.", "runtime.", "data.root")
"""Keys that may change when a run is resumed."""
HARMLESS = {
    *("max_skips", "epochs", "max_steps", "max_minutes", "save_every", "save_minutes", "log_every"),
    *("accumulate", "kept_steps", "init"),
}
"""Keys of ``train`` that may change without making it a different training. ``epochs`` matters if a schedule
depends on it: then the schedule moves."""


def resume(
    run: str | Path, overrides: Sequence[str] = (), *, runs: Path = RUNS, reporter: Reporter | None = None
) -> Run:
    """Resume an interrupted training; bit for bit on the same machine if nothing is overridden.

    A change of ``train`` that moves a schedule or makes it a different training is reported as a warning and
    recorded in ``run.json`` under ``schedule_changes``. A change of ``eval`` that makes earlier and later
    validations incomparable is recorded under ``eval_changes``; the best checkpoint is then chosen from the
    later ones.

    Args:
        run: see ``run.find``; as a checkpoint only ``last.pt``.
        overrides: of train.*, eval.*, runtime.* and data.root; the data must be the same.

    Raises:
        UserError: nothing to resume, different data, another process trains this run, an override changes any
            other key, or one changes the training after its last step.
    """
    reporter = reporter or Silent()
    with one_report_per_machine():
        home = find_run(run, runs)
        if Path(run).suffix == ".pt" and Path(run).name != "last.pt":
            raise UserError(
                f"{run}: a training goes on from last.pt only",
                f"--resume {home.path}, or start a new run from these weights: train.init={run}",
            )
        # Several processes must connect before they read the checkpoint.
        device = load(home.path / "config.yaml", overrides).runtime.device if several() else "auto"
    with join(device) as world:
        reporter = reporter if world.leads else Silent()
        with in_use(home, world):
            saved, warning = world.once(lambda: checkpoints.load_for_resume(home))
            if warning:
                reporter.warn(warning)
            before, config = checkpoints.config_of(saved), checkpoints.config_of(saved, overrides)
            world.once(lambda: _check_changes(home, before, config, reporter))
            data, trainer = prepared(config, reporter, world, saved)
            world.once(lambda: _refuse_without_effect(before, trainer, data))
            world.once(lambda: _note_resumption(home, trainer, reporter))
            world.once(lambda: _record_changes(home, before, trainer, data, reporter))
            return fit(home, trainer, data, reporter)


def _note_resumption(run: Run, trainer: Trainer, reporter: Reporter) -> None:
    run.forget_after(trainer.step)
    run.write_config(trainer.config)
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


# --- changed settings ---------------------------------------------------------------------------------


def _check_changes(home: Run, before: RunConfig, after: RunConfig, reporter: Reporter) -> None:
    """Name the settings and versions that differ from the checkpoint's.

    Raises:
        UserError: one of them must not change.
    """
    asked = changes(before, after)
    _refuse(asked, str(home.path))
    if asked:
        reporter.note(f"changed settings: {_listed(asked)}")
    path = home.path / "config.yaml"
    edited = changes(before, load(path))
    _refuse(edited, f"{path}, compared with the checkpoint")
    if unused := {
        key: values for key, values in edited.items() if values[1] != asked.get(key, [None] * 2)[1]
    }:
        reporter.warn(
            f"{path}: not the settings of the checkpoint ({_listed(unused)}), which are used; "
            "to change a setting write it into the command, e.g. train.epochs=9"
        )
    began, now = home.info().get("versions", {}), describe_environment()["versions"]
    if other := {key: [began[key], now[key]] for key in now if began.get(key, now[key]) != now[key]}:
        reporter.note(f"the run began with other versions ({_listed(other)}); results may differ by rounding")


def _refuse(changed: Mapping[str, Sequence[Any]], where: str) -> None:
    fixed = {key: values for key, values in changed.items() if not key.startswith(CHANGEABLE)}
    if fixed:
        raise UserError(
            f"{where}: {_listed(fixed)}: fixed by the training, cannot be changed when it is resumed",
            f"these can: {', '.join(p + '*' if p.endswith('.') else p for p in CHANGEABLE)}; for "
            "another model start a new run",
        )


def _refuse_without_effect(before: RunConfig, trainer: Trainer, data: VideoData) -> None:
    """Refuse changes of the training that no step is left to use.

    Raises:
        UserError: names them.
    """
    if trainer.finished and (change := schedule_change(before, trainer, data)):
        raise UserError(
            f"{_listed(change['changed'])}: no effect, all {trainer.step} steps are done",
            "raise train.epochs or a stop to train longer",
        )


def _listed(changed: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{key} {_arrow(values)}" for key, values in changed.items())


def _record_changes(
    run: Run, before: RunConfig, trainer: Trainer, data: VideoData, reporter: Reporter
) -> None:
    """Warn about what the overrides change, and record it in ``run.json``."""
    step = trainer.step
    moved = schedule_change(before, trainer, data)
    if moved is not None:
        changed = _listed(moved["changed"])
        seam = ", ".join(f"{name} {_arrow(moved[name])}" for name in ("beta", "lr", "tfr"))
        reporter.warn(
            f"{changed}: at step {step} {seam}; this run is no longer comparable with runs of either setting"
        )
    scored = scoring_changes(before, trainer.config)
    if scored:
        reporter.warn(
            f"{_listed(scored)}: validations before and after step {step} are not comparable; "
            "the best checkpoint is chosen from the later ones"
        )
    _add(run, "schedule_changes", before, step, moved)
    _add(run, "eval_changes", before, step, {"step": step, "changed": scored} if scored else None)


def _add(run: Run, key: str, before: RunConfig, step: int, entry: Mapping[str, Any] | None) -> None:
    """Add an entry to a list in ``run.json``.

    Earlier entries that are not part of the checkpoint, whose config is ``before``, are dropped: the process
    that added them was killed before it saved.
    """

    def in_effect(change: Mapping[str, Any]) -> bool:
        config = before.to_dict()
        return all(
            config[section][name] == new
            for (section, _, name), (_, new) in (
                (changed.partition("."), values) for changed, values in change["changed"].items()
            )
        )

    earlier = run.info().get(key, [])
    entries = [each for each in earlier if each["step"] < step or (each["step"] == step and in_effect(each))]
    entries += [dict(entry)] if entry else []
    if entries != earlier:
        run.update_info(**{key: entries})


def _arrow(values: Sequence[Any]) -> str:
    old, new = (f"{value:.6g}" if isinstance(value, float) else str(value) for value in values)
    return f"{old} -> {new}"


def scoring_changes(before: RunConfig, after: RunConfig) -> dict[str, list[Any]]:
    """The changed keys that affect a validation's numbers, with ``[old, new]`` values."""
    old, new = before.eval.scored(), after.eval.scored()
    return {f"eval.{key}": [old[key], new[key]] for key in old if old[key] != new[key]}


def schedule_change(before: RunConfig, trainer: Trainer, data: VideoData) -> dict[str, Any] | None:
    """How a change of ``train`` alters a training; None if the new config also describes the steps that are
    already done.

    Returns:
        ``step``, the number of steps done; ``changed``, ``[old, new]`` values by key; ``total_steps``, the
        number of steps that schedules refer to, old and new; ``beta``, ``tfr`` and ``lr`` of the last step
        done and of the next one.
    """
    after, step = trainer.config, trainer.step
    old_keys, new_keys = before.train.model_dump(mode="json"), after.train.model_dump(mode="json")
    changed = {key: [old_keys[key], new_keys[key]] for key in old_keys if old_keys[key] != new_keys[key]}
    if not step or not changed:
        return None
    old, new = (_Timeline.of(config, trainer, data) for config in (before, after))
    another = any(key not in HARMLESS for key in changed)
    if not another and all(old.at(*place) == new.at(*place) for place in old.places(step)):
        return None
    last, following = old.at(*list(old.places(step))[-1]), new.at(step, trainer.epoch)
    return {
        "step": step,
        "changed": {f"train.{key}": values for key, values in changed.items()},
        "total_steps": [old.total, new.total],
        **{name: [last[name], following[name]] for name in last},
    }


class _Timeline(NamedTuple):
    """A config's schedules over a whole training."""

    config: RunConfig
    steps: list[int]  # in each epoch

    @classmethod
    def of(cls, config: RunConfig, trainer: Trainer, data: VideoData) -> _Timeline:
        sampler = Sampler.of(config, type(trainer.model), data.splits["train"])
        return cls(config, [sampler.steps(epoch) for epoch in range(config.train.epochs)])

    @property
    def total(self) -> int:
        return sum(self.steps)

    def places(self, count: int) -> Iterator[tuple[int, int]]:
        """(step, epoch) of the first ``count`` steps."""
        step = 0
        for epoch, steps in enumerate(self.steps):
            for _ in range(min(steps, count - step)):
                yield step, epoch
                step += 1

    def at(self, step: int, epoch: int) -> dict[str, float]:
        return asdict(Scheduled.at(self.config, step, epoch, self.total))
