"""``cvae plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..plots.kinds import KINDS, PLANNED
from .common import AsJson, Debug, Quiet, split_arguments, terminal


def _known(kind: str) -> str:
    if kind not in (*KINDS, "all"):
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join((*KINDS, 'all'))}")
    return kind


def plot(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
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
            help="Runs; several make one comparison. With --config: overrides such as kl.cycles=6.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="x.png, x.pdf or x.svg (grid: also x.gif), or a folder; RUN/plots by default."),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-c",
            help=f"A config whose {', '.join(PLANNED)} to draw without a run; several are compared.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which evaluation to draw: train, val or test. (for samples: test)")
    ] = None,
    sequence: Annotated[int, typer.Option(min=0, help="For samples: which clip of the split.")] = 0,
    samples: Annotated[int, typer.Option(min=2, help="For samples: number of futures.")] = 16,
    label: Annotated[
        list[str] | None, typer.Option(help="A run's name in the figure; give it once per run.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw figures from the files of runs.

    Example: cvae plot psnr runs/cyclical-001 runs/none-001
    """
    with terminal(quiet, as_json, debug) as console:
        from .. import api
        from ..config.loading import load

        runs, overrides = split_arguments(arguments)
        if config and runs:
            raise UserError(f"--config draws without a run, but {runs[0]} is one", "give only one of them")
        if overrides and not config:
            raise UserError(f"{overrides[0]}: overrides need --config", "a run is drawn as it was trained")
        if config:
            written = api.plot_schedule(kind, {name: load(name, overrides) for name in config}, out=out)
        else:
            written = api.plot(
                kind,
                runs,
                out=out,
                labels=label,
                split=split,
                sequence=sequence,
                samples=samples,
                reporter=console,
            )
        console.written(written)
