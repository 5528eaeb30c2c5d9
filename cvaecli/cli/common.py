"""Shared by the subcommands: common options, positional overrides, and the display of errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from .. import launch
from ..errors import CvaeError, DataError, ReportedElsewhereError, UserError, out_of_memory
from ..signals import InterruptedRun, Stopped, stoppable
from .console import Terminal

REPORT_TIME = 2.0
"""Seconds that a process waits while another one reports their common failure: the launcher kills all as soon
as one ends."""

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no notes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RunAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN] [KEY=VALUE]...",
        help="A run's folder or name, a checkpoint file, or 'latest'; the newest run by default. "
        "Overrides such as data.root=DIR follow.",
    ),
]


def split_arguments(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """Positional arguments as (runs, overrides): an argument with ``=`` in it is an override."""
    arguments = arguments or []
    return [a for a in arguments if "=" not in a], [a for a in arguments if "=" in a]


def only_overrides(arguments: list[str] | None) -> list[str]:
    """The overrides of a command that takes no other arguments; the error recognises a forgotten
    ``--config``.

    Raises:
        UserError: an argument is not an override.
    """
    others, overrides = split_arguments(arguments)
    if others:
        from ..config.loading import builtin_names

        name = others[0]
        is_config = name.endswith((".yaml", ".yml")) or name in builtin_names()
        raise UserError(
            f"{name}: not an override",
            f"did you mean --config {name}?" if is_config else "write section.key=value",
        )
    return overrides


def run_and_overrides(arguments: list[str] | None) -> tuple[str | None, list[str]]:
    """The one RUN of a command, or None, and the overrides."""
    runs, overrides = split_arguments(arguments)
    if len(runs) > 1:
        raise typer.BadParameter(f"one RUN at most, not {len(runs)}: {' '.join(runs)}")
    return (runs[0] if runs else None), overrides


@contextmanager
def terminal(quiet: bool = False, as_json: bool = False, debug: bool = False) -> Iterator[Terminal]:
    """The terminal for a command. Errors in the block become one line and an exit status."""
    console = Terminal(quiet, as_json, f"process {launch.rank()}: " if launch.rank() > 0 else "")
    try:
        with stoppable():
            yield console
    except ReportedElsewhereError as error:
        time.sleep(REPORT_TIME)
        raise typer.Exit(error.exit_code) from None
    except CvaeError as error:
        if debug:
            raise
        if isinstance(error, InterruptedRun):
            console.warn(str(error))
        else:
            console.error(error.message, error.hint)
        if isinstance(error, DataError) and len(error.faults) > 1:
            for fault in error.faults:
                console.error(fault)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt as stopped:
        console.warn("stopped; what was not complete is removed")
        raise typer.Exit(stopped.exit_code if isinstance(stopped, Stopped) else 130) from None
    except OSError as error:  # a full disk, a folder without permission
        if debug or error.strerror is None:
            raise
        console.error(f"{error.filename or 'input/output'}: {error.strerror}")
        raise typer.Exit(1) from None
    except RuntimeError as error:
        if debug or not out_of_memory(error):
            raise
        console.error("out of memory on the device", "lower train.batch_size, train.window or eval.chunk")
        raise typer.Exit(1) from None
