"""``cvae report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Debug, Quiet, terminal
from .compare import Frames, Split


def report(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run's folder or name, or 'latest'; the newest by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="x.html; RUN/report.html by default.")] = None,
    split: Split = None,
    frames: Frames = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a page about one run: its numbers in plain words, all figures, and how to reproduce it.

    Example: cvae report exp1 --frames 200
    """
    with terminal(quiet, as_json, debug) as console:
        from ..errors import UserError
        from ..pages import folders, render
        from ..pages import report as pages
        from ..run import find

        found = folders.find_runs([run]) if run is not None else [find(None)[0].path]
        if len(found) != 1:
            raise UserError(
                f"{run}: a folder of {len(found)} runs", f"cvae compare {run} shows them together"
            )
        folder = found[0]
        out = out or folder / "report.html"
        render.check_suffix(out.suffix.lower(), (".html",), out)
        split = folders.choose_split([folder], split)
        if frames is not None:
            from ..api.sampling import add_frames

            add_frames([folder], split, frames, reporter=console)
        console.written([pages.write(folder, out, split)])
