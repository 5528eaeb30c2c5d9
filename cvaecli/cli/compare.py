"""``cvae compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Debug, Quiet, terminal
from .console import Terminal

Frames = Annotated[
    int | None,
    typer.Option(
        "--frames",
        min=2,
        metavar="N",
        help="Predict the first N frames of the split's first clip for runs that lack them, and play them in "
        "the page. Needs the data. Without this option the page plays what it finds in predictions/.",
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Which evaluations to use; by default val if there is one, else the split that most runs have."
    ),
]


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Run folders, names under runs/, or a sweep's folder."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="x.html: one self-contained page. x.md: Markdown, with a .csv and figures next to it. "
            "x.csv: one row per run."
        ),
    ] = None,
    split: Split = None,
    frames: Frames = None,
    pictures: Annotated[
        bool, typer.Option(help="Whether the page shows frames; without, it can be shared where they cannot.")
    ] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare runs: how their settings differ, their results, and which differences hold over the seeds.

    Examples: cvae compare runs/ablation - cvae compare cyclical-001 none-001 --out report.html
    """
    with terminal(quiet, as_json, debug) as console:
        from ..pages import compare as pages
        from ..pages import render

        if out is not None:
            render.check_suffix(out.suffix.lower(), pages.SUFFIXES, out)
        found = pages.compare(runs or [], split)
        if frames is not None:
            from ..api.sampling import add_frames

            shown = [s.counted[0].path for group in found.groups for s in group.ranked]
            add_frames(shown, found.split, frames, reporter=console)
        written = pages.write(found, out, with_pictures=pictures) if out is not None else []
        if as_json:
            console.data(pages.as_data(found) | {"written": [str(path) for path in written]})
            return
        _show(console, found)
        for path in written:
            console.result(str(path))


def _show(console: Terminal, found: object) -> None:
    from ..pages import compare as pages
    from ..pages import paired

    assert isinstance(found, pages.Comparison)
    console.result(found.question)
    if warning := pages.protocol_differences(found.groups):
        console.warn(warning)
    for group in found.groups:
        headings, rows = pages.table(group, narrow=True)
        console.table(f"{pages.protocol_words(group)} (dB, nats, minutes)", headings, rows)
        for run in pages.left_out(group):
            console.result(f"not counted: {run.name}: {run.flaw}")
        for difference in [*paired.between_settings(group), *paired.one_key_at_a_time(group)]:
            console.result(f"{difference.verdict}: {difference.sentence}")
