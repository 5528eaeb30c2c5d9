"""One worker of a sweep: takes a cell, trains it, records how it ended.

``sweep`` starts a new process for every cell: no cell can end the sweep or leave memory allocated.

    python -m cvaecli.api.sweep_worker FOLDER STALE_AFTER [KEY=VALUE]...

KEY=VALUE are overrides of ``runtime.*``. A storage other than the journal is named by
``CVAE_SWEEP_STORAGE``: it may contain a password, which other users would see among the arguments. The sweep
asks the worker to stop by closing its standard input, as the kernel does when the sweep dies.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.loading import load
from ..errors import CvaeError, out_of_memory
from ..reporter import Silent
from ..run import Run
from ..signals import InterruptedRun
from ..sweeping.plan import Plan, difference

if TYPE_CHECKING:
    from ..engine.events import EpochEvent, StepEvent
    from ..sweeping.queue import Taken


def main(arguments: Sequence[str]) -> int:
    """Train one cell, if one is waiting.

    Returns:
        The exit status: 0, or 128 + the signal's number if the training was stopped from outside.
    """
    from ..sweeping.crew import STORAGE
    from ..sweeping.queue import Queue

    folder, stale_after, runtime = Path(arguments[0]), float(arguments[1]), list(arguments[2:])
    plan = Plan.read(folder)
    queue = Queue(folder, plan, os.environ.get(STORAGE), stale_after)
    found = queue.take()
    if found is None:
        return 0
    taken, held = found
    with held:
        _log_to(folder / "logs" / f"{taken.name}.log")
        reporter = _CellReporter(taken, plan)
        try:
            queue.finished(taken, _train(folder, plan, taken, runtime, reporter))
        except InterruptedRun as interrupted:
            if not reporter.pruned:
                queue.interrupted(taken)
                return interrupted.exit_code
            Run(folder / taken.name).update_info(status="pruned")
            queue.pruned(taken)
        except Exception as error:  # any error at all must not stop the other cells
            traceback.print_exc()
            queue.failed(taken, _one_line(error))
    return 0


def _train(
    folder: Path, plan: Plan, taken: Taken, runtime: Sequence[str], reporter: _CellReporter
) -> dict[str, Any]:
    """Train or resume the cell's run; returns its last validation."""
    from . import evaluation, resume, train

    config, run = plan.config_of([*taken.overrides, *runtime]), folder / taken.name
    # The command that run.json records; it trains the same run without the sweep.
    sys.argv = ["cvae", "train", "--config", plan.source, *plan.fixed, *taken.overrides]
    if any((run / "checkpoints").glob("*.pt")):
        other = difference(load(run / "config.yaml"), config)
        if other:
            raise CvaeError(f"{run}: holds a run of another config: {other}", "move it away")
        trained = resume(run, runtime, runs=folder, reporter=reporter)
    else:
        if run.exists():  # its worker died before the first checkpoint
            shutil.rmtree(run)
        trained = train(config, name=taken.name, runs=folder, reporter=reporter)
    metrics = evaluation(trained)
    if metrics["psnr"] is None:
        raise CvaeError("the validation's PSNR is not finite", "lower optim.lr")
    return metrics


class _CellReporter(Silent):
    """Records the validations, and stops the training when Optuna prunes it or the sweep ends."""

    def __init__(self, taken: Taken, plan: Plan) -> None:
        self.pruned = False
        self._trial, self._prunes = taken.trial, plan.kind == "search"
        self._stopping = False

    def note(self, text: str) -> None:
        """Write to the cell's log."""
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Write to the cell's log."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def step(self, event: StepEvent) -> None:
        """Stop if the sweep asks for it."""
        self._stop_if_asked()

    def validating(self, done: int, total: int) -> None:
        """Stop if the sweep asks for it."""
        self._stop_if_asked()

    def epoch(self, event: EpochEvent) -> None:
        """Report the validation's PSNR to Optuna."""
        psnr = event.row.get("val/psnr")
        if psnr is None:
            return
        self._trial.report(float(psnr), event.epoch)
        if self._prunes and not event.last and self._trial.should_prune():
            self.pruned = True
            self._stop()

    def _stop_if_asked(self) -> None:
        if select.select([sys.stdin], [], [], 0)[0]:  # nothing is ever sent: readable means closed
            self._stop()

    def _stop(self) -> None:
        """Stop like Ctrl-C: the training saves and ends. A second signal would end it without saving."""
        if not self._stopping:
            self._stopping = True
            signal.raise_signal(signal.SIGTERM)


def _log_to(path: Path) -> None:
    """Send this process's output to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _one_line(error: Exception) -> str:
    if out_of_memory(error):
        return "out of memory on the device (lower train.batch_size, train.window or eval.chunk)"
    text = (str(error).strip().splitlines() or [""])[0][:300]
    return text if isinstance(error, CvaeError) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
