"""``cvae plot``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Debug, Quiet, terminal


class Kind(StrEnum):
    """Figures that can be drawn."""

    psnr = "psnr"
    loss = "loss"
    epochs = "epochs"
    beta = "beta"
    tfr = "tfr"
    kl = "kl"
    samples = "samples"
    compare = "compare"
    all = "all"


def plot(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="psnr: per frame. epochs: validation PSNR per epoch with tfr and beta. "
            "loss, beta, tfr, kl: over training. all: every one of these. samples: several futures of one "
            "clip beside the truth. compare: settings over seeds, with a table."
        ),
    ],
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs; several become one comparison.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="x.png, x.pdf or x.svg; in the run's plots/ when left out.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val or test, of psnr, samples and compare. (samples: test)")
    ] = None,
    sequence: Annotated[int, typer.Option(min=0, help="Of samples: which clip of the split.")] = 0,
    samples: Annotated[int, typer.Option(min=2, help="Of samples: how many futures.")] = 16,
    label: Annotated[
        list[str] | None, typer.Option(help="A run's name in the figure; once for each run.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw figures fit for a report from runs' files.

    Example: cvae plot psnr runs/cyclical-001 runs/none-001
    """
    with terminal(quiet, as_json, debug) as console:
        from .. import api

        written = api.plot(
            kind.value,
            runs or [],
            out=out,
            labels=label,
            split=split,
            sequence=sequence,
            samples=samples,
            reporter=console,
        )
        if as_json:
            console.data({"written": [str(path) for path in written]})
        else:
            for path in written:
                console.result(str(path))
