"""The dance layout: numbering, sizes, colours, clips and cuts."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvaecli.data import images
from cvaecli.data.clip import VideoData
from cvaecli.data.dance import cuts
from cvaecli.data.loading import check, load
from cvaecli.errors import DataError, UserError

MakeSet = Callable[..., Path]


def read(path: Path) -> np.ndarray:
    """[C, H, W] of a picture, read independently of the project."""
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def opened(root: Path, **more: object) -> VideoData:
    return load(root, **{"height": 10, "width": 12, **more})  # type: ignore[arg-type]


def names(data: VideoData, split: str = "train") -> list[str]:
    return [clip.name for clip in data.splits[split]]


def test_native_size_keeps_every_byte_in_rgb_order(dance_set: MakeSet) -> None:
    root = dance_set(train=12)
    clip = opened(root).splits["train"][0]
    assert clip.frames.shape == clip.condition.shape == (12, 3, 10, 12)
    assert clip.frames.dtype == clip.condition.dtype == np.uint8
    for number in range(12):  # 10 and 11 come after 9, not after 1
        np.testing.assert_array_equal(clip.frames[number], read(root / f"train/train_img/{number}.png"))
        np.testing.assert_array_equal(clip.condition[number], read(root / f"train/train_label/{number}.png"))
    assert clip.condition[0, 0, 5, 2] == 255
    assert clip.condition[0, 2, 5, 2] == 0  # red, not blue


@pytest.mark.parametrize("form", ["{}.png", "{:04d}.png", "frame{:06d}.png", "frame{}.png", "Frame_{}.PNG"])
@pytest.mark.parametrize("start", [0, 1, 95])
def test_names_and_first_number(dance_set: MakeSet, form: str, start: int) -> None:
    root = dance_set(start=start, form=form)
    data = opened(root)
    assert names(data) == [f"train/{start}-{start + 7}"]
    assert not data.warnings
    last = read(root / "train/train_img" / form.format(start + 7))
    np.testing.assert_array_equal(data.splits["train"][0].frames[-1], last)


def test_jpeg_is_read(dance_set: MakeSet) -> None:
    data = opened(dance_set(form="{}.jpg"))
    assert data.splits["train"][0].frames.shape == (8, 3, 10, 12)


def test_reduction_is_antialiased(dance_set: MakeSet) -> None:
    root = dance_set(size=(48, 40), label_size=(48, 40))
    stripes = np.zeros((40, 48, 3), np.uint8)
    stripes[:, ::2] = 200  # every second column: without a filter the result is all 0 or all 200
    Image.fromarray(stripes).save(root / "train/train_img/0.png")
    frame = opened(root, cuts="none").splits["train"][0].frames[0]
    assert abs(frame.astype(float) - 100).max() < 30


def test_sizes_may_differ(dance_set: MakeSet) -> None:
    root = dance_set(label_size=(6, 5))
    Image.open(root / "train/train_img/3.png").resize((24, 20)).save(root / "train/train_img/3.png")
    data = opened(root)
    assert data.splits["train"][0].condition.shape == (8, 3, 10, 12)
    assert any("different sizes (12x10: 7, 24x20: 1)" in line for line in data.warnings)


def test_other_proportions_are_reported(dance_set: MakeSet) -> None:
    assert opened(dance_set(test=1), height=10, width=24).warnings == [
        "train, val, test/0: frames are 12x10 (width x height) and are stretched to 24x10; "
        "set data.width and data.height to the same proportions to avoid that"
    ]


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGBA", "LA", "I;16"])
def test_colour_modes(dance_set: MakeSet, mode: str) -> None:
    root = dance_set()
    path = root / "train/train_img/2.png"
    grey = np.full((10, 12), 128, np.uint8)
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 256 + 99).save(path)
    elif mode == "1":
        Image.fromarray(grey > 0).save(path)
    else:
        Image.fromarray(grey).convert(mode).save(path)
    frame = opened(root).splits["train"][0].frames[2]
    assert (frame == (255 if mode == "1" else 128)).all()


def test_transparent_is_laid_on_white(dance_set: MakeSet) -> None:
    root = dance_set()
    Image.new("RGBA", (12, 10), (10, 20, 30, 0)).save(root / "train/train_label/2.png")
    assert (opened(root).splits["train"][0].condition[2] == 255).all()


def save_turned(picture: Image.Image, path: Path, orientation: int) -> None:
    """Stores the picture as a rotated camera does: other pixels, and how to turn them back in EXIF."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that EXIF's values call for
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.transpose(Image.Transpose(undo[orientation])).save(path, exif=exif, quality=100, subsampling=0)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("form", ["{}.png", "{}.jpg"])
def test_exif_orientation_is_honoured(dance_set: MakeSet, form: str, orientation: int) -> None:
    root = dance_set(form=form)
    for part in ("img", "label"):
        path = root / f"train/train_{part}" / form.format(3)
        upright = Image.open(path).convert("RGB")
        save_turned(upright, path, orientation)
        stored = Image.open(path)
        assert stored.size == ((10, 12) if orientation > 4 else (12, 10)), "the pixels lie otherwise"
        clip = opened(root).splits["train"][0]
        seen = (clip.frames if part == "img" else clip.condition)[3].astype(int)
        expected = np.asarray(upright).transpose(2, 0, 1)
        assert np.abs(seen - expected).mean() < (8 if form == "{}.jpg" else 1e-9)
    assert not any("different sizes" in line for line in opened(root).warnings), "sizes are those seen"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_data_are_no_fault(dance_set: MakeSet) -> None:
    """Whatever the bytes, the picture is one of the eight views; a readable orientation is applied."""
    root = dance_set(form="{}.jpg")
    path = root / "train/train_img/3.jpg"
    upright = images.decode(path)
    views = [np.asarray(upright)] + [np.asarray(upright.transpose(turn)) for turn in Image.Transpose]
    raw = path.read_bytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "hello", 1.5
    good, rng = exif.tobytes(), np.random.default_rng(0)
    for _ in range(300):
        segment = np.frombuffer(good, np.uint8).copy()
        segment[rng.integers(6, len(segment), 3)] = rng.integers(0, 256, 3)
        kept = segment[: rng.integers(6, len(segment) + 1)].tobytes()
        path.write_bytes(raw[:2] + b"\xff\xe1" + (len(kept) + 2).to_bytes(2, "big") + kept + raw[2:])
        seen = np.asarray(images.decode(path))
        assert any(seen.shape == view.shape and (seen == view).all() for view in views)
    odd = good.replace((0x011A).to_bytes(2, "big") + b"\0\5", (0x011A).to_bytes(2, "big") + b"\0\1")
    assert odd != good, "the resolution's type is wrong"
    path.write_bytes(raw[:2] + b"\xff\xe1" + (len(odd) + 2).to_bytes(2, "big") + odd + raw[2:])
    assert (np.asarray(images.decode(path)) == np.asarray(upright.rotate(270, expand=True))).all()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("exif", [b"", b"MM", b"no TIFF header", b"MM\0*\0\0\0\x08\0\x03\x01"])
