"""``cvae data synth`` and ``cvae data check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Debug, Quiet, terminal

app = typer.Typer(help="Write the built-in data to disk, or check a data set.", no_args_is_help=True)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    height: Annotated[int, typer.Option(min=16, max=1024, help="Frame height in pixels.")] = 32,
    width: Annotated[int, typer.Option(min=16, max=1024, help="Frame width in pixels.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other motions.")] = 0,
    frames: Annotated[int, typer.Option(min=2, help="Frames of each clip.")] = 630,
    train_clips: Annotated[int, typer.Option(min=1, help="Clips in train.")] = 3,
    test_clips: Annotated[int, typer.Option(min=1, help="Sequences in test.")] = 2,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the built-in synthetic set in the dance layout."""
    with terminal(quiet, as_json, debug) as console:
        from ..data import synthetic

        synthetic.write(
            out, height, width, seed=seed, frames=frames, train_clips=train_clips, test_clips=test_clips
        )
        if as_json:
            console.data({"written": [str(out)]})
        else:
            console.result(str(out))


@app.command()
def check(
    root: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    kind: Annotated[str, typer.Option(help="Layout: dance.")] = "dance",
    height: Annotated[int, typer.Option(min=8, max=4096, help="Frame height that will be trained on.")] = 32,
    width: Annotated[int, typer.Option(min=8, max=4096, help="Frame width that will be trained on.")] = 64,
    cuts: Annotated[str, typer.Option(help="auto or none, as data.cuts.")] = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read a whole data set and report every fault at once, one line each; exit 2 if there is one."""
    with terminal(quiet, as_json, debug) as console:
        from .. import data

        with console.task(f"Reading {root}") as advance:
            report = data.check(root, kind=kind, height=height, width=width, cuts=cuts, progress=advance)
        if as_json:
            console.data({"faults": report.faults, "warnings": report.warnings, "summary": report.summary})
        else:
            for line in report.faults:
                console.result(f"fault: {line}")
            for line in report.warnings:
                console.result(f"warning: {line}")
            for line in report.summary:
                console.result(line)
            if not report.faults:
                console.result("all is well" if not report.warnings else "usable, with the warnings above")
        if report.faults:
            raise typer.Exit(2)
