"""Many trainings from one command: start them, watch them, report how they ended.

``sweeping.plan`` lists the runs, ``sweeping.queue`` assigns them to workers, ``sweep_worker`` trains one.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError
from ..reporter import Reporter, Silent
from ..run import read_rows
from ..signals import InterruptedRun, Interruption
from ..sweeping.plan import FILE, Cell, Plan
from ..sweeping.shares import shares
from .estimating import dry_run
from .loading import RUNS, load_data

if TYPE_CHECKING:
    from ..sweeping.crew import Crew
    from ..sweeping.queue import Queue, State

POLL = 0.25
"""Seconds between two checks of the workers."""
REFRESH = 2.0
"""Seconds between two checks of the queue while no worker ends."""
GRACE = 5.0
"""Seconds to wait for the workers after a SIGTERM before they are asked to stop: Slurm sends it to them
too."""


class Progress(NamedTuple):
    """One cell of a sweep, for display."""

    state: State
    epoch: str  # "3/10" while it runs
    psnr: float | None  # the final one, or the best validation so far
    seconds_left: float | None


def sweep(
    config: str,
    arguments: Sequence[str],
    *,
    name: str | None = None,
    trials: int | None = None,
    workers: int = 1,
    storage: str | None = None,
    stale_after: float = 120,
    wait: bool = True,
    retry_failed: bool = False,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
    watch: Callable[[list[Progress]], None] = lambda cells: None,
) -> dict[str, Any]:
    """Train every cell of a grid, or search. Starts the sweep or continues it, alone or with other processes.

    Args:
        config: a config's file or built-in name.
        arguments: ``key=value``, ``key=a,b``, ``key+key=a+b,c+d``; in a search also ``key=low..high``.
        name: the sweep's folder under ``runs``; the config's name and ``-sweep`` when unset.
        trials: number of runs of a search; None for a grid.
        workers: number of cells that this process trains at the same time.
        storage: an Optuna storage's URL; a journal in the sweep's folder when unset.
        stale_after: seconds of silence after which a worker on another machine counts as dead.
        wait: also wait for cells that other processes train, and take over those of dead ones.
        retry_failed: train failed cells again.
        watch: called with all cells when something may have changed.

    Returns:
        See ``result``.

    Raises:
        UserError: see ``Plan.check``; another sweep, a run or a damaged storage is in the way.
        InterruptedRun: Ctrl-C or SIGTERM; all running cells are saved.
    """
    try:
        from ..sweeping.crew import Crew
    except ModuleNotFoundError as error:
        raise UserError(f"cvae sweep needs {error.name}", 'pip install -e ".[sweep]"') from None
    reporter, folder = reporter or Silent(), folder_of(config, name, runs)
    plan = Plan.of(config, arguments, trials, storage)
    first = not (folder / FILE).exists()
    if first:  # check the data before anything is written, and decode them once for all workers
        load_data(plan.example(), ("train", "val"), reporter)
    queue = _join(folder, plan, storage, stale_after)
    queue.refresh(retry_failed)
    if not first and any(state.state == "waiting" for state in queue.states()):
        load_data(plan.example(), ("train", "val"), reporter)
    crew = Crew(queue, plan, workers, storage)
    try:
        with Interruption() as interruption:
            _attend(queue, crew, interruption, wait, watch)
    finally:
        crew.kill()
    watch(progress(queue))
    return result(folder, queue)


def folder_of(config: str, name: str | None, runs: Path = RUNS) -> Path:
    """The folder of a sweep.

    Raises:
        UserError: not a plain name, or the folder holds something else.
    """
    name = name or f"{Path(config).stem}-sweep"
    if name != Path(name).name or name in ("", ".", "..", "latest"):
        raise UserError(f"--name {name!r}: must be a plain folder name other than 'latest'")
    folder = runs / name
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder}: is an ordinary run", "choose another --name")
    if (
        folder.exists()
        and not (folder / FILE).exists()
        and {p.name for p in folder.iterdir()} - {"locks", "logs"}
    ):
        raise UserError(f"{folder}: exists and is not a sweep", "choose another --name")
    return folder


def _join(folder: Path, plan: Plan, storage: str | None, stale_after: float) -> Queue:
    """Start the sweep in this folder, or check that the one there has this plan.

    Raises:
        UserError: it has another plan, or the storage cannot be used. A new folder is then removed again.
    """
    from ..sweeping.queue import Queue, alone

    for inner in ("locks", "logs"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if (folder / FILE).exists():
            old = Plan.read(folder)
            plan.refuse_another(old, folder.name)
            if plan.vary != old.vary or plan.trials != old.trials:
                plan.write(folder)
            return Queue(folder, plan, storage, stale_after)
        plan.write(folder)
        try:
            queue = Queue(folder, plan, storage, stale_after)
            if queue.trials:
                raise UserError(
                    f"--storage: already holds a study named {folder.name}", "choose another --name"
                )
            return queue
        except BaseException:
            shutil.rmtree(folder)
            raise


def estimate(
    config: str,
    arguments: Sequence[str],
    *,
    name: str | None = None,
    trials: int | None = None,
    workers: int = 1,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """What a sweep would train, and how long that takes; leaves nothing behind. Arguments as in ``sweep``.

    Does one ``dry_run`` for all cells of the same model, data, training, teacher forcing and optimiser, with
    one worker's share of the cores.

    Returns:
        ``cells`` with ``estimated_minutes`` (training alone) and ``peak_memory_gb`` each, and the minutes for
        all, divided among the workers. A search has one entry, with the lower ends of its ranges, counted
        ``trials`` times.

    Raises:
        UserError: as in ``sweep``.
    """
    plan, folder = Plan.of(config, arguments, trials), folder_of(config, name, runs)
    if (folder / FILE).exists():
        plan.refuse_another(Plan.read(folder), folder.name)
    _, overrides = shares(plan.example(), workers)[0]
    reports: dict[str, dict[str, Any]] = {}
    cells: list[dict[str, Any]] = []
    search = plan.overrides([axis.values[0] for axis in plan.axes])
    for cell in plan.cells if trials is None else [Cell("each trial", search)]:
        one = plan.config_of([*cell.overrides, *overrides])
        kind = repr((one.model, one.train, one.data, one.teacher_forcing, one.optim.name))
        if kind not in reports:
            reports[kind] = dry_run(one, reporter=reporter)
        found = {key: reports[kind][key] for key in ("estimated_minutes", "peak_memory_gb")}
        cells.append({"cell": cell.name, "overrides": list(cell.overrides), **found})
    minutes = sum(cell["estimated_minutes"] for cell in cells) * (trials or 1)
    return {
        "sweep": str(folder),
        "cells": cells,
        "workers": workers,
        "runs": trials or len(cells),
        "estimated_minutes": round(minutes / workers, 1),
    }


def _attend(
    queue: Queue,
    crew: Crew,
    interruption: Interruption,
    wait: bool,
    watch: Callable[[list[Progress]], None],
) -> None:
    """Keep the workers busy until no cell is left."""
    looked = -math.inf
    while not interruption.signum:
        if crew.clear() or time.monotonic() - looked > REFRESH:
            queue.refresh()
            cells, looked = progress(queue), time.monotonic()
            watch(cells)
            by_state = [cell.state.state for cell in cells]
            at_work = {cell.state.pid for cell in cells if cell.state.state == "running"}
            crew.fill(by_state.count("waiting") - len(crew.pids - at_work))
            others = "running" in by_state and wait
            if not crew.pids and "waiting" not in by_state and not others:
                return
        time.sleep(POLL)
    signum, since = interruption.signum, time.monotonic()
    while crew.pids and signum == signal.SIGTERM and time.monotonic() - since < GRACE:
        crew.clear()
        time.sleep(POLL)
    crew.stop()
    while crew.pids:
        crew.clear()
        time.sleep(POLL)
    done = sum(state.state not in ("waiting", "running") for state in queue.states())
    raise InterruptedRun(
        signum,
        f"interrupted; {done} of {len(queue.plan.cells)} cells are done, the running ones are saved",
        "run the same command to continue",
    )


# --- progress and result ------------------------------------------------------------------------------


def progress(queue: Queue) -> list[Progress]:
    """Every cell; running ones with the progress that their metrics.csv shows."""
    return [_progress(state, queue.plan) for state in queue.states()]


def _progress(state: State, plan: Plan) -> Progress:
    if state.state not in ("running", "pruned") or state.run is None:
        return Progress(state, "", state.psnr, None)
    rows, total = read_rows(state.run / "metrics.csv"), plan.config_of(state.overrides).train.epochs
    psnr = max((float(row["val/psnr"]) for row in rows if row["val/psnr"]), default=None)
    left = float(rows[-1]["time"]) / len(rows) * (total - len(rows)) if rows else None
    return Progress(state, f"{len(rows)}/{total}", psnr, left)


def result(folder: Path, queue: Queue) -> dict[str, Any]:
    """The sweep as plain data: each cell's state and overrides, with PSNR and one-step PSNR in dB."""
    cells = [
        {
            "cell": cell.state.cell,
            "run": str(cell.state.run) if cell.state.run else None,
            "overrides": list(cell.state.overrides),
            "state": cell.state.state,
            "psnr": cell.psnr,
            "psnr_one_step": cell.state.psnr_one_step,
            "error": cell.state.error or None,
        }
        for cell in progress(queue)
    ]
    return {"sweep": str(folder), "kind": queue.plan.kind, "cells": cells}
