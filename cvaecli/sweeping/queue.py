"""Assigns a sweep's cells to workers through an Optuna study.

Optuna's storage records which cells are waiting, which are taken and how they ended, and gives a waiting cell
to one worker only. It does not know whether the worker that took a cell is still alive: its journal has no
heartbeat. So a worker holds a file lock while it trains, which the kernel releases however the process ends.
If a cell is taken and its lock is free, its worker is dead and the cell is queued again. Some file systems do
not share locks between machines. So a worker also touches a file every few seconds, and another machine waits
until that file is ``stale_after`` seconds old.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from ..errors import CvaeError, UserError
from .plan import Axis, Plan, without_password

JOURNAL = "journal.log"
HOST = platform.node()
BEAT = 15.0
"""Longest time in seconds between two touches of a worker's file."""
PATIENCE = 60.0
"""Seconds to wait for another process that reads or changes the queue."""
ABANDONED = 30
"""Seconds after which the journal's lock file is removed: the process that made it was killed."""
MAX_DEATHS = 3
"""A cell whose process is killed this often while its sweep is running is not tried again."""

LIVE = {TrialState.WAITING: "waiting", TrialState.RUNNING: "running"}
ENDED = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class State(NamedTuple):
    """The state of a cell."""

    cell: str
    state: str  # waiting, running, finished, pruned, failed
    run: Path | None  # known once a worker has taken the cell
    overrides: tuple[str, ...]
    psnr: float | None
    psnr_one_step: float | None
    error: str
    seconds: float | None  # from when it was taken to its end
    pid: int | None  # of the worker, if it runs on this machine


class Taken(NamedTuple):
    """A cell that this process trains."""

    trial: optuna.Trial
    name: str
    overrides: tuple[str, ...]


