"""How long ``cvae data check`` takes for a large data set of pictures.

    python benchmarks/data_check.py --pairs 23410 --width 256 --height 128

Writes numbered frames and labels to a temporary folder, then checks them once with an empty cache. Prints the
wall-clock time, and the processor time, which other programs on the machine do not change.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cvaecli.data.loading import check


def write(root: Path, split: str, pairs: int, height: int, width: int) -> None:
    """A textured block that moves over a textured ground, and a white label with a stick at its place."""
    dice = np.random.default_rng(0)
    ground = dice.integers(0, 60, (height, width, 3), dtype=np.uint8)
    block = dice.integers(120, 255, (height // 2, width // 8, 3), dtype=np.uint8)
    for part in ("img", "label"):
        (root / split / f"{split}_{part}").mkdir(parents=True)
    for number in range(pairs):
        at = (2 * number) % (width - width // 8)
        frame, label = ground.copy(), np.full_like(ground, 255)
        frame[height // 4 : height // 4 + len(block), at : at + block.shape[1]] = block
        label[height // 4 : height // 4 + len(block), at : at + 3] = (255, 80, 0)
        for part, picture in (("img", frame), ("label", label)):
            path = root / split / f"{split}_{part}" / f"{number}.png"
            Image.fromarray(picture).save(path, compress_level=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=23410)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CVAE_CACHE"] = f"{folder}/cache"
        root = Path(folder) / "set"
        val = max(3, given.pairs // 10)
        write(root, "train", given.pairs - val, given.height, given.width)
        write(root, "val", val, given.height, given.width)
        wall, own = time.perf_counter(), time.process_time()
        report = check(root, height=given.height, width=given.width)
        wall, own = time.perf_counter() - wall, time.process_time() - own
    assert report.ok, report.faults
    print(f"{given.pairs} pairs of {given.width}x{given.height}: {wall:.1f} s, {own:.1f} s of processor time")


if __name__ == "__main__":
    main()
