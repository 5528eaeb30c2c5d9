"""Time from ``cvae train`` to its first optimiser step, and the memory of training steps.

The time is that of the real command on cached data: it runs in its own folder until steps.csv has its first
row, which is written after step 1. The memory of the plain path and of the tool is the largest resident set
of a new process that only trains (on CUDA: the peak of tensor memory). A process that only imports and loads
the data is measured for comparison.

Example: python benchmarks/first_step.py --config cyclical --threads 2
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compare_speed
import tools
import torch

from cvaecli.api.loading import load_data
from cvaecli.config.schema import RunConfig
from cvaecli.engine.device import Device, prepare
from cvaecli.engine.measure import peak_memory
from cvaecli.reporter import Silent

POLL = 0.002  # seconds between two checks of steps.csv


def seconds_to_first_step(config: RunConfig) -> float:
    """From starting ``cvae train`` to the first row of its steps.csv; the run is stopped and removed.

    Raises:
        RuntimeError: the command ended before that.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(config.to_yaml())
        command = [sys.executable, "-m", "cvaecli", "train", "--quiet", "--config", "config.yaml"]
        rows = Path(folder) / "runs/first-step/steps.csv"
        began = time.perf_counter()
        process = subprocess.Popen([*command, "--name", "first-step"], cwd=folder)
        while not (rows.exists() and rows.read_text().count("\n") >= 2):  # the header, then step 1
            if process.poll() is not None:
                raise RuntimeError(f"cvae train ended with status {process.returncode} before its first step")
            time.sleep(POLL)
        seconds = time.perf_counter() - began
        process.send_signal(signal.SIGKILL)
        process.wait()
    return seconds


def peak_of(side: str, config: RunConfig, steps: int) -> float:
    """Peak memory in bytes after ``steps`` training steps of a side; no steps for the side ``import``."""
    if side == "import":
        load_data(config, ("train", "val"), Silent())
        device = prepare(config.runtime)
    else:
        turns = compare_speed.SIDES[side](config, 0, steps)
        for _ in range(steps + 1):
            next(turns)
        cuda = torch.cuda.is_available() and config.runtime.device != "cpu"
        device = Device(torch.device("cuda" if cuda else "cpu"), False)
    return peak_memory(device)


def main() -> None:
    """Measure both and print a Markdown table."""
    parser = tools.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="starts of cvae train; the median counts")
    parser.add_argument("--steps", type=int, default=2, help="training steps whose memory is measured")
    arguments = parser.parse_intermixed_args()
    config = tools.settings(arguments, "train.ema=null")
    if config.data.root is not None:  # the command runs in another folder
        absolute = {"root": config.data.root.resolve()}
        config = config.model_copy(update={"data": config.data.model_copy(update=absolute)})
    peaks = {
        side: tools.apart(peak_of, side, config, arguments.steps) / 1e9
        for side in ("import", "plain", "fast")
    }
    starts = [seconds_to_first_step(config) for _ in range(arguments.repeats)]
    tools.markdown(
        ["config", "first step, s (min to max)", "memory: imports and data, GB", "plain, GB", "tool, GB"],
        [
            [
                arguments.config,
                f"{statistics.median(starts):.1f} ({min(starts):.1f} to {max(starts):.1f})",
                *(f"{peak:.2f}" for peak in peaks.values()),
            ]
        ],
    )


if __name__ == "__main__":
    tools.command(main)
