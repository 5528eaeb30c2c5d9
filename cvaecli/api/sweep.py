"""Many trainings from one command: start them, watch them, tell how they ended.

``sweeping.plan`` says which runs there are, ``sweeping.queue`` who trains which, ``sweep_worker`` trains one.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config.schema import RunConfig
from ..errors import CvaeError, UserError
from ..reporter import Reporter, Silent
from ..run import read_rows
from ..signals import InterruptedRun, Interruption
from ..sweeping.plan import FILE, Cell, Plan
from .loading import RUNS, load_data
from .sweep_worker import STORAGE
from .training import dry_run

if TYPE_CHECKING:
    from ..sweeping.queue import Queue, State

POLL = 0.25
"""Seconds between two looks at the workers."""
REFRESH = 2.0
"""Seconds between two looks at the queue while no worker ends."""
TOLD_TO_ALL = 5.0
"""Seconds that workers are left after a SIGTERM: Slurm sends it to all processes, so they may know already."""


class Progress(NamedTuple):
    """One cell of a sweep, as it is shown."""

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
    """Train every cell of a grid, or search; start it or go on with it, beside other processes or alone.

    Args:
        config: a config's file or built-in name.
        arguments: ``key=value``, ``key=a,b``, ``key+key=a+b,c+d``; in a search also ``key=low..high``.
        name: the sweep's folder under ``runs``; the config's name and ``-sweep`` when unset.
        trials: search with so many runs; None for a grid.
        workers: cells trained at once by this process.
        storage: an Optuna storage's URL; a journal in the sweep's folder when unset.
        stale_after: seconds of silence after which a worker on another machine counts as dead.
        wait: stay until others have finished their cells too, and take over those of the dead.
        retry_failed: train cells that failed again.
        watch: called with all cells when something may have changed.

    Returns:
        What ``result`` does.

    Raises:
        UserError: see ``Plan.check``; another sweep, a run or a damaged storage is in the way.
        InterruptedRun: Ctrl-C or SIGTERM; all running cells are saved.
    """
    reporter, folder = reporter or Silent(), folder_of(config, name, runs)
    plan = Plan.of(config, arguments, trials, storage)
    first = not (folder / FILE).exists()
    if first:  # nothing is written before the data are known to be good, and they are decoded once for all
        load_data(plan.example(), ("train", "val"), reporter)
    queue = _join(folder, plan, storage, stale_after)
    queue.refresh(retry_failed)
    if not first and any(state.state == "waiting" for state in queue.states()):
        load_data(plan.example(), ("train", "val"), reporter)
    crew = _Crew(queue, plan, workers, storage)
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
        UserError: not a plain name, or something else is there.
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
    """Start the sweep in this folder, or see that the one there is of this plan.

    Raises:
        UserError: it is another; or the storage cannot be used. A new folder is gone again then.
    """
    try:
        from ..sweeping.queue import Queue, alone
    except ModuleNotFoundError as error:
        raise UserError(f"cvae sweep needs {error.name}", 'pip install "cvae[sweep]"') from None
    for inner in ("locks", "logs"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if (folder / FILE).exists():
            old = Plan.read(folder)
            plan.refuse_another(old, folder.name)
            if plan.vary != old.vary or plan.trials != old.trials:
                plan.write(folder)
            return Queue(folder, plan, storage, stale_after)
        try:
            queue = Queue(folder, plan, storage, stale_after)
            if queue.trials and storage:
                raise UserError(
                    f"--storage: holds a study named {folder.name} already", "choose another --name"
                )
            plan.write(folder)
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
    """What a sweep would train, and how long that takes; leaves nothing behind. Arguments as of ``sweep``.

    One ``dry_run`` for each kind of model and training among the cells, with a worker's share of the cores.

    Returns:
        ``cells`` with ``estimated_minutes`` (training alone) and ``peak_memory_gb`` each, and the minutes of
        all, shared by the workers. A search has one entry, with its ranges' lower ends, counted ``trials``
        times.

    Raises:
        UserError: as of ``sweep``.
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
        kind = one.model_dump_json(include={"model", "train", "data"})
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


# --- workers ------------------------------------------------------------------------------------------


