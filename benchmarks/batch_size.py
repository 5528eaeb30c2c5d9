"""Training speed against the batch size.

Doubles ``train.batch_size`` from 2 until that gains less than 5 % in frames per second or the device's memory
is full. Each size is measured by ``cvae bench`` in its own process.

Examples: python benchmarks/batch_size.py --config pose
          python benchmarks/batch_size.py --config robot train.ema=null --last 64
"""

from __future__ import annotations

from typing import Any

import tools

from cvaecli import bench
from cvaecli.config.loading import load
from cvaecli.errors import out_of_memory

GAIN = 1.05


def measured(config: str, given: list[str], steps: int, frames: int, batch: int) -> dict[str, Any] | None:
    """``cvae bench`` with this batch size; None if it does not fit in memory."""
    try:
        return bench(load(config, [*given, f"train.batch_size={batch}"]), steps=steps, frames=frames)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def main() -> None:
    """Print a row for every batch size."""
    parser = tools.parser(__doc__, config="pose")
    parser.add_argument("--steps", type=int, default=10, help="training steps for each batch")
    parser.add_argument("--frames", type=int, default=128, help="predicted frames of the rollout")
    parser.add_argument("--first", type=int, default=2, help="batch to begin with")
    parser.add_argument("--last", type=int, default=4096, help="largest batch")
    arguments = parser.parse_intermixed_args()
    given, batch, before, rows = tools.overrides(arguments), arguments.first, 0.0, []
    report: dict[str, Any] | None = None
    while batch <= arguments.last:
        found = tools.apart(measured, arguments.config, given, arguments.steps, arguments.frames, batch)
        if found is None:
            break
        report, speed = found, found["train_frames_per_s"]
        share = f"{report['train_fraction_of_peak']:.1%}"
        rows.append([batch, f"{speed:.1f}", share, f"{report['peak_memory_gb']:.2f}"])
        if speed < GAIN * before:
            break
        before, batch = speed, 2 * batch
    tools.markdown([f"{arguments.config}: batch", "training frames/s", "of the peak", "memory, GB"], rows)
    if report is not None:
        print(
            f"\nrollout of one clip: {report['rollout_frames_per_s']:.1f} frames/s, "
            f"{report['rollout_fraction_of_peak']:.1%} of the peak of {report['peak_gflops']:.0f} GFLOP/s; "
            f"{report['device']}, {report['precision']}, torch {report['versions']['torch']}"
        )


if __name__ == "__main__":
    tools.command(main)
