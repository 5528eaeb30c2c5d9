"""The command line. Each subcommand has a small file that parses, calls the API and prints."""

from __future__ import annotations

from typing import Annotated

import typer

from . import (
    bench,
    compare,
    convert,
    data,
    demo,
    export,
    export_gif,
    plot,
    predict,
    report,
    sweep,
    train,
    validate,
)

app = typer.Typer(
    name="cvae",
    help="Train, evaluate and run conditional variational autoencoders for video prediction.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(train.train)
app.command()(validate.validate)
app.command()(predict.predict)
app.command()(plot.plot)
app.command("export-gif")(export_gif.export_gif)
app.command()(convert.convert)
app.command()(export.export)
app.command()(demo.demo)
app.command()(sweep.sweep)
app.command()(compare.compare)
app.command()(report.report)
app.command()(bench.bench)
app.add_typer(data.app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"cvae {version('cvae')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The options of ``cvae`` itself."""


def main() -> None:
    """The console command ``cvae``."""
    app()