def test_exif_data_that_cannot_be_read_turn_nothing(dance_set: MakeSet, exif: bytes) -> None:
    path = dance_set() / "train/train_img/3.png"
    before, raw = read(path), path.read_bytes()
    chunk = b"eXIf" + exif
    framed = len(exif).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(raw[:33] + framed + raw[33:])
    np.testing.assert_array_equal(np.asarray(images.decode(path)).transpose(2, 0, 1), before)


def remove(root: Path, split: str, number: int) -> None:
    for part in ("img", "label"):
        (root / split / f"{split}_{part}" / f"{number}.png").unlink()


def test_gap_ends_a_clip(dance_set: MakeSet) -> None:
    root = dance_set(train=12)
    remove(root, "train", 5)
    data = opened(root)
    assert names(data) == ["train/0-4", "train/6-11"]
    assert any("skips from 4 to 6" in line for line in data.warnings)
    assert names(opened(root, cuts="none")) == ["train/0-11"]


def test_every_second_number_is_no_gap(dance_set: MakeSet) -> None:
    root = dance_set(train=12)
    for number in range(1, 12, 2):
        remove(root, "train", number)
    data = opened(root)
    assert names(data) == ["train/0-10"]
    assert data.splits["train"][0].n_frames == 6
    assert not data.warnings


