"""``cvae train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import launch
from .common import AsJson, Debug, Quiet, only_overrides, terminal
from .console import Terminal


def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides such as train.epochs=10.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            help="A YAML file, or the name of a built-in config such as cyclical.",
            show_default="quickstart",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder under runs/.")] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Continue an interrupted run.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Read the data, run a few steps, estimate time and memory; make no run folder."
        ),
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Train one model on N GPUs of this machine, with one process on each."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a model, then validate it.

    Examples: cvae train --config cyclical data.root=DIR train.epochs=20 - cvae train --resume latest
    """
    with terminal(quiet, as_json, debug) as console:
        changes = only_overrides(overrides)
        if resume is not None and (config or name or dry_run):
            raise typer.BadParameter(
                "--resume continues a run with its own config; --config, --name and --dry-run do not apply"
            )
        if gpus is not None and not launch.several():
            raise typer.Exit(launch.on_gpus(gpus, launch.without_gpus(sys.argv[1:])))
        from .. import api
        from ..config.loading import load

        config = config or "quickstart"
        if resume is not None:
            run = api.resume(resume, changes, reporter=console)
        else:
            with launch.one_report_per_machine():
                settings = load(config, changes)
            if dry_run:
                report = api.dry_run(settings, reporter=console)
                if launch.rank() == 0:
                    _show_dry_run(console, report)
                return
            run = api.train(settings, name=name, stem=Path(config).stem, reporter=console)
        if launch.rank() > 0:
            return
        from .validate import show

        show(console, {"run": str(run.path), **api.evaluation(run)})
        if not as_json:
            console.result(f"run: {run.path}   next: cvae plot all {run.path}, cvae export-gif {run.path}")


def _show_dry_run(console: Terminal, report: dict[str, Any]) -> None:
    if console.as_json:
        console.data(report)
        return
    shown = {**report, "splits": "\n".join(_in_words(*split) for split in report["splits"].items())}
    rows = [[key, str(value)] for key, value in shown.items()]
    console.table("Dry run: no fault found, no run folder made", ["", ""], rows)


def _in_words(split: str, lengths: dict[str, int]) -> str:
    shortest, longest = lengths["shortest"], lengths["longest"]
    each = f"{longest} each" if shortest == longest else f"{shortest} to {longest} each"
    clips = "1 clip" if lengths["clips"] == 1 else f"{lengths['clips']} clips, {each}"
    return f"{split}: {lengths['frames']} frames in {clips}"
