"""Predictions of any length need the same memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, make_config

from cvaecli import media
from cvaecli.api.prediction import Video, predicted
from cvaecli.data.clip import Clip
from cvaecli.media.background import Consumer
from cvaecli.models.reference import ReferenceConfig, ReferenceCVAE

SIZE = 16
CONFIG = make_config(data={"height": SIZE, "width": SIZE}, eval={"chunk": 64})


@pytest.fixture(scope="module")
def model() -> ReferenceCVAE:
    torch.manual_seed(0)
    sizes = ReferenceConfig(widths=[16, 16], encoder_blocks=[0, 1], decoder_blocks=[0], z_dim=1)
    return ReferenceCVAE(sizes, (3, SIZE, SIZE)).eval()


def long_clip(frames: int, folder: Path, name: str = "long") -> Clip:
    """Labels in a memory map, as in the cache."""
    path = folder / f"{name}-{frames}.npy"
    rows = np.lib.format.open_memmap(path, "w+", np.uint8, (frames, 3, SIZE, SIZE))
    for start in range(0, frames, 1000):
        stop = min(start + 1000, frames)
        rows[start:stop] = np.arange(start, stop).reshape(-1, 1, 1, 1) % 251
    del rows
    first = np.random.default_rng(0).integers(0, 256, (1, 3, SIZE, SIZE), np.uint8)
    return Clip(name, first, np.asarray(np.load(path, mmap_mode="r")))


def own_memory() -> int:
    """Bytes of this process that are in no file: pages of memory maps can be given back, these cannot."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        pytest.skip("memory is measured in /proc, which only Linux has")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_memory_does_not_grow_with_length(model: ReferenceCVAE, tmp_path: Path) -> None:
    def peak(frames: int) -> int:
        clip, most = long_clip(frames, tmp_path), 0
        with Consumer(lambda each: media.write(each, tmp_path / f"{frames}.npz")) as writer:
            for piece in predicted(model, [Video(clip, frames)], CONFIG, CPU):
                writer.put(piece[0])
                most = max(most, own_memory())
        return most

    peak(1000)  # imports, buffers, the allocator's first pages
    short, long = peak(2000), peak(15_000)
    assert np.load(tmp_path / "15000.npz")["frames"].shape == (15_000, SIZE, SIZE, 3)
    # 13,000 frames are 10 MB as bytes, and so are their labels; the allocator's noise is 1 to 5 MB.
    assert long < short + 7_500_000


def test_pieces_are_the_given_frames_and_then_chunks(model: ReferenceCVAE, tmp_path: Path) -> None:
    clip = long_clip(150, tmp_path)
    pieces = list(predicted(model, [Video(clip, 150), Video(clip, 150, 1)], CONFIG, CPU))
    assert [piece.shape for piece in pieces] == [(2, k, SIZE, SIZE, 3) for k in (1, 64, 64, 21)]
    assert all(piece.dtype == np.uint8 for piece in pieces)
    np.testing.assert_array_equal(pieces[0][1, 0], np.moveaxis(clip.frames[0], 0, -1))


def test_conditions_are_read_when_they_are_needed(model: ReferenceCVAE, tmp_path: Path) -> None:
    class Watched:
        """A condition array that tells which rows were asked for."""

        def __init__(self, rows: np.ndarray) -> None:
            self.rows, self.asked, self.shape = rows, 0, rows.shape

        def __getitem__(self, key: slice) -> np.ndarray:
            self.asked = max(self.asked, key.stop)
            return np.asarray(self.rows[key])

    clip = long_clip(1000, tmp_path)
    watched = Watched(clip.condition)
    pieces = predicted(model, [Video(Clip("w", clip.frames, watched), 1000)], CONFIG, CPU)  # type: ignore[arg-type]
    next(pieces)
    for k in range(1, 4):
        next(pieces)
        assert watched.asked == 1 + 64 * k