class Queue:
    """The study of one sweep.

    Args:
        folder: the sweep's folder.
        plan: the sweep's plan.
        url: the storage, with its password if it has one; the journal in ``folder`` if None.
        stale_after: seconds of silence after which a worker on another machine counts as dead.

    Raises:
        UserError: the storage is damaged, locked or cannot be reached.
    """

    def __init__(self, folder: Path, plan: Plan, url: str | None = None, stale_after: float = 120) -> None:
        self.folder, self.plan, self.stale_after, self._url = folder, plan, stale_after, url
        (folder / "locks").mkdir(exist_ok=True)
        with self._readable_faults():
            storage, name = _storage(folder, url), folder.name
            if name not in optuna.get_all_study_names(storage):
                optuna.create_study(
                    storage=storage, study_name=name, direction="maximize", load_if_exists=True
                )
            sampler = optuna.samplers.TPESampler(constant_liar=True)  # workers choose at the same time
            self.study = optuna.load_study(
                study_name=name, storage=storage, sampler=sampler, pruner=_pruner(plan)
            )
            self.trials = self.study.get_trials(deepcopy=False)

    # --- for all processes ------------------------------------------------------------------------

    def refresh(self, retry_failed: bool = False) -> None:
        """Queue every cell without a worker: new ones, interrupted ones, and those whose worker died.

        Args:
            retry_failed: also queue failed cells.
        """
        with alone(self.folder), self._readable_faults():
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if "cell" in trial.user_attrs and self._is_dead(trial):
                    self.study.tell(trial.number, state=TrialState.FAIL)
            last = self._last_trials()
            for cell in self.plan.cells:
                before = last.get(cell.name)
                if before is None or _lost(before, retry_failed):
                    known = {"cell": cell.name, "overrides": cell.overrides}
                    self.study.enqueue_trial(_params(before) if before else {}, user_attrs=known)

    def take(self) -> tuple[Taken, contextlib.ExitStack] | None:
        """Take the next waiting cell, or None. It belongs to this process until the stack closes or the
        process ends."""
        with alone(self.folder):
            if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                return None
            trial = self.study.ask()
            cell = trial.user_attrs.get("cell")
            if cell is None:  # another machine that does not see our lock may have been faster
                self.study.tell(trial, state=TrialState.FAIL)
                return None
            held = contextlib.ExitStack()
            held.enter_context(self._lock(cell).acquire(timeout=10))
            held.enter_context(_beating(self._beat(cell), min(BEAT, self.stale_after / 4)))
            trial.set_user_attr("host", HOST)
            trial.set_user_attr("pid", os.getpid())
            name, overrides = cell, tuple(trial.user_attrs["overrides"])
            if self.plan.kind == "search":
                values = [_suggest(trial, axis) for axis in self.plan.axes]
                name, overrides = f"{cell}_{self._short_name(trial, values)}", self.plan.overrides(values)
                trial.set_user_attr("overrides", overrides)
            trial.set_user_attr("run", name)
        return Taken(trial, name, overrides), held

    def states(self) -> list[State]:
        """The states of all cells, in the plan's order."""
        with self._readable_faults():
            last = self._last_trials()
        return [
            _state(self.folder, cell.name, cell.overrides, last.get(cell.name)) for cell in self.plan.cells
        ]

    # --- how a cell ends --------------------------------------------------------------------------

    def finished(self, taken: Taken, metrics: dict[str, Any]) -> None:
        """The run is trained and validated."""
        taken.trial.set_user_attr("psnr_one_step", metrics["psnr_one_step"])
        self.study.tell(taken.trial, metrics["psnr"])

    def pruned(self, taken: Taken) -> None:
        """The run was stopped because it was below the median at the same epoch."""
        self.study.tell(taken.trial, state=TrialState.PRUNED)

    def failed(self, taken: Taken, error: str) -> None:
        """The run cannot be trained."""
        taken.trial.set_user_attr("error", error)
        self.study.tell(taken.trial, state=TrialState.FAIL)

    def interrupted(self, taken: Taken) -> None:
        """The run was saved and stopped; a failure without an error is queued again by ``refresh``."""
        self.study.tell(taken.trial, state=TrialState.FAIL)

    def died(self, pid: int, how: str) -> bool:
        """A worker on this machine ended without a report; returns False if it had not taken a cell.

        Its cell is queued again, until that has happened ``MAX_DEATHS`` times.
        """
        with alone(self.folder):
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                known = trial.user_attrs
                if (known.get("host"), known.get("pid")) != (HOST, pid):
                    continue
                self.study.tell(trial.number, state=TrialState.FAIL)
                key = f"deaths of {known['cell']}"
                deaths = self.study.user_attrs.get(key, 0) + 1
                self.study.set_user_attr(key, deaths % MAX_DEATHS)
                if deaths == MAX_DEATHS:
                    failed = {**known, "error": f"its process {how}, {deaths} times; out of memory?"}
                    self.study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs=failed))
                return True
        return False

    # --- locks ------------------------------------------------------------------------------------

    def _lock(self, cell: str) -> FileLock:
        return FileLock(self.folder / "locks" / f"{cell}.lock")

    def _beat(self, cell: str) -> Path:
        return self.folder / "locks" / f"{cell}.beat"

    def _is_dead(self, trial: FrozenTrial) -> bool:
        """Whether the worker of a running trial is gone."""
        cell = trial.user_attrs["cell"]
        try:
            self._lock(cell).acquire(timeout=0).lock.release()
        except Timeout:
            return False
        if trial.user_attrs.get("host") == HOST:
            return True
        # Both times are the file server's: the clocks of two machines may differ.
        now = self.folder / "locks" / "now"
        now.touch()
        beat = self._beat(cell)
        return not beat.exists() or now.stat().st_mtime - beat.stat().st_mtime > self.stale_after

    @contextlib.contextmanager
    def _readable_faults(self) -> Iterator[None]:
        """Turn whatever Optuna raises while it reads or writes a storage into a ``UserError``."""
        try:
            yield
        except (CvaeError, OSError):
            raise
        except Exception as error:
            cause = error.__cause__ or error
            why = without_password((str(cause).strip().splitlines() or [""])[0] or repr(cause))
            if self._url:
                raise UserError(
                    f"--storage {without_password(self._url)}: cannot be used: {why}",
                    "see Optuna's documentation for URLs, e.g. sqlite:///sweep.db",
                ) from None
            raise UserError(
                f"{self.folder / JOURNAL}: is damaged: {why}",
                "delete it and start the same command again; finished runs are not trained again",
            ) from None

    def _last_trials(self) -> dict[str, FrozenTrial]:
        """The newest trial of every cell."""
        trials = self.study.get_trials(deepcopy=False)
        return {trial.user_attrs["cell"]: trial for trial in trials if "cell" in trial.user_attrs}

    def _short_name(self, trial: optuna.Trial, values: list[str]) -> str:
        numbers = [trial.params[axis.name] for axis in self.plan.axes]
        short = [f"{n:.3g}" if isinstance(n, float) else v for n, v in zip(numbers, values, strict=True)]
        return self.plan.folder_name(short)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process can change the sweep in this folder during the context.

    Raises:
        UserError: another process holds the lock for longer than ``PATIENCE``.
    """
    path = folder / "locks" / "queue.lock"
    try:
        with FileLock(path, timeout=PATIENCE):
            yield
    except Timeout as error:
        raise UserError(
            f"{error.lock_file}: held by another process for {PATIENCE:.0f} s", "end it, or try again"
        ) from None


def _storage(folder: Path, url: str | None) -> BaseStorage:
    if url:
        return get_storage(url)
    path = folder / JOURNAL
    if path.exists() and not _ends_well(path):
        time.sleep(1)  # another process may be writing right now
        if not _ends_well(path):
            raise ValueError("its last line is cut short or not JSON")
    # Optuna's default lock is a link to the journal's path. If that is relative, or another machine's path,
    # the lock's age cannot be read, and every process would wait for a killed one forever.
    return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path), ABANDONED)))


def _ends_well(journal: Path) -> bool:
    """Whether the last line is complete. Optuna ignores an incomplete one when it reads, and then fails after
    the next write."""
    content = journal.read_bytes()
    with contextlib.suppress(ValueError):
        return not content or (content.endswith(b"\n") and bool(json.loads(content.splitlines()[-1])))
    return False


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    """A run of a search stops when it is below the median of the others at the same epoch."""
    if plan.kind == "grid":
        return optuna.pruners.NopPruner()
    epochs = plan.example().train.epochs
    # Not in the first quarter, where annealing and teacher forcing start and PSNR means little.
    return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=epochs // 4)


@contextlib.contextmanager
def _beating(path: Path, every: float) -> Iterator[None]:
    """Touch a file at regular intervals in a thread."""
    path.touch()
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every):
            path.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _suggest(trial: optuna.Trial, axis: Axis) -> str:
    """The axis's value for this trial, as text for an override."""
    if axis.range is None:
        return str(trial.suggest_categorical(axis.name, axis.values))
    low, high, log = axis.range
    if isinstance(low, int) and isinstance(high, int):
        return str(trial.suggest_int(axis.name, low, high, log=log))
    return repr(trial.suggest_float(axis.name, low, high, log=log))


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial, including those that were fixed in advance."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _lost(trial: FrozenTrial, retry_failed: bool) -> bool:
    return trial.state == TrialState.FAIL and (retry_failed or "error" not in trial.user_attrs)


def _state(folder: Path, cell: str, overrides: tuple[str, ...], trial: FrozenTrial | None) -> State:
    if trial is None:
        return State(cell, "waiting", None, overrides, None, None, "", None, None)
    known = trial.user_attrs
    name = "waiting" if _lost(trial, False) else {**LIVE, **ENDED}[trial.state]
    ended = trial.duration.total_seconds() if trial.duration else None
    return State(
        cell,
        name,
        folder / known["run"] if "run" in known else None,
        tuple(known["overrides"]),
        trial.value,
        known.get("psnr_one_step"),
        known.get("error", ""),
        ended,
        known.get("pid") if known.get("host") == HOST else None,
    )
