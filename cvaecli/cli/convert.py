"""``cvae convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Debug, Quiet, only_overrides, terminal


def convert(
    file: Annotated[Path, typer.Argument(help="A checkpoint of the Lab 4 template or of the SVG code.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides such as data.root=DIR."),
    ] = None,
    config: Annotated[
        str,
        typer.Option("--config", "-c", help="cyclical for Lab 4, robot for SVG, or a YAML file like these."),
    ] = "cyclical",
    name: Annotated[
        str | None, typer.Option(help="The run's name; converted-001, converted-002... by default.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a run of another program's checkpoint, without running anything in it.

    Example: cvae convert epoch=99.ckpt --config cyclical data.root=DIR
    """
    with terminal(quiet, as_json, debug) as console:
        changes = only_overrides(overrides)
        from .. import api

        run = api.convert(file, config, changes, name=name, reporter=console)
        if as_json:
            console.data({"run": str(run.path)})
        else:
            console.result(f"run: {run.path}   next: cvae validate {run.path}, cvae predict {run.path}")
