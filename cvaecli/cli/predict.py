"""``cvae predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Debug, Quiet, RunAndOverrides, run_and_overrides, terminal


def predict(
    arguments: RunAndOverrides = None,
    frames: Annotated[
        int | None,
        typer.Option(min=2, help="Frames of the output, including the given ones; all by default."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="x.gif, x.mp4, x.png (a strip), x.npz, or a folder for PNG frames.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="test, val or train; by default test if there is one.")
    ] = None,
    sequence: Annotated[str, typer.Option(help="Number of a sequence of the split, or 'all'.")] = "0",
    samples: Annotated[
        int, typer.Option(min=1, help="Predictions of each sequence, with different noise.")
    ] = 1,
    submission: Annotated[
        Path | None, typer.Option(help="Also write the CSV file that Lab 4 asks for, with all sequences.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="pytorch, or onnx: the files of cvae export RUN --format onnx.")
    ] = "pytorch",
    fps: Annotated[float, typer.Option(min=0.1, help="Frames per second.")] = 25,
    scale: Annotated[
        int | None,
        typer.Option(
            min=1, help="Whole-number enlargement; by default to about 400 pixels of width. 1: none."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Predict a video of any length from its first frames and its conditions, in constant memory.

    Several sequences or samples are predicted together, up to eval.batch_size of them.

    Example: cvae predict exp1 --frames 630 --out seq.gif
    """
    with terminal(quiet, as_json, debug) as console:
        run, overrides = run_and_overrides(arguments)
        if sequence != "all" and not sequence.isdecimal():
            raise typer.BadParameter(f"--sequence {sequence}: must be a number or 'all'")
        from .. import api

        written = api.predict(
            run,
            overrides,
            out=out,
            frames=frames,
            split=split,
            sequence="all" if sequence == "all" else int(sequence),
            samples=samples,
            submission=submission,
            backend=backend,
            fps=fps,
            scale=scale,
            reporter=console,
        )
        console.written(written, data=console.source)
