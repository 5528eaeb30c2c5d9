"""Shared by the benchmark scripts: arguments, Markdown, and running a task in a separate process."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import numpy as np

from cvaecli.config.loading import load
from cvaecli.config.schema import RunConfig
from cvaecli.errors import CvaeError

Result = TypeVar("Result")


def parser(text: str | None, config: str | None = "cyclical") -> argparse.ArgumentParser:
    """The arguments of every script. ``config`` is the default of ``--config``; None: no such option."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides such as data.root=DIR")
    made.add_argument("--threads", type=int, help="CPU threads (runtime.threads)")
    if config is not None:
        made.add_argument("--config", default=config, help=f"name or file (default: {config})")
    return made


def overrides(arguments: argparse.Namespace, *own: str) -> list[str]:
    """The script's own overrides, then those of the command line."""
    threads = [f"runtime.threads={arguments.threads}"] if arguments.threads else []
    return [*own, *threads, *(word for word in arguments.words if "=" in word)]


def settings(arguments: argparse.Namespace, *own: str) -> RunConfig:
    """The config that the arguments name."""
    return load(arguments.config, overrides(arguments, *own))


def truth_and_predictions(
    run: str, words: Sequence[str], split: str
) -> tuple[RunConfig, np.ndarray, np.ndarray]:
    """A run's config, with the overrides ``words``; the clips of a split; and its predictions of them.

    Both are uint8 ``[clips, frames, H, W, 3]`` and begin with the given frames. All clips end where the
    shortest does or, if ``data.n_future`` is set, after so many predicted frames.
    """
    from cvaecli.api.loading import load_data, open_run
    from cvaecli.api.prediction import Video, predicted
    from cvaecli.reporter import Silent

    _, _, config, model, device, _ = open_run(run, words)
    clips, n_future = load_data(config, (split,), Silent()).splits[split], config.data.n_future
    T = min(clip.n_frames for clip in clips) if n_future is None else config.data.n_past + n_future
    truth = np.stack([np.moveaxis(clip.frames[:T], 1, -1) for clip in clips])
    pieces = predicted(model, [Video(clip, T) for clip in clips], config, device)
    return config, truth, np.concatenate(list(pieces), 1)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers are not rounded."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def apart(task: Callable[..., Result], *arguments: object) -> Result:
    """Run a task in a new process with its own memory, imports and settings."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


def command(main: Callable[[], None]) -> None:
    """Run a script; a user's mistake gives one line and exit status 2."""
    try:
        main()
    except CvaeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
