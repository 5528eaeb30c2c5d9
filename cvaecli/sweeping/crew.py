"""The worker processes of one ``cvae sweep``, each in its place: a GPU, or a share of the cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ..errors import CvaeError
from .plan import Plan
from .queue import Queue
from .shares import shares

STORAGE = "CVAE_SWEEP_STORAGE"
"""Environment variable that names a worker's storage. It may contain a password, and arguments are public."""

ENDED_WELL = (0, 130, 143, -signal.SIGINT, -signal.SIGTERM)
"""Exit statuses of a worker that recorded how its cell ended, or that was stopped."""


class Crew:
    """The worker processes of this sweep, each in its place: a GPU, or a share of the cores."""

    def __init__(self, queue: Queue, plan: Plan, size: int, storage: str | None) -> None:
        self._queue, self._storage = queue, storage
        self._shares = shares(plan.example(), size)
        self._runtime = [override for override in plan.fixed if override.startswith("runtime.")]
        self._workers: list[subprocess.Popen[bytes] | None] = [None] * size
        self._without_cell = 0

    @property
    def pids(self) -> set[int]:
        """Process numbers of the running workers."""
        return {worker.pid for worker in self._workers if worker}

    def fill(self, count: int) -> None:
        """Start up to ``count`` workers, as far as there are free places."""
        free = [place for place, worker in enumerate(self._workers) if worker is None]
        for place in free[: max(0, count)]:
            environment, overrides = self._shares[place]
            command = [sys.executable, "-m", "cvaecli.api.sweep_worker", str(self._queue.folder)]
            with self._log(place).open("wb") as output:
                self._workers[place] = subprocess.Popen(
                    [*command, str(self._queue.stale_after), *self._runtime, *overrides],
                    env={**os.environ, **environment, **({STORAGE: self._storage} if self._storage else {})},
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    process_group=0,  # Ctrl-C reaches only this process
                )

    def clear(self) -> bool:
        """Free the places of workers that ended; returns whether there were any.

        Raises:
            CvaeError: workers end before they take a cell.
        """
        ended = False
        for place, worker in enumerate(self._workers):
            if worker is None or worker.poll() is None:
                continue
            ended, self._workers[place] = True, None
            code = worker.returncode
            if code in ENDED_WELL:
                self._log(place).unlink(missing_ok=True)  # a cell's output is in its own log
                continue
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            self._without_cell += not self._queue.died(worker.pid, how)
            if self._without_cell >= 3:
                raise CvaeError(
                    f"workers end before they take a cell; the last one {how}", f"see {self._log(place)}"
                )
        return ended

    def _log(self, place: int) -> Path:
        """The output of a worker before it has a cell."""
        return self._queue.folder / "logs" / f"worker-{os.getpid()}-{place}.log"

    def stop(self) -> None:
        """Ask all workers to save and end."""
        for worker in self._workers:
            if worker and worker.stdin:
                worker.stdin.close()

    def kill(self) -> None:
        """Kill all workers. None are left at this point unless something went wrong or Ctrl-C came twice."""
        for worker in self._workers:
            if worker:
                worker.kill()
                worker.wait()