class _Crew:
    """The worker processes of this sweep, each in its place: a GPU, or a share of the cores."""

    def __init__(self, queue: Queue, plan: Plan, size: int, storage: str | None) -> None:
        self._queue, self._storage = queue, storage
        self._shares = shares(plan.example(), size)
        self._workers: list[subprocess.Popen[bytes] | None] = [None] * size
        self._without_cell = 0

    @property
    def pids(self) -> set[int]:
        """Of the processes that run."""
        return {worker.pid for worker in self._workers if worker}

    def fill(self, count: int) -> None:
        """Start so many workers, as far as there are free places."""
        free = [place for place, worker in enumerate(self._workers) if worker is None]
        for place in free[: max(0, count)]:
            environment, overrides = self._shares[place]
            command = [sys.executable, "-m", "cvaecli.api.sweep_worker", str(self._queue.folder)]
            log = self._queue.folder / "logs" / f"worker-{os.getpid()}-{place}.log"
            with log.open("wb") as output:
                self._workers[place] = subprocess.Popen(
                    [*command, str(self._queue.stale_after), *overrides],
                    env={**os.environ, **environment, **({STORAGE: self._storage} if self._storage else {})},
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    process_group=0,  # Ctrl-C reaches this process alone
                )

    def clear(self) -> bool:
        """Free the places of workers that ended; True if there were any.

        Raises:
            CvaeError: workers end before they take a cell.
        """
        ended = False
        for place, worker in enumerate(self._workers):
            if worker is None or worker.poll() is None:
                continue
            ended, self._workers[place] = True, None
            log = self._queue.folder / "logs" / f"worker-{os.getpid()}-{place}.log"
            code = worker.returncode
            if code not in (0, 130, 143):
                how = (
                    f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
                )
                self._without_cell += not self._queue.died(worker.pid, how)
                if self._without_cell >= 3:
                    raise CvaeError(f"workers end before they take a cell: the last {how}", f"see {log}")
            else:
                log.unlink(missing_ok=True)  # a cell's output is in its own log
        return ended

    def stop(self) -> None:
        """Ask all to save and end."""
        for worker in self._workers:
            if worker and worker.stdin:
                worker.stdin.close()

    def kill(self) -> None:
        """End all at once; nobody is left unless something went wrong or Ctrl-C came twice."""
        for worker in self._workers:
            if worker:
                worker.kill()
                worker.wait()


def _attend(
    queue: Queue,
    crew: _Crew,
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
    signum, told = interruption.signum, time.monotonic()
    while crew.pids and signum == signal.SIGTERM and time.monotonic() - told < TOLD_TO_ALL:
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
        "the same command goes on",
    )


def shares(config: RunConfig, workers: int) -> list[tuple[dict[str, str], list[str]]]:
    """Environment and overrides of each of several workers on this machine: a GPU, or a share of the cores.

    Two trainings that both use all cores slow each other down several times over, because the threads of
    both spin while they wait. A single worker has the machine to itself, as ``cvae train`` does.
    """
    if workers == 1:
        return [({}, [])]
    threads = config.runtime.threads or max(1, cores() // workers)
    common = {"OMP_NUM_THREADS": str(threads)}, [f"runtime.threads={threads}"]
    gpus = _gpus(config.runtime.device)
    masks = [{"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {} for place in range(workers)]
    return [({**common[0], **mask}, common[1]) for mask in masks]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(device: str) -> list[str]:
    """The CUDA devices to share out, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


# --- how it stands ------------------------------------------------------------------------------------


def progress(queue: Queue) -> list[Progress]:
    """Every cell; of the running ones with what their metrics.csv tells."""
    return [_progress(state, queue.plan) for state in queue.states()]


def _progress(state: State, plan: Plan) -> Progress:
    if state.state not in ("running", "pruned") or state.run is None:
        return Progress(state, "", state.psnr, None)
    rows, total = read_rows(state.run / "metrics.csv"), plan.config_of(state.overrides).train.epochs
    psnr = max((float(row["val/psnr"]) for row in rows if row["val/psnr"]), default=None)
    left = float(rows[-1]["time"]) / len(rows) * (total - len(rows)) if rows else None
    return Progress(state, f"{len(rows)}/{total}", psnr, left)


def result(folder: Path, queue: Queue) -> dict[str, Any]:
    """How the sweep stands, as plain data: of each cell what differs, its state, PSNR and one-step PSNR (dB)."""
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
