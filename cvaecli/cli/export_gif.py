"""``cvae export-gif``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Debug, Quiet, RunAndOverrides, run_and_overrides, terminal


def export_gif(
    arguments: RunAndOverrides = None,
    out: Annotated[
        Path | None, typer.Option(help="x.gif or x.mp4; by default a GIF in the run's predictions/.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Frames, including the given ones; all by default.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="test, val or train; by default the first that has true frames.")
    ] = None,
    sequence: Annotated[int, typer.Option(min=0, help="Number of a sequence of the split.")] = 0,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames per second.")] = 25,
    scale: Annotated[
        int | None,
        typer.Option(min=1, help="Whole-number enlargement; by default to about 200 pixels of height."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write truth, prediction and condition side by side, captioned, as a GIF."""
    with terminal(quiet, as_json, debug) as console:
        run, overrides = run_and_overrides(arguments)
        from .. import api

        path = api.export_gif(
            run,
            overrides,
            out=out,
            frames=frames,
            split=split,
            sequence=sequence,
            fps=fps,
            scale=scale,
            reporter=console,
        )
        console.written([path], data=console.source)
