"""The cache: when it is used, when it is made anew, and that nothing half-written stays."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cvaecli.data import cache, images
from cvaecli.data.cache import Rows
from cvaecli.data.clip import Clip, VideoData
from cvaecli.data.loading import load
from cvaecli.errors import CvaeError, DataError

MakeSet = Callable[..., Path]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("CVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clips"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are decoded from now on."""
    seen: list[str] = []
    real = images.decode_into

    def spy(path: Path, out: np.ndarray) -> tuple[int, int]:
        seen.append(path.name)
        return real(path, out)

    monkeypatch.setattr(images, "decode_into", spy)
    return seen


def opened(root: Path | None, **more: object) -> VideoData:
    return load(root, **{"height": 10, "width": 12, **more})  # type: ignore[arg-type]


def same(a: VideoData, b: VideoData) -> bool:
    pairs = [
        (x, y) for split in a.splits for x, y in zip(a.splits[split], b.splits[split], strict=True)
    ]  # fmt: skip
    return a.splits.keys() == b.splits.keys() and all(
        x.name == y.name and np.array_equal(x.frames, y.frames) and np.array_equal(x.condition, y.condition)
        for x, y in pairs
    )


def test_second_start_reads_no_picture(dance_set: MakeSet, decoded: list[str]) -> None:
    root = dance_set(test=1)
    progress: list[tuple[int, int]] = []
    first = opened(root, progress=lambda done, total: progress.append((done, total)))
    assert progress == [(done, 31) for done in range(1, 32)]
    assert len(decoded) == 31
    second = opened(
        root, min_frames=2, need=("val",), progress=lambda done, total: pytest.fail("decodes again")
    )
    assert len(decoded) == 31
    assert same(first, second)
    assert first.fingerprint == second.fingerprint


def test_clips_are_read_only_maps_of_the_file(dance_set: MakeSet, home: Path) -> None:
    clip = opened(dance_set()).splits["train"][0]
    base: object = clip.frames
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        clip.frames[0] = 0


@pytest.mark.parametrize("change", ["content", "time", "new", "table", "height", "cuts", "moved"])
def test_another_source_makes_a_new_entry(dance_set: MakeSet, decoded: list[str], change: str) -> None:
    root = dance_set()
    opened(root)
    more: dict[str, object] = (
        {"height": 20} if change == "height" else {"cuts": "none"} if change == "cuts" else {}
    )
    if change == "content":
        shutil.copy(root / "train/train_img/4.png", root / "train/train_img/3.png")
    elif change == "time":
        os.utime(root / "train/train_label/3.png", (1, 1))
    elif change == "new":
        for part in ("img", "label"):
            shutil.copy(root / f"train/train_{part}/0.png", root / f"train/train_{part}/8.png")
    elif change == "table":
        (root / "clips.csv").write_text("split,first,last\ntrain,0,7\n")
    elif change == "moved":
        root = root.rename(root.with_name("elsewhere"))
    before = len(decoded)
    opened(root, **more)
    assert len(decoded) > before


def test_fingerprint_is_of_the_content(dance_set: MakeSet) -> None:
    one, two = dance_set("one"), dance_set("two")
    os.utime(two / "train/train_img/0.png", (1, 1))
    assert opened(one).fingerprint == opened(two).fingerprint
    shutil.copy(two / "train/train_img/4.png", two / "train/train_img/3.png")
    assert opened(one).fingerprint != opened(two).fingerprint
    assert opened(one).fingerprint != opened(one, height=20).fingerprint
    (one / "clips.csv").write_text("split,first,last\ntrain,0,3\ntrain,4,7\n")
    assert opened(one).fingerprint != opened(dance_set("three")).fingerprint


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def other_shape(path: Path) -> None:
    np.save(path, np.zeros((3, 3), np.uint8))


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-frames.npy", cut_short),
        ("train-frames.npy", Path.unlink),
        ("val-labels.npy", other_shape),
        ("val-labels.npy", pickled),
        ("val-labels.npy", lambda path: path.write_bytes(b"")),
        ("meta.json", cut_short),
        ("meta.json", Path.unlink),
        ("meta.json", lambda path: path.write_text("[]")),
        ("meta.json", lambda path: path.write_text(json.dumps({"format": -1}))),
        ("meta.json", lambda path: path.write_text(path.read_text().replace("0, 8", "0, 999"))),
    ],
)
def test_a_damaged_entry_is_made_again(
    dance_set: MakeSet, home: Path, decoded: list[str], name: str, damage: Callable[[Path], object]
) -> None:
    root = dance_set()
    first = opened(root)
    good = {
        split: [(clip.frames.copy(), clip.condition.copy()) for clip in first.splits[split]]
        for split in first.splits
    }
    (entry,) = home.iterdir()
    del first
    damage(entry / name)
    before = len(decoded)
    again = opened(root)
    assert len(decoded) == 2 * before
    for split, pairs in good.items():
        for (frames, condition), clip in zip(pairs, again.splits[split], strict=True):
            np.testing.assert_array_equal(frames, clip.frames)
            np.testing.assert_array_equal(condition, clip.condition)
    assert len(list(home.iterdir())) == 1