def test_a_gap_between_every_second_number(dance_set: MakeSet) -> None:
    root = dance_set(train=16)
    for number in (1, 3, 5, 6, 7, 9, 11, 13, 15):
        remove(root, "train", number)
    data = opened(root)
    assert names(data) == ["train/0-4", "train/8-14"]
    assert any("skips from 4 to 8" in line for line in data.warnings)
    (root / "clips.csv").write_text("split,first,last\ntrain,8,12\n")
    assert names(opened(root)) == ["train/8-12"]


def test_short_clips_are_left_out(dance_set: MakeSet) -> None:
    root = dance_set(train=12)
    remove(root, "train", 2)
    data = opened(root)
    assert names(data) == ["train/3-11"]
    assert any("train/0-1: left out" in line for line in data.warnings)
    with pytest.raises(DataError, match=r"longest clip has 9 frames, at least 16"):
        opened(root, min_frames={"train": 16, "val": 2})


def test_only_the_first_frames_of_training_clips(dance_set: MakeSet) -> None:
    root = dance_set(train=12, val=6)
    (root / "clips.csv").write_text("split,first,last\ntrain,0,6\ntrain,7,11\n")
    whole, data = opened(root), opened(root, train_frames=6)
    assert [(clip.n_frames, clip.n_steps) for clip in data.splits["train"]] == [(6, 6), (5, 5)]
    assert data.splits["val"][0].n_frames == 6
    for a, b in zip(data.splits["train"], whole.splits["train"], strict=True):
        np.testing.assert_array_equal(a.frames, b.frames[:6])
        np.testing.assert_array_equal(a.condition, b.condition[:6])
    assert data.fingerprint == whole.fingerprint, "the data set is the same"
    with pytest.raises(UserError, match=r"data.train_frames: 4, but training needs 5 frames"):
        opened(root, train_frames=4, min_frames={"train": 5, "val": 2})


# -- clips.csv --


def test_table_wins_over_cuts(dance_set: MakeSet) -> None:
    root = dance_set(train=12)
    (root / "clips.csv").write_text(
        "\ufeffsplit, first, last\r\ntrain,6,11\r\n\r\ntrain,0,3\r\n", encoding="utf-8"
    )
    data = opened(root, cuts="none")
    assert names(data) == ["train/0-3", "train/6-11"]
    assert names(data, "val") == ["val/0-3"]  # not named: as if there were no table
    assert data.warnings == ["clips.csv: train frames 4-5 are in no clip and left out"]
    np.testing.assert_array_equal(data.splits["train"][1].frames[0], read(root / "train/train_img/6.png"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("train,5,2", "first (5) is greater than last (2)"),
        ("test,0,2", "unknown split 'test'"),
        ("Train,0,2", "unknown split 'Train'"),
        ("train,0,99", "train has no frame 99 (it has 0 to 11)"),
        ("train,20,30", "train has no frame 20"),
        ("train,0,6\ntrain,6,11", "row 3: train frame 6 is already in the clip of row 2"),
        ("train,0,x", "must be whole numbers"),
        ("train,-1,3", "must be whole numbers"),
        ("train,0", "2 values instead of 3"),
        ("", "no rows"),
    ],
)
def test_table_faults(dance_set: MakeSet, row: str, says: str) -> None:
    root = dance_set(train=12)
    (root / "clips.csv").write_text(f"split,first,last\n{row}\n")
    with pytest.raises(DataError) as caught:
        opened(root)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith("clips.csv")
    assert says in caught.value.faults[0]


