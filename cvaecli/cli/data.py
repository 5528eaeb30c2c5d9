"""``cvae data synth`` and ``cvae data check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import UserError
from .common import AsJson, Debug, Quiet, terminal

Kind = Literal["dance", "robot"]
Layout = Literal["processed", "tfrecord"]
HEIGHT, WIDTH = "(dance: 32, robot: 64)", "(64)"

app = typer.Typer(help="Write the built-in data to disk, or check a data set.", no_args_is_help=True)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist or be empty.")],
    kind: Annotated[
        Kind, typer.Option(help="A dancer in a room, or a robot arm that pushes things.")
    ] = "dance",
    layout: Annotated[
        Layout | None, typer.Option(help="Of a robot set: folders of PNG and CSV, or TFRecords. (processed)")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=16, max=1024, help=f"Frame height in pixels. {HEIGHT}")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=16, max=1024, help=f"Frame width in pixels. {WIDTH}")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other motions.")] = 0,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Frames of each clip. (dance: 630, robot: 14)")
    ] = None,
    train_clips: Annotated[
        int | None, typer.Option(min=1, help="Clips in train. (dance: 3, robot: 256)")
    ] = None,
    test_clips: Annotated[
        int | None, typer.Option(min=1, help="Clips in test, of a robot set also in validate. (2, 32)")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(min=0, help="Of a robot set: factor on how objects slip by chance. (1)")
    ] = None,
    stray: Annotated[
        float | None,
        typer.Option(min=0, help="Of a robot set: how far the arm goes astray, in table widths. (0)"),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the built-in synthetic set to disk."""
    with terminal(quiet, as_json, debug) as console:
        if kind == "dance":
            if (layout, noise, stray) != (None, None, None):
                raise UserError(
                    "--layout, --noise and --stray mean nothing for a dance set", "add --kind robot"
                )
            from ..synthetic import dancer as synthetic

            synthetic.write(
                out,
                height or 32,
                width or 64,
                seed=seed,
                frames=frames or 630,
                train_clips=train_clips or 3,
                test_clips=test_clips or 2,
            )
        else:
            from ..synthetic import robot as pushing

            pushing.write(
                out,
                height or 64,
                width or 64,
                layout=layout or "processed",
                seed=seed,
                frames=frames or 14,
                train=train_clips or 256,
                val=test_clips or 32,
                test=test_clips or 32,
                noise=1.0 if noise is None else noise,
                stray=stray or 0.0,
            )
        if as_json:
            console.data({"written": [str(out)]})
        else:
            console.result(str(out))


@app.command()
def check(
    root: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    kind: Annotated[
        Kind | None, typer.Option(help="Dance, or robot (folders or TFRecords). (recognised by its files)")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=8, max=4096, help=f"Frame height that will be trained on. {HEIGHT}")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=8, max=4096, help=f"Frame width that will be trained on. {WIDTH}")
    ] = None,
    cuts: Annotated[str, typer.Option(help="auto or none, as data.cuts.")] = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read a whole data set and report every fault at once, one line each; exit 2 if there is one."""
    with terminal(quiet, as_json, debug) as console:
        from .. import data

        chosen = kind or data.kind_of(root) or "dance"
        if kind is None and chosen != "dance":
            console.note(f"{root} looks like a {chosen} set and is checked as one (--kind {chosen})")
        with console.task(f"Reading {root}") as advance:
            report = data.check(root, kind=chosen, height=height, width=width, cuts=cuts, progress=advance)
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