def test_faults_leave_nothing_behind(dance_set: MakeSet, home: Path) -> None:
    root = dance_set()
    cut_short(root / "val/val_img/1.png")
    with pytest.raises(DataError):
        opened(root)
    assert list(home.iterdir()) == []


def test_an_interrupted_conversion_leaves_nothing_behind(dance_set: MakeSet, home: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(dance_set(), progress=stop)
    assert list(home.iterdir()) == []


def _open_in_process(root: Path) -> str:
    return opened(root).fingerprint


def test_processes_at_once_agree(dance_set: MakeSet, home: Path) -> None:
    root = dance_set()
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        prints = pool.map(_open_in_process, [root] * 6, chunksize=1)
    assert len(set(prints)) == 1
    assert len(list(home.iterdir())) == 1


def small(value: int) -> VideoData:
    frames = np.full((4, 3, 2, 2), value, np.uint8)
    return VideoData({"train": [Clip("train/0", frames, frames)]}, "test", "")


def test_of_two_writers_the_first_wins(home: Path) -> None:
    key = cache.make_key("race")
    with cache.writer(key, 0) as late:
        late.array("a", (1, 3, 2, 2))[:] = 7
        late.clip("train", "late", Rows("a", 0, 1), Rows("a", 0, 1))
        first = cache.store(key, small(1).splits, "first")
    data = cache.reopen(key)
    assert data.source == "first"
    assert same(data, first)
    assert [path.name for path in home.iterdir()] == [key]


def test_clips_of_any_length_and_float_conditions() -> None:
    rng = np.random.default_rng(0)
    splits = {
        split: [
            Clip(
                f"{split}/{n}",
                rng.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8),
                rng.normal(size=(n + 2, 7)).astype(np.float32),
            )
            for n in (5, 1, 9)
        ]
        for split in ("train", "validate")
    }
    stored = cache.store(cache.make_key("vectors"), splits, "made up")
    assert same(stored, VideoData(splits, "", ""))
    assert stored.splits["train"][0].condition.dtype == np.float32
    assert stored.source == "made up"
    assert cache.load(cache.make_key("other")) is None


def test_rows_of_one_array_serve_many_clips() -> None:
    key = cache.make_key("rows")
    with cache.writer(key, 0) as entry:
        entry.array("frames", (30, 3, 2, 2))[:] = np.arange(30).reshape(30, 1, 1, 1)
        entry.array("actions", (30, 4), "float32")[:] = np.arange(30)[:, None]
        for start in (0, 10, 20):
            rows = (Rows("frames", start, start + 10), Rows("actions", start, start + 10))
            entry.clip("train", f"train/{start}", *rows)
        entry.warnings.append("odd")
    data = cache.reopen(key)
    assert data.warnings == ["odd"]
    clips = data.splits["train"]
    assert [int(clip.frames[0, 0, 0, 0]) for clip in clips] == [0, 10, 20]
    assert [float(clip.condition[9, 3]) for clip in clips] == [9, 19, 29]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CVAE_CACHE", str(tmp_path / "file"))
    with pytest.raises(CvaeError, match="CVAE_CACHE"):
        cache.store(cache.make_key("x"), small(1).splits, "")


def test_a_disk_that_is_too_small() -> None:
    with pytest.raises(CvaeError, match="MB are free"), cache.writer(cache.make_key("x"), 10**18):
        pytest.fail("starts to write")


def test_old_entries_go_and_foreign_files_stay(home: Path) -> None:
    old, used = cache.make_key("old"), cache.make_key("used")
    for key in (old, used):
        cache.store(key, small(1).splits, "")
    left, foreign = home / "tmp-0123abcd-xyz", home / "photos"
    left.mkdir()
    foreign.mkdir()
    (foreign / "meta.json").write_text("{}")
    long_ago = time.time() - 90 * 86400
    for path in (home / old / "meta.json", home / used / "meta.json", left, foreign / "meta.json", foreign):
        os.utime(path, (long_ago, long_ago))
    assert cache.load(used) is not None  # opening counts as use
    cache.store(cache.make_key("new"), small(1).splits, "")
    assert {path.name for path in home.iterdir()} == {used, cache.make_key("new"), "photos"}


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A quick stand-in for the generator of the built-in set; lists the seeds it was called with."""
    from cvaecli.synthetic import dancer as synthetic

    seeds: list[int] = []

    def generate(height: int, width: int, *, seed: int) -> dict[str, list[Clip]]:
        seeds.append(seed)
        frames = np.full((4, 3, height, width), seed, np.uint8)
        return {split: [Clip(f"{split}/0", frames, frames)] for split in ("train", "val", "test")}

    monkeypatch.setattr(synthetic, "generate", generate)
    yield seeds


def test_the_built_in_set_is_made_once(generated: list[int]) -> None:
    first, second = opened(None, seed=3), opened(None, seed=3)
    assert same(first, second)
    assert "synthetic" in first.source
    opened(None, seed=4)
    opened(None, seed=3, height=20)
    assert generated == [3, 4, 3]
