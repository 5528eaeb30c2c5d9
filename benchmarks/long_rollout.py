"""Memory and speed of predictions of any length: 100,000 frames must not need more memory than 1,000.

    python benchmarks/long_rollout.py                      # reference model, 1,000 and 100,000 frames
    python benchmarks/long_rollout.py --frames 1000,20000 --config quickstart --out .mp4
    python benchmarks/long_rollout.py model.widths=[16,32,64,128]    # any config key

Each length runs in its own process, with labels from a memory-mapped file (those of the built-in set,
repeated), random weights, and the same code for predicting and writing as `cvae predict`. It prints:

RssAnon   the process's own memory, which the system cannot reclaim: it must not grow
RssFile   pages of mapped files, including the labels. The system reclaims them when it needs memory, so they
          may grow with the amount of data read

Linux only (/proc).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def main() -> None:
    options = _arguments()
    if options.child:
        _predict(options)
        return
    print(f"{'frames':>8} {'RssAnon':>10} {'RssFile':>10} {'frames/s':>9} {'seconds':>8}")
    for frames in options.frames.split(","):
        same = [f"--config={options.config}", f"--out={options.out}", f"--threads={options.threads}"]
        same += [f"--chunk={options.chunk}"] if options.chunk else []
        command = [sys.executable, __file__, "--child", f"--frames={frames}", *same, *options.overrides]
        subprocess.run(command, check=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--frames", default="1000,100000", help="lengths, separated by commas")
    parser.add_argument("--config", default="reference")
    parser.add_argument("--out", default=".gif", help="format of the output: .gif, .mp4, .npz or .png")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunk", type=int, help="eval.chunk")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _predict(options: argparse.Namespace) -> None:
    from cvaecli import load_config, media
    from cvaecli.api.loading import build_model, load_data
    from cvaecli.api.prediction import Video, predicted
    from cvaecli.data.clip import Clip
    from cvaecli.engine.device import prepare
    from cvaecli.media.background import Consumer
    from cvaecli.reporter import Silent

    frames = int(options.frames)
    chunk = [f"eval.chunk={options.chunk}"] if options.chunk else []
    config = load_config(options.config, [f"runtime.threads={options.threads}", *chunk, *options.overrides])
    device = prepare(config.runtime)
    short = load_data(config, ("val",), Silent()).splits["val"][0]
    model = device.place(build_model(config, short.condition.shape[1:])).eval()
    with tempfile.TemporaryDirectory() as folder:
        labels = _repeated(short.condition, frames, Path(folder) / "labels.npy")
        clip = Clip("long", short.frames[: config.data.n_past], labels)
        peak = {"RssAnon": 0, "RssFile": 0}
        began = time.perf_counter()
        with Consumer(lambda each: media.write(each, f"{folder}/x{options.out}", total=frames)) as writer:
            for piece in predicted(model, [Video(clip, frames)], config, device):
                writer.put(piece[0])
                peak = {name: max(most, _held(name)) for name, most in peak.items()}
        seconds = time.perf_counter() - began
    memory = " ".join(f"{peak[name] / 1e6:7.1f} MB" for name in ("RssAnon", "RssFile"))
    print(f"{frames:>8} {memory} {frames / seconds:9.1f} {seconds:8.1f}", flush=True)


def _repeated(labels: np.ndarray, frames: int, path: Path) -> np.ndarray:
    """``labels`` repeated in a file of ``frames`` rows, opened as a read-only memory map."""
    rows = np.lib.format.open_memmap(path, "w+", labels.dtype, (frames, *labels.shape[1:]))
    for start in range(0, frames, len(labels)):
        rows[start : start + len(labels)] = labels[: frames - start]
    del rows
    return np.asarray(np.load(path, mmap_mode="r"))


def _held(name: str) -> int:
    """Bytes of this process's memory of one kind, see proc(5)."""
    with Path("/proc/self/status").open(encoding="ascii") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
