"""``cvae bench``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .common import AsJson, Debug, Quiet, only_overrides, terminal
from .console import Terminal


def bench(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides such as runtime.precision=fp32."),
    ] = None,
    config: Annotated[
        str, typer.Option("--config", "-c", help="A YAML file, or the name of a built-in config.")
    ] = "quickstart",
    steps: Annotated[int, typer.Option(min=1, help="Training steps to time, after a warm-up.")] = 10,
    frames: Annotated[int, typer.Option(min=1, help="Frames to predict in the timed rollout.")] = 128,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a config on this machine: frames/s, fraction of the device's peak, memory, time to the first
    step.

    Examples: cvae bench --config pose - cvae bench --config robot train.batch_size=8 --steps 3 --json
    """
    with terminal(quiet, as_json, debug) as console:
        changes = only_overrides(overrides)
        from .. import api
        from ..config.loading import load

        settings = load(config, changes)
        report = api.bench(settings, steps=steps, frames=frames, from_process_start=True, reporter=console)
        _show(console, report)


def _show(console: Terminal, report: dict[str, Any]) -> None:
    if console.as_json:
        console.data(report)
        return
    B, T = report["batch"]
    H, W = report["frame_size"]
    rows = [
        [
            what,
            f"{report[name + '_frames_per_s']:.1f}",
            f"{report[name + '_gflop_per_frame']:.3f}",
            f"{report[name + '_fraction_of_peak']:.1%}",
        ]
        for name, what in (
            ("train", f"training, batch {B} x window {T}, {report['forced']:.0%} forced"),
            ("rollout", f"rollout of one clip, {report['frames']} frames"),
        )
    ]
    title = f"{report['model']}, {H}x{W}, {report['precision']}"
    console.table(title, ["", "predicted frames/s", "GFLOP per frame", "of the peak"], rows)
    reserved = report.get("reserved_memory_gb")
    console.result(
        f"peak {report['peak_gflops']:.0f} GFLOP/s (matrix product {report['peak_gflops_matmul']:.0f}, "
        f"convolution {report['peak_gflops_conv']:.0f}); peak memory {report['peak_memory_gb']:.2f} GB"
        f"{'' if reserved is None else f' ({reserved:.2f} GB reserved)'}; "
        f"first step {report['seconds_to_first_step']:.1f} s after the {report['first_step_counted_from']}"
    )
    versions = report["versions"]
    console.result(
        f"{report['device']}, compile {report['compile']}, torch {versions['torch']}, "
        f"cvae {versions['cvae']}; {report['data']}"
    )
