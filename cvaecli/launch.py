"""Several processes for one command, started by PyTorch's launcher.

Each process finds its number in the environment variables that the launcher sets. PyTorch is imported only
where processes are started.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Sequence

from .errors import CvaeError, ReportedElsewhereError, UserError


def rank() -> int:
    """This process's number among the processes of the command; 0 when it is alone."""
    return int(os.environ.get("RANK", 0)) if several() else 0


def several() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextlib.contextmanager
def one_report_per_machine() -> Iterator[None]:
    """For errors that every process finds before they connect: one process per machine reports them."""
    try:
        yield
    except CvaeError as error:
        if several() and os.environ.get("LOCAL_RANK", "0") != "0":
            raise ReportedElsewhereError(error.exit_code) from None
        raise


def on_gpus(count: int, arguments: Sequence[str]) -> int:
    """Run ``cvae`` with these arguments in one process for each of ``count`` GPUs of this machine.

    Returns:
        The exit status of the process that failed first; 128 + the signal's number if a signal stopped all.

    Raises:
        UserError: there are fewer GPUs.
        CvaeError: a process was killed.
    """
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count > found:
        raise UserError(
            f"--gpus {count}: this machine has {found}",
            "lower it" if found else f"on CPUs: torchrun --nproc-per-node {count} -m cvaecli train ...",
        )
    return in_processes(count, arguments)


def in_processes(count: int, arguments: Sequence[str]) -> int:
    """Run ``cvae`` with these arguments in ``count`` processes on this machine. Returns and raises as
    ``on_gpus``."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # The processes report their errors themselves.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    launcher = ["--standalone", "--nproc-per-node", str(count), "--module", "cvaecli", *arguments]
    try:
        run(parse_args(launcher))  # type: ignore[no-untyped-call]
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise CvaeError(f"process {number} was killed by {name}, which ended the training") from None
    return 0


def without_gpus(arguments: Sequence[str]) -> list[str]:
    """The command line without ``--gpus N``: the arguments of each process."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and not argument.startswith("--gpus="):
            skip = argument == "--gpus"
            if not skip:
                kept.append(argument)
        else:
            skip = False
    return kept
