"""``cvae plot``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Debug, terminal


class Kind(StrEnum):
    """Figures that can be drawn."""

    psnr = "psnr"
    loss = "loss"
    epochs = "epochs"
    beta = "beta"
    tfr = "tfr"
    kl = "kl"
    all = "all"


def plot(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="psnr: per frame. epochs: validation PSNR per epoch with tfr and beta. "
            "loss, beta, tfr, kl: over training. all: every figure."
        ),
    ],
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs; several become one comparison.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="x.png, x.pdf or x.svg; in the run's plots/ when left out.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw figures fit for a report from runs' files.

    Example: cvae plot psnr runs/cyclical-001 runs/none-001
    """
    with terminal(as_json=as_json, debug=debug) as console:
        from .. import plots
        from ..run import find

        specs: list[str | None] = [*runs] if runs else [None]
        folders = [find(spec)[0].path for spec in specs]
        written = plots.plot(kind.value, folders, out)
        if as_json:
            console.data({"written": [str(path) for path in written]})
        else:
            for path in written:
                console.result(str(path))
