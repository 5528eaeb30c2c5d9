"""``cvae plot``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..plots.kinds import KINDS, PLANNED
from .common import AsJson, Debug, split_arguments, terminal
from .console import Terminal

if TYPE_CHECKING:
    from ..config.schema import RunConfig


def _known(kind: str) -> str:
    if kind not in (*KINDS, "all"):
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join((*KINDS, 'all'))}")
    return kind


def plot(
    kind: Annotated[
        str,
        typer.Argument(
            callback=_known,
            autocompletion=lambda: [*KINDS, "all"],
            help=". ".join(f"{name}: {kind.help}" for name, kind in KINDS.items())
            + ". all: every figure that the files allow.",
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Runs; several become one comparison. With --config: overrides such as kl.cycles=6.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="x.png, x.pdf or x.svg (grid: also x.gif), or a folder; RUN/plots when left out."),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-c",
            help=f"A config whose schedule ({', '.join(PLANNED)}) to draw without a run; several are compared.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which evaluation: train, val or test. (samples: test)")
    ] = None,
    sequence: Annotated[int, typer.Option(min=0, help="Of samples: which clip of the split.")] = 0,
    samples: Annotated[int, typer.Option(min=2, help="Of samples: how many futures.")] = 16,
    label: Annotated[
        list[str] | None, typer.Option(help="A run's name in the figure; once for each run.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw figures for a report from runs' files.

    Example: cvae plot psnr runs/cyclical-001 runs/none-001
    """
    with terminal(as_json=as_json, debug=debug) as console:
        from .. import plots
        from ..run import find

        runs, overrides = split_arguments(arguments)
        if config:
            if runs:
                raise UserError(
                    f"--config draws without a run, but {runs[0]} is one", "leave one of them out"
                )
            return _show(console, plots.plot_planned(kind, _configs(config, overrides), out))
        if overrides:
            raise UserError(f"{overrides[0]}: overrides go with --config", "a run is drawn as it was trained")
        if label and kind == "compare":
            raise UserError(
                "--label: compare names settings by what differs in their configs", "leave it out"
            )
        specs: list[str | None] = [*runs] if runs else [None]
        if kind == "samples":
            from ..api.futures import futures

            split = split or "test"
            for spec in specs:
                futures(spec, split=split, sequence=sequence, samples=samples, reporter=console)
        folders = [find(spec)[0].path for spec in specs]
        _show(console, plots.plot(kind, folders, out, labels=label or None, split=split, warn=console.warn))


def _configs(names: list[str], overrides: list[str]) -> dict[str, RunConfig]:
    from ..config.loading import load

    return {name: load(name, overrides) for name in names}


def _show(console: Terminal, written: list[Path]) -> None:
    if console.as_json:
        console.data({"written": [str(path) for path in written]})
    for path in [] if console.as_json else written:
        console.result(str(path))