def test_table_without_header_or_text(dance_set: MakeSet) -> None:
    root = dance_set()
    for content, says in (
        (b"train,0,7\n", "header must be"),
        (b"\xff\xfe\x00\x81", "not a text file"),
        (b"", "header"),
    ):
        (root / "clips.csv").write_bytes(content)
        assert says in check(root).faults[0]


def test_table_must_not_span_a_gap(dance_set: MakeSet) -> None:
    root = dance_set(train=12)
    remove(root, "train", 5)
    (root / "clips.csv").write_text("split,first,last\ntrain,0,11\n")
    assert "train has no frame 5 inside 0-11; end the clip at 4" in check(root).faults[0]


# -- cuts found in the pictures --


def scene(seed: int, frames: int, step: float = 1.0) -> np.ndarray:
    """A random scene that shimmers by about ``step`` grey levels a frame, uint8 [T, 3, 8, 16]."""
    rng = np.random.default_rng(seed)
    still = rng.uniform(40, 200, (3, 8, 16))
    return (still + rng.uniform(-1.5 * step, 1.5 * step, (frames, 3, 8, 16))).astype(np.uint8)


def sticks(numbers: list[int]) -> np.ndarray:
    out = np.full((len(numbers), 3, 8, 16), 255, np.uint8)
    for i, number in enumerate(numbers):
        out[i, :, 2:6, number % 16] = 10 * (number // 16 % 20)
    return out


def test_jumps_are_found() -> None:
    frames = np.concatenate([scene(0, 30), scene(1, 25), scene(2, 40)])
    assert cuts.find(frames, sticks(list(range(95)))).jumps == [30, 55]


def test_a_step_of_six_times_the_usual_is_no_cut() -> None:
    frames = scene(0, 40, step=3.0).astype(int)
    usual = np.abs(np.diff(frames, axis=0)).mean()
    frames[20:] += int(6 * usual)  # as when a camera drops frames
    assert cuts.find(frames.astype(np.uint8), sticks(list(range(40)))) == cuts.Cuts([], [])


def test_one_odd_picture_is_no_cut() -> None:
    frames = scene(0, 60)
    frames[30] = 255
    assert cuts.find(frames, sticks(list(range(60)))).jumps == []


def test_movement_after_stillness_is_no_cut() -> None:
    frames = np.repeat(scene(0, 1), 60, axis=0)
    frames[30:, :, :4, :2] += 30  # a small thing moves in a picture without any noise
    assert cuts.find(frames, sticks(list(range(60)))).jumps == []


def test_held_labels_mark_clips() -> None:
    numbers = [1, *range(1, 60), 61, *range(61, 120)]
    assert cuts.find(scene(0, 120), sticks(numbers)) == cuts.Cuts([], [60])


def test_held_labels_mean_nothing_unless_the_folder_begins_so() -> None:
    numbers = [*range(60), 61, *range(61, 90), 91, *range(91, 120)]
    assert cuts.find(scene(0, len(numbers)), sticks(numbers)).held == []


def test_blank_and_standing_labels_are_no_cuts() -> None:
    labels = sticks([1, *range(1, 120)])
    labels[50:52] = 255  # the detector lost the person
    assert cuts.find(scene(0, 120), labels).held == []
    standing = sticks([1, *range(1, 80), *[80] * 40])
    assert cuts.find(scene(0, 120), standing).held == []


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_few_frames_are_never_cut(frames: int) -> None:
    shots = np.concatenate([scene(i, 1) for i in range(frames)])
    assert cuts.find(shots, sticks([0] * frames)) == cuts.Cuts([], [])


def test_found_cuts_are_named_and_can_be_overridden(dance_set: MakeSet) -> None:
    root = dance_set(train=40)
    for number in range(17, 40):
        path = root / f"train/train_img/{number}.png"
        Image.eval(Image.open(path), lambda value: 255 - value).save(path)
    data = opened(root)
    assert names(data) == ["train/0-16", "train/17-39"]
    assert len(data.warnings) == 1
    assert all(
        part in data.warnings[0] for part in ("train: cuts found at 17", "clips.csv", "data.cuts=none")
    )
    assert names(opened(root, cuts="none")) == ["train/0-39"]


def test_unknown_cuts_and_kind(dance_set: MakeSet) -> None:
    root = dance_set()
    with pytest.raises(UserError, match=r"data.cuts: 'some' is not allowed"):
        opened(root, cuts="some")
    with pytest.raises(UserError, match=r"data.kind: 'danse' is not allowed"):
        opened(root, kind="danse")


# -- test sequences --


def test_sequences_hold_given_frames_and_all_conditions(dance_set: MakeSet) -> None:
    data = opened(dance_set(test=11))
    assert names(data, "test") == [f"test/{s}" for s in range(11)]  # 10 after 9
    assert all(clip.n_frames == 1 and clip.n_steps == 6 for clip in data.splits["test"])


@pytest.mark.parametrize("place", ["test_ground_truth/1", "test/test_ground_truth/1"])
def test_ground_truth_continues_the_given_frames(dance_set: MakeSet, place: str) -> None:
    root = dance_set(test=2)
    shutil.copytree(root / "train/train_img", root / place)
    for number in (6, 7):
        (root / place / f"{number}.png").unlink()
    data = opened(root)
    assert [clip.n_frames for clip in data.splits["test"]] == [1, 6]
    np.testing.assert_array_equal(data.splits["test"][1].frames[5], read(root / "train/train_img/5.png"))


def test_test_sequences_alone_can_be_predicted(dance_set: MakeSet) -> None:
    root = dance_set(train=0, val=0, test=1)
    assert list(opened(root, need=("test",)).splits) == ["test"]
    with pytest.raises(DataError) as caught:
        opened(root)
    assert [line.split(":")[0] for line in caught.value.faults] == ["train", "val"]


# -- real data --


@pytest.mark.shared
def test_real_clips(shared: Path, tmp_path: Path) -> None:
    data = load(shared / "data/dance_real", height=32, width=64)
    expected = ["train/0-629", "train/630-1259", "train/1260-1889"]
    assert names(data) == expected
    blank = [line for line in data.warnings if "blank" in line]
    assert data.warnings == blank and blank[0].startswith("train: labels 704-705, 1361, 1368: blank")
    assert [(clip.n_frames, clip.n_steps) for clip in data.splits["test"]] == [(1, 630), (1, 630)]
    np.testing.assert_array_equal(data.splits["test"][0].frames[0], data.splits["val"][0].frames[0])

    shutil.copytree(shared / "data/dance_real", tmp_path / "copy", ignore=shutil.ignore_patterns("clips.csv"))
    found = load(tmp_path / "copy", height=32, width=64)
    assert names(found) == expected
    assert names(found, "val") == ["val/0-629"]
    (line,) = (line for line in found.warnings if line not in blank)
    assert "train: cuts found at 630, 1260" in line
    assert found.fingerprint == data.fingerprint  # the same clips, wherever they lie


@pytest.mark.shared
def test_real_mouse_is_uncut_and_native(shared: Path) -> None:
    root = shared / "data/mirror_mouse"
    data = load(root, height=66, width=64)
    assert data.frame_size == (66, 64)
    assert data.warnings == []
    assert [names(data, split) for split in ("train", "val")] == [["train/0-763"], ["val/0-129"]]
    np.testing.assert_array_equal(data.splits["train"][0].frames[700], read(root / "train/train_img/700.png"))
    assert data.splits["test"][0].n_frames == 100
    np.testing.assert_array_equal(
        data.splits["test"][0].frames[99], read(root / "test_ground_truth/0/99.png")
    )
