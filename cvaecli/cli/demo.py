"""``cvae demo``."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from .common import AsJson, Debug, Quiet, RunAndOverrides, run_and_overrides, terminal


def demo(
    arguments: RunAndOverrides = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any free one.")
    ] = 8008,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Open a page, for this machine alone, to play with a model: drag joints, play labels, move actions.

    Ctrl-C ends it.

    Example: cvae demo exp1 --port 9000
    """
    with terminal(quiet, as_json, debug) as console:
        run, overrides = run_and_overrides(arguments)
        from ..api.demo import Stage
        from ..api.demo_server import DemoServer

        with DemoServer(Stage(run, overrides, reporter=console), port) as server:
            if as_json:
                console.data({"url": server.url})
            else:
                console.result(f"{server.url}   Ctrl-C ends it")
            if browser and console.out.is_terminal:
                webbrowser.open(server.url)
            server.serve_forever()
