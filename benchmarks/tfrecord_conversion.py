"""Speed and memory of converting BAIR's TFRecords into the cache.

    python benchmarks/tfrecord_conversion.py             # a generated set of 1 GB
    python benchmarks/tfrecord_conversion.py --gb 4 --cameras 1

Writes records in BAIR's layout (30 frames of 64x64 per trajectory, two cameras, 256 trajectories per file)
with random pictures into a temporary folder, converts them into a separate cache, and prints seconds, MB/s of
records and the peak of RssAnon: the process's own memory, without pages of mapped files, which the system can
reclaim. Linux only (/proc). Needs three times the set's size on the disk.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from cvaecli.data.loading import load
from cvaecli.data.robot import tfrecord

FRAMES, SIDE, PER_FILE = 30, 64, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="size of the set in 10^9 bytes")
    parser.add_argument("--cameras", type=int, choices=(1, 2), default=2, help="BAIR has two, one is read")
    parser.add_argument("--folder", type=Path, help="where to work; the system's temporary folder if unset")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        os.environ["CVAE_CACHE"] = f"{work}/cache"
        root = Path(work) / "softmotion30_44k"
        began = time.perf_counter()
        count, size = write_set(root, int(options.gb * 1e9), options.cameras)
        print(f"wrote {count} trajectories, {size / 1e6:.0f} MB, in {time.perf_counter() - began:.1f} s")
        with Peak() as peak:
            began = time.perf_counter()
            data = load(root, kind="robot", height=SIDE, width=SIDE)
            seconds = time.perf_counter() - began
        print("\n".join(data.summary))
        print(f"converted in {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s of records")
        print(f"RssAnon: {peak.before / 1e6:.0f} MB before, {peak.most / 1e6:.0f} MB at most")
        began = time.perf_counter()
        load(root, kind="robot", height=SIDE, width=SIDE)
        print(f"opened again in {time.perf_counter() - began:.2f} s")


def write_set(root: Path, nbytes: int, cameras: int) -> tuple[int, int]:
    """Write files of records, in total ``nbytes`` or up to one record more; returns the numbers of
    trajectories and bytes."""
    (root / "train").mkdir(parents=True)
    rng = np.random.default_rng(0)
    count = size = 0
    while size < nbytes:
        path = root / "train" / f"traj_{count}_to_{count + PER_FILE - 1}.tfrecords"
        with path.open("wb") as file:
            for _ in range(PER_FILE):
                file.write(tfrecord.frame(_example(rng, cameras)))
                count += 1
                if file.tell() + size >= nbytes:
                    break
        size += path.stat().st_size
    return count, size


def _example(rng: np.random.Generator, cameras: int) -> bytes:
    features: dict[str, bytes | np.ndarray] = {}
    for t in range(FRAMES):
        features[f"{t}/action"] = rng.normal(size=4).astype(np.float32)
        features[f"{t}/endeffector_pos"] = rng.normal(size=3).astype(np.float32)
        for name in ("image_aux1", "image_main")[:cameras]:
            features[f"{t}/{name}/encoded"] = rng.bytes(3 * SIDE * SIDE)
    return tfrecord.build_example(features)


class Peak:
    """The peak of ``RssAnon`` while the block runs, sampled 50 times per second."""

    def __enter__(self) -> Peak:
        self.before = self.most = _rss_anon()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, _rss_anon())


def _rss_anon() -> int:
    with Path("/proc/self/status").open(encoding="ascii") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
