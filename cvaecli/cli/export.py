"""``cvae export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, Debug, Quiet, RunAndOverrides, run_and_overrides, terminal


def export(
    arguments: RunAndOverrides = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", "-f", help="onnx, pt2 (torch.export) or safetensors; may be repeated. (onnx)"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; RUN/export by default.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the model for programs without this tool, checked against PyTorch on the run's own clips.

    Example: cvae export exp1 --format onnx --format safetensors
    """
    with terminal(quiet, as_json, debug) as console:
        run, overrides = run_and_overrides(arguments)
        from .. import api

        found = api.export(run, overrides, formats=formats or ["onnx"], out=out, reporter=console)
        if as_json:
            files = [str(path) for path in found.files]
            console.data({"written": files, "differences": found.differences, "frames": found.frames})
            return
        for path in found.files:
            console.result(str(path))
        for name, difference in found.differences.items():
            console.result(
                f"{name}: largest difference from PyTorch {difference:.1e} in {found.frames} frames"
            )
