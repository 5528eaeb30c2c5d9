"""``cvae data preview``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Debug, Quiet, terminal

WORST = 3
"""Points named as missing most often."""


def preview(
    root: Annotated[Path, typer.Argument(help="Folder of a data set with label images.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write into; ROOT/preview by default.", show_default=False)
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look before you train: a contact sheet, a GIF of frames and labels, and the labels' quality."""
    with terminal(quiet, as_json, debug) as console:
        from ..data.report import spans
        from ..importing import quality
        from ..importing.preview import preview as run

        with console.task(f"Reading {root}") as advance:
            shown = run(root, out or root / "preview", advance)
        rows, lost = shown.quality.rows, shown.quality.lost
        table = [quality.summary(rows, split) for split in ("train", "val")]
        jumps = [row.frame for row in rows if row.jump]
        worst = sorted(lost, key=lambda name: -lost[name])[:WORST]
        if as_json:
            written = [str(path) for path in shown.written]
            labels = [dict(zip(quality.COLUMNS, line, strict=True)) for line in table]
            console.data({"written": written, "labels": labels, "jumps": jumps, "lost": lost})
            return
        console.table(f"Labels of {root}", quality.COLUMNS, table)
        if jumps:
            console.result(f"jumps at frames {spans(jumps)}")
        if worst and lost[worst[0]] > 0:
            console.result("most often missing: " + ", ".join(f"{name} {lost[name]:.0%}" for name in worst))
        for path in shown.written:
            console.result(str(path))
