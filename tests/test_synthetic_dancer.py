"""The built-in dancer set: repeatable, smooth, hard to predict by repeating a frame, correctly written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvaecli.data.clip import Clip
from cvaecli.errors import UserError
from cvaecli.synthetic import dancer as synthetic


@pytest.fixture(scope="module")
def full() -> dict[str, list[Clip]]:
    return synthetic.generate()


def psnr(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """PSNR in dB of each frame; equal frames count as differing by 8-bit rounding alone (58.9 dB)."""
    difference = (frames.astype(np.float64) - other) / 255
    mse = (difference**2).reshape(len(frames), -1).mean(1)
    return -10 * np.log10(np.maximum(mse, (1 / 255) ** 2 / 12))


def is_blank(clip: Clip) -> np.ndarray:
    return (clip.condition == 255).reshape(clip.n_steps, -1).all(1)


def clips(splits: dict[str, list[Clip]]) -> list[Clip]:
    return [clip for split in splits.values() for clip in split]


def test_shapes_names_and_types(full: dict[str, list[Clip]]) -> None:
    assert {split: [clip.name for clip in found] for split, found in full.items()} == {
        "train": ["train/0", "train/1", "train/2"],
        "val": ["val/0"],
        "test": ["test/0", "test/1"],
    }
    for clip in clips(full):
        for images in (clip.frames, clip.condition):
            assert images.shape == (630, 3, 32, 64)
            assert images.dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 20), (30, 101)])
def test_any_size(height: int, width: int) -> None:
    splits = synthetic.generate(height, width, frames=2, train=1, test=1)
    for clip in clips(splits):
        assert clip.frames.shape == clip.condition.shape == (2, 3, height, width)
        assert not is_blank(clip).any()


def test_equal_seeds_give_equal_bytes_and_others_do_not() -> None:
    def draw(seed: int) -> list[bytes]:
        splits = synthetic.generate(16, 32, seed=seed, frames=20, train=2, test=1)
        return [clip.frames.tobytes() + clip.condition.tobytes() for clip in clips(splits)]

    first, again, other = draw(3), draw(3), draw(4)
    assert first == again
    assert len({*first, *other}) == 8  # no clip equals another, in one seed or across


DIGESTS = {
    (32, 64): ({"frames": 310}, "8d0efcd93cc50faa"),
    (48, 40): ({"frames": 12, "seed": 3}, "235cc47885827927"),
}
"""Of every clip's bytes: results of earlier versions are comparable only while no pixel changes."""


@pytest.mark.parametrize("size", DIGESTS)
def test_no_pixel_changes(size: tuple[int, int]) -> None:
    settings, digest = DIGESTS[size]
    total = hashlib.sha256()
    for clip in clips(synthetic.generate(*size, train=1, test=1, **settings)):
        for part in (clip.name.encode(), clip.frames.tobytes(), clip.condition.tobytes()):
            total.update(part)
    assert total.hexdigest()[:16] == digest


def test_motion_is_smooth_and_wide(full: dict[str, list[Clip]]) -> None:
    for clip in clips(full):
        frames = clip.frames
        steps = psnr(frames[1:], frames[:-1])
        assert 31 < steps.mean() < 37, clip.name
        assert steps.min() > 28, f"{clip.name} jumps at {steps.argmin() + 1}"
        assert 14 < psnr(frames[1:], frames[:1]).mean() < 18, clip.name
        assert psnr(frames, frames.mean(0)).mean() < 22, clip.name


def test_the_first_frame_shows_the_figure(full: dict[str, list[Clip]]) -> None:
    for clip in clips(full):
        rows, columns = np.nonzero((clip.condition[0] != 255).any(0))
        assert np.ptp(rows) > 20, clip.name
        assert 16 < columns.mean() < 48, clip.name


def test_the_figure_leaves_and_comes_back(full: dict[str, list[Clip]]) -> None:
    for clip in clips(full):
        out = np.flatnonzero(is_blank(clip))
        assert out.min() > 0 and out.max() < 629, clip.name


def test_furniture_hides_the_figure_but_not_its_skeleton(full: dict[str, list[Clip]]) -> None:
    frames = np.concatenate([clip.frames for clip in full["train"]])
    labels = np.concatenate([clip.condition for clip in full["train"]])
    still = frames.min(0) == frames.max(0)
    hidden = still.all(0) & (labels != 255).any((0, 1))
    assert hidden.sum() > 40  # pixels that never change although sticks cross them


def test_written_folder_holds_every_frame(tmp_path: Path) -> None:
    root = tmp_path / "a" / "set"
    splits = synthetic.generate(16, 32, seed=1, frames=6, train=2, test=2)
    synthetic.write(root, 16, 32, seed=1, frames=6, train=2, test=2)

    def read(folder: str) -> np.ndarray:
        files = sorted((root / folder).iterdir(), key=lambda file: int(file.stem))
        assert [file.name for file in files] == [f"{n}.png" for n in range(len(files))]
        return np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])

    for split in ("train", "val"):
        frames = np.concatenate([clip.frames for clip in splits[split]])
        labels = np.concatenate([clip.condition for clip in splits[split]])
        np.testing.assert_array_equal(read(f"{split}/{split}_img"), frames)
        np.testing.assert_array_equal(read(f"{split}/{split}_label"), labels)
    for number, clip in enumerate(splits["test"]):
        np.testing.assert_array_equal(read(f"test/test_img/{number}"), clip.frames[:1])
        np.testing.assert_array_equal(read(f"test/test_label/{number}"), clip.condition)
        np.testing.assert_array_equal(read(f"test_ground_truth/{number}"), clip.frames)
    assert (root / "clips.csv").read_text() == "split,first,last\ntrain,0,5\ntrain,6,11\nval,0,5\n"
    assert [path.name for path in root.parent.iterdir()] == ["set"]  # no draft is left behind


def test_write_takes_an_empty_folder_and_no_other(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        synthetic.write(root, 16, 16, frames=2, train=1, test=1)

    root = tmp_path / "set"
    root.mkdir()
    write(root)
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match="not an empty folder"):
        write(root)
    assert sorted(root.rglob("*")) == before
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        write(file)


@pytest.mark.parametrize(
    "wrong", [{"height": 15}, {"width": 8}, {"frames": 1}, {"train": 0}, {"val": 0}, {"test": 0}]
)
def test_arguments_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError):
        synthetic.generate(**wrong)
