"""Every fault of a data set is reported at once: the file, what is wrong, what to do."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cvaecli.data.loading import check, load
from cvaecli.data.report import Report
from cvaecli.errors import DataError

MakeSet = Callable[..., Path]


def flip_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"IDAT") + 12] ^= 4
    path.write_bytes(bytes(raw))


def cut(path: Path, keep: float) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


def bomb(path: Path) -> None:
    """A PNG of a few bytes that claims 50,000 x 50,000 pixels."""
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def animate(path: Path) -> None:
    shots = [Image.new("RGB", (12, 10), colour) for colour in ("red", "green", "blue")]
    shots[0].save(path, save_all=True, append_images=shots[1:])


BAD_PICTURES: list[tuple[str, Callable[[Path], object]]] = [
    ("the file is empty (0 bytes)", lambda path: path.write_bytes(b"")),
    ("ends early (truncated PNG)", lambda path: cut(path, 0.6)),
    ("ends early (truncated PNG)", lambda path: os.truncate(path, 30)),
    ("ends early (truncated PNG)", lambda path: os.truncate(path, path.stat().st_size - 5)),
    ("not a PNG or JPEG picture but text", lambda path: path.write_text("a b c, not a picture\n")),
    ("but of another format", lambda path: Image.new("RGB", (12, 10)).save(path, "GIF")),
    ("not a PNG or JPEG picture", lambda path: path.write_bytes(bytes(range(256)))),
    ("a PNG checksum does not match", flip_bit),
    ("too large", bomb),
    ("animated", animate),
]


@pytest.mark.parametrize(("says", "damage"), BAD_PICTURES)
@pytest.mark.parametrize("name", ["train/train_img/4.png", "val/val_label/2.png"])
def test_bad_pictures(dance_set: MakeSet, says: str, damage: Callable[[Path], object], name: str) -> None:
    root = dance_set()
    damage(root / name)
    report = check(root)
    assert not report.ok
    assert len(report.faults) == 1
    assert report.faults[0].startswith(f"{name}: ")
    assert says in report.faults[0]


@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_truncated_jpeg(dance_set: MakeSet, keep: float) -> None:
    root = dance_set(form="{}.jpg")
    cut(root / "train/train_img/4.jpg", keep)
    assert [line.split(":")[0] for line in check(root).faults] == ["train/train_img/4.jpg"]


def test_every_fault_at_once(dance_set: MakeSet) -> None:
    root = dance_set(test=2)
    (root / "train/train_img/0.png").write_bytes(b"")
    cut(root / "train/train_img/4.png", 0.5)
    cut(root / "test/test_label/1/3.png", 0.5)
    (root / "val/val_label/2.png").unlink()
    (root / "test/test_label/0/2.png").unlink()
    (root / "clips.csv").write_text("split,first,last\ntrain,9,4\n")
    with pytest.raises(DataError) as caught:
        load(root, height=10, width=12)
    named = sorted(line.split(":")[0] for line in caught.value.faults)
    expected = ["clips.csv row 2", "test/test_label/0", "test/test_label/1/3.png"]
    assert named == [*expected, "train/train_img/0.png", "train/train_img/4.png", "val/val_img/2.png"]
    assert caught.value.message.count("\n") == 0
    assert "6 faults" in caught.value.message
    assert check(root).faults == caught.value.faults


def test_many_faults_are_counted(dance_set: MakeSet) -> None:
    root = dance_set(train=60)
    for number in range(50):
        (root / f"train/train_img/{number}.png").write_bytes(b"")
    faults = check(root).faults
    assert len(faults) == 21
    assert "30 more" in faults[-1]


def test_a_good_set(dance_set: MakeSet) -> None:
    report = check(dance_set(test=1))
    assert report == Report(
        summary=[
            "train: 8 frames in 1 clip (0-7), 12x10",
            "val: 4 frames in 1 clip (0-3), 12x10",
            "test/0: 1 true frame, 6 labels, 12x10",
        ],
        warnings=report.warnings,
    )
    assert all("stretched" in line for line in report.warnings)


def test_check_reads_again_what_is_cached(dance_set: MakeSet) -> None:
    root = dance_set()
    path = root / "train/train_img/4.png"
    load(root, height=32, width=64)
    times = path.stat()
    flip_bit(path)  # same size and time: only reading it shows the damage
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not check(root).ok


# -- pairs, names, folders --


@pytest.mark.parametrize("part", ["img", "label"])
def test_lone_frame_or_label(dance_set: MakeSet, part: str) -> None:
    root = dance_set()
    (root / f"train/train_{part}/5.png").unlink()
    (fault,) = check(root).faults
    other = {"img": "label", "label": "img"}[part]
    assert fault.startswith(f"train/train_{other}/5.png: no ")
    assert f"train/train_{part}/5.png" in fault


def test_shifted_numbers(dance_set: MakeSet) -> None:
    root = dance_set(val=3)
    for number in (2, 1, 0):
        (root / f"val/val_label/{number}.png").rename(root / f"val/val_label/{number + 1}.png")
    assert check(root).faults == ["val: frames are numbered 0-2, labels 1-3; give both the same numbers"]


def test_two_files_for_one_frame(dance_set: MakeSet) -> None:
    root = dance_set()
    (root / "train/train_img/03.png").write_bytes((root / "train/train_img/3.png").read_bytes())
    (fault,) = check(root).faults
    assert "is frame 3 as well" in fault


def test_other_files_are_ignored_with_a_warning(dance_set: MakeSet) -> None:
    root = dance_set()
    (root / "train/train_img/cover.png").write_text("x")
    (root / "train/train_img/Thumbs.db").write_text("x")
    (root / "train/train_img/.DS_Store").write_text("x")
    (root / "train/train_img/more").mkdir()
    report = check(root, height=10, width=12)
    assert report.ok
    assert sorted(line.split(":")[0].rpartition("/")[2] for line in report.warnings) == [
        "Thumbs.db",
        "cover.png",
        "more",
    ]


def test_a_folder_named_as_a_frame(dance_set: MakeSet) -> None:
    root = dance_set()
    (root / "train/train_img/8.png").mkdir()
    assert check(root).faults == ["train/train_img/8.png: not a file; remove it"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_named_as_a_frame_does_not_block(dance_set: MakeSet) -> None:
    root = dance_set()
    os.mkfifo(root / "train/train_img/8.png")
    assert check(root).faults == ["train/train_img/8.png: not a file; remove it"]


def test_links_may_not_leave_the_root(dance_set: MakeSet, tmp_path: Path) -> None:
    root, other = dance_set(), dance_set("other")
    for name, target in (
        ("train/train_img/3.png", other / "train/train_img/3.png"),
        ("train/train_label/4.png", Path("nowhere.png")),
        ("train/train_label/6.png", Path("../train_label/5.png")),  # inside: fine
    ):
        (root / name).unlink()
        (root / name).symlink_to(target)
    (root / "clips.csv").symlink_to(tmp_path / "clips.csv")
    (root / "test").symlink_to(other)
    named = sorted(line.split(":")[0] for line in check(root).faults)
    assert named == ["clips.csv", "test", "train/train_img/3.png", "train/train_label/4.png"]


def test_a_root_that_is_a_link_is_fine(dance_set: MakeSet, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(dance_set())
    assert check(tmp_path / "link").ok


def test_roots(dance_set: MakeSet, tmp_path: Path) -> None:
    good = dance_set()
    empty = tmp_path / "empty"
    empty.mkdir()
    upper = dance_set("upper")
    (upper / "train").rename(upper / "Train")
    (upper / "val").rename(upper / "Val")
    outer = tmp_path / "outer"
    outer.mkdir()
    good.rename(outer / "inner")
    for root, says in (
        (tmp_path / "nowhere", "the folder does not exist"),
        (upper / "Train/train_img/0.png", "this is a file"),
        (empty, "no train, val or test folder"),
        (outer, f"did you mean {outer / 'inner'}?"),
        (outer / "inner/train", f"did you mean its parent, {outer / 'inner'}?"),
        (upper, "rename Train, Val to lower case"),
    ):
        (fault,) = check(root).faults
        assert says in fault
        with pytest.raises(DataError):
            load(root, height=10, width=12)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_permissions(dance_set: MakeSet) -> None:
    root = dance_set(test=1)
    closed = [root / "train/train_img/3.png", root / "val", root / "test/test_label"]
    for path in closed:
        path.chmod(0)
    faults = sorted(check(root).faults)
    root.chmod(0)
    (alone,) = check(root).faults
    root.chmod(0o700)
    for path in closed:
        path.chmod(0o700)
    assert [line.split(":")[0] for line in faults] == ["test/test_label", "train/train_img/3.png", "val"]
    assert all("check its permissions" in line for line in faults)
    assert "cannot be opened" in alone


@pytest.mark.parametrize("missing", ["val", "val/val_label", "train"])
def test_missing_folders(dance_set: MakeSet, missing: str) -> None:
    root = dance_set()
    (root / missing).rename(root.parent / "away")
    (fault,) = check(root).faults
    assert fault.startswith(f"{missing}: the ")
    assert "does not exist" in fault


def test_without_val_it_can_still_be_loaded_for_training_alone(dance_set: MakeSet) -> None:
    assert list(load(dance_set(val=0), height=10, width=12, need=("train",)).splits) == ["train"]


def test_too_short(dance_set: MakeSet) -> None:
    root = dance_set(train=2)
    assert "train: the longest clip has 2 frames, at least 3 are needed; add frames" in check(root).faults
    assert check(root, min_frames=2).ok
    with pytest.raises(DataError, match="at least 9"):
        load(dance_set("longer"), height=10, width=12, min_frames={"train": 9, "val": 2})


def test_exchanged_folders_are_suspected(dance_set: MakeSet) -> None:
    root = dance_set()
    (root / "train/train_img").rename(root / "x")
    (root / "train/train_label").rename(root / "train/train_img")
    (root / "x").rename(root / "train/train_label")
    suspicions = [line for line in check(root).warnings if "exchanged" in line]
    assert [line.split(":")[0] for line in suspicions] == ["train"]


# -- test sequences --


@pytest.mark.parametrize(
    ("remove", "says"),
    [
        ("test/test_img/1/0.png", "test/test_img/1: no first frame"),
        ("test/test_label/1", "test/test_label/1: missing, but test/test_img/1 exists"),
        ("test/test_img/1", "test/test_img/1: missing, but test/test_label/1 exists"),
        ("test/test_label/0/3.png", "test/test_label/0: no label between 2 and 4"),
        ("test/test_label/0/0.png", "test/test_img/0: the given frames are 0, but the labels are 1-5"),
        ("test/test_label", "test/test_label: the folder does not exist"),
    ],
)
def test_sequences(dance_set: MakeSet, remove: str, says: str) -> None:
    root = dance_set(train=0, val=0, test=2)
    (root / remove).rename(root.parent / "away")
    (fault,) = check(root).faults
    assert fault.startswith(says)


def test_truth_with_a_hole(dance_set: MakeSet) -> None:
    root = dance_set(test=1)
    truth = root / "test_ground_truth/0"
    truth.mkdir(parents=True)
    for number in (0, 1, 3):
        (truth / f"{number}.png").write_bytes((root / f"train/train_img/{number}.png").read_bytes())
    (fault,) = check(root).faults
    assert fault.startswith("test_ground_truth/0: the true frames are 0-1, 3, but the labels are 0-5")


def test_sequences_alone(dance_set: MakeSet) -> None:
    report = check(dance_set(train=0, val=0, test=1))
    assert report.ok
    assert any("nothing to train on" in line for line in report.warnings)


# -- the shared collection of broken sets --

SHARED_CASES = {
    "lab4/00_good_control": "",
    "lab4/truncated_png": "train/train_img/4.png: the file ends early",
    "lab4/truncated_png_val_label": "val/val_label/2.png: the file ends early",
    "lab4/zero_byte_png": "train/train_img/4.png: the file is empty",
    "lab4/label_missing": "train/train_img/5.png: no label",
    "lab4/numbering_starts_at_1": "",
    "lab4/names_not_numeric": "warned train/train_img/cover.png: ignored",
    "lab4/mixed_sizes": "warned train: frames of different sizes",
    "lab4/img_label_size_differ": "",
    "lab4/txt_as_png": "train/train_img/2.png: not a PNG or JPEG picture but text",
    "lab4/no_val": "val: the val folder does not exist",
    "lab4/too_short": "train: the longest clip has 2 frames",
    "lab4/swapped_folders": "warned train: the frames look like labels",
    "lab4/empty_train_folders": "train/train_img: no frames",
    "lab4/empty_root": "",
    "lab4_test/00_good_control": "warned",
    "lab4_test/first_frame_missing": "test/test_img/1: no first frame",
    "lab4_test/sequence_missing_label": "test/test_label/1: missing",
    "lab4_test/label_gap": "test/test_label/0: no label between 2 and 4",
}


@pytest.mark.shared
@pytest.mark.parametrize("case", SHARED_CASES)
def test_shared_cases(shared: Path, case: str) -> None:
    index = json.loads((shared / "bad/index.json").read_text())
    group, says = case.split("/")[0], SHARED_CASES[case]
    assert {name for name in index if name.split("/")[0] == group} <= SHARED_CASES.keys()
    root, kind = shared / "bad" / case, index[case]["kind"]
    need = ("test",) if group == "lab4_test" else ("train", "val")
    report = check(root, height=66, width=64)
    assert report.ok == (not kind.startswith("broken") or says.startswith("warned"))
    if report.ok:
        data = load(root, height=66, width=64, need=need)
        assert data.frame_size == (66, 64)
        if says:
            assert (
                any(line.startswith(says.removeprefix("warned ")) for line in report.warnings)
                or says == "warned"
            )
        else:
            assert report.warnings == []
    else:
        assert report.faults[0].startswith(says or str(root))
        with pytest.raises(DataError) as caught:
            load(root, height=66, width=64, need=need)
        assert caught.value.faults == report.faults
