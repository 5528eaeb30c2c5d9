"""The processed robot layout: what drives what, and every fault at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import CPU, cvae
from PIL import Image

from cvaecli.api.loading import load_data
from cvaecli.api.preparation import build_trainer
from cvaecli.config import loading as configs
from cvaecli.data.clip import Clip, first_frames
from cvaecli.data.kinds import KINDS
from cvaecli.data.loading import check, kind_of, load
from cvaecli.data.robot import Robot, condition_stats, shifted_condition
from cvaecli.data.robot.folders import natural
from cvaecli.errors import DataError, UserError
from cvaecli.models.svg.model import SVG
from cvaecli.reporter import Silent

FIRST = "train/traj_0_to_1.tfrecords/0"
Make = Callable[..., Path]


def write_trajectory(folder: Path, seed: int, frames: int, actions: int = 4, positions: int = 3) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for t in range(frames):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{t}.png")
    for name, columns in (("actions", actions), ("endeffector_positions", positions)):
        values = rng.normal(size=(frames, columns)).astype("f4")
        np.savetxt(folder / f"{name}.csv", values, delimiter=",")


@pytest.fixture
def robot_set(tmp_path: Path) -> Make:
    """Writes a small good set: two trajectories in train, one in each other split."""

    def make(name: str = "set", frames: int = 6, **columns: int) -> Path:
        root = tmp_path / name
        for split, count in (("train", 2), ("validate", 1), ("test", 1)):
            for i in range(count):
                group = f"traj_0_to_{count - 1}.tfrecords"
                write_trajectory(root / split / group / str(i), len(split) + i, frames + i, **columns)
        return root

    return make


def read(root: Path) -> dict[str, list[Clip]]:
    data = load(root, kind="robot", height=8, width=8, need=("train", "val", "test"))
    return {split: list(clips) for split, clips in data.splits.items()}


def faults(root: Path) -> list[str]:
    return check(root, kind="robot", height=8, width=8).faults


# -- good sets --


def test_a_condition_is_the_action_and_position_before_its_frame(robot_set: Make) -> None:
    root = robot_set()
    splits = read(root)
    assert {split: [clip.name for clip in clips] for split, clips in splits.items()} == {
        "train": [FIRST, FIRST[:-1] + "1"],
        "val": ["validate/traj_0_to_0.tfrecords/0"],
        "test": ["test/traj_0_to_0.tfrecords/0"],
    }
    for clip in (clip for clips in splits.values() for clip in clips):
        folder = root / clip.name
        assert clip.frames.dtype == np.uint8
        assert clip.condition.dtype == np.float32
        assert clip.condition.shape == (clip.n_frames, 7)
        assert (clip.condition[0] == 0).all()
        actions = np.loadtxt(folder / "actions.csv", delimiter=",", dtype="f4")
        positions = np.loadtxt(folder / "endeffector_positions.csv", delimiter=",", dtype="f4")
        for t in range(clip.n_frames):
            assert (clip.frames[t] == np.asarray(Image.open(folder / f"{t}.png")).transpose(2, 0, 1)).all()
            if t:
                assert clip.condition[t].tolist() == [*actions[t - 1], *positions[t - 1]]
        at = KINDS["robot"].condition_parts
        assert (clip.condition[1:, at["actions"]] == actions[:-1]).all()
        assert (clip.condition[1:, at["positions"]] == positions[:-1]).all()
    assert [clip.n_frames for clip in splits["train"]] == [6, 7]


def test_each_row_drives_the_next_frame() -> None:
    made = shifted_condition(np.array([[1], [2], [3]], "f4"), np.array([[4], [5], [6]], "f4"))
    assert made.tolist() == [[0, 0], [1, 4], [2, 5]]


def test_report(robot_set: Make) -> None:
    report = check(robot_set(), kind="robot", height=8, width=8)
    assert report.ok
    assert report.warnings == []
    assert report.summary[0] == "train: 2 trajectories, 13 frames (6 to 7 each), 8x8"
    assert report.summary[2] == "val: 1 trajectory, 6 frames (6 each), 8x8"
    names = [part.split()[0] for part in report.summary[1].partition("condition: ")[2].split(", ")]
    assert names == ["dx", "dy", "dz", "gripper", "x", "y", "z"]


def test_named_columns_of_any_number(robot_set: Make) -> None:
    root = robot_set(actions=6, positions=2)
    for path in root.rglob("*.csv"):
        names = "a,b,c,d,e,f" if path.name == "actions.csv" else "x,z"
        path.write_text(f"{names}\n{path.read_text()}")
    data = load(root, kind="robot", height=8, width=8)
    assert data.splits["train"][0].condition.shape == (6, 8)
    assert data.condition_parts == {"actions": slice(0, 6), "positions": slice(6, 8)}
    assert load(root, kind="robot", height=8, width=8).condition_parts == data.condition_parts, "cached"
    assert "f " in check(root, kind="robot").summary[1]
    path = root / FIRST[:-1] / "1/actions.csv"
    path.write_text(path.read_text().replace("f\n", "g\n"))
    (fault,) = faults(root)
    assert "a, b, c, d, e, g" in fault
    assert "must be the same" in fault


def test_groups_are_optional_and_val_is_fine(robot_set: Make) -> None:
    root = robot_set()
    (root / "validate").rename(root / "val")
    (root / FIRST).rename(root / "train/7")
    assert [clip.name for clip in read(root)["train"]] == ["train/7", FIRST[:-1] + "1"]
    assert read(root)["val"][0].name.startswith("val/")


def test_order_is_that_of_the_numbers() -> None:
    names = ["traj_256_to_511", "traj_0_to_255", "traj_1024_to_1279", "10", "9", "a"]
    assert sorted(names, key=natural) == [
        "9",
        "10",
        "a",
        "traj_0_to_255",
        "traj_256_to_511",
        "traj_1024_to_1279",
    ]


def test_without_val_some_of_train_is_used(robot_set: Make, tmp_path: Path) -> None:
    root = robot_set()
    (root / "validate").rename(tmp_path / "away")
    data = load(root, kind="robot", height=8, width=8)
    assert [clip.name for clip in data.splits["train"]] == [FIRST]
    assert [clip.name for clip in data.splits["val"]] == [FIRST[:-1] + "1"]
    assert "the last 1 of 2 train trajectories" in data.warnings[0]
    assert check(root, kind="robot").ok


def test_short_trajectories_are_left_out(robot_set: Make) -> None:
    data = load(robot_set(), kind="robot", height=8, width=8, min_frames={"train": 7, "val": 3})
    assert [clip.n_frames for clip in data.splits["train"]] == [7]
    assert any(FIRST in line and "left out" in line for line in data.warnings)


def test_a_changed_table_is_read_again(robot_set: Make) -> None:
    root = robot_set()
    before = read(root)["train"][0].condition[1].copy()
    path = root / FIRST / "actions.csv"
    path.write_text("\n".join(["9,9,9,9"] * 6) + "\n\n")
    after = read(root)["train"][0].condition[1]
    assert after.tolist() == [9, 9, 9, 9, *before[4:]]


# -- faults --


def edit(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], object]:
    def work(folder: Path) -> None:
        path = folder / name
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return work


def cell(row: int, column: int, text: str) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        cells = lines[row].split(",")
        cells[column] = text
        return [*lines[:row], ",".join(cells), *lines[row + 1 :]]

    return change


A, P = "actions.csv", "endeffector_positions.csv"
FAULTS: list[tuple[str, Callable[[Path], object]]] = [
    (f"{A}: 5 rows for 6 frames; add", edit(A, lambda lines: lines[:-1])),
    (f"{P}: 7 rows for 6 frames; remove", edit(P, lambda lines: [*lines, lines[-1]])),
    (f"{A} row 5, column 2 (dy): 'nan' is not a finite", edit(A, cell(4, 1, "nan"))),
    (f"{P} row 1, column 3 (z): '-inf' is not a finite", edit(P, cell(0, 2, "-inf"))),
    (f"{A} row 2, column 1 (dx): '1e60' is not a finite", edit(A, cell(1, 0, "1e60"))),
    (f"{A} row 1, column 3 (dz): 'abc' is not a finite", edit(A, cell(0, 2, "abc"))),
    (f"{A} row 3, column 4 (gripper): '1_0' is not", edit(A, cell(2, 3, "1_0"))),
    (f"{A} row 3, column 4 (gripper): empty", edit(A, cell(2, 3, ""))),
    (f"{A} row 4: 5 columns, 4 are needed", edit(A, cell(3, 0, "1,1"))),
    (f"{A} row 4: empty, 4 are needed", edit(A, lambda lines: [*lines[:3], "", *lines[4:]])),
    (f"{A}: 3 columns, 4 are needed", edit(A, lambda lines: [line.rpartition(",")[0] for line in lines])),
    (f"{P}: the file is empty", lambda folder: (folder / P).write_bytes(b"")),
    (f"{A}: not a text file", lambda folder: (folder / A).write_bytes(b"\xff\xfe\0\1")),
    (f"{A}: missing; add it", lambda folder: (folder / A).unlink()),
    ("3.png: missing", lambda folder: (folder / "3.png").unlink()),
    ("0.png: missing", lambda folder: (folder / "0.png").unlink()),
    ("5.png to 8.png: missing", lambda folder: (folder / "5.png").rename(folder / "9.png")),
    ("4.png: the file ends early", lambda folder: (folder / "4.png").write_bytes(png(folder)[:-20])),
    ("4.png: the file is empty", lambda folder: (folder / "4.png").write_bytes(b"")),
    (
        f"4.png: {FIRST}/04.png is frame 4 as well",
        lambda folder: (folder / "04.png").write_bytes(png(folder)),
    ),
]


def png(folder: Path) -> bytes:
    return (folder / "4.png").read_bytes()


@pytest.mark.parametrize(("says", "damage"), FAULTS)
def test_faults(robot_set: Make, says: str, damage: Callable[[Path], object]) -> None:
    root = robot_set()
    damage(root / FIRST)
    found = faults(root)
    assert any(line.startswith(f"{FIRST}/{says}") for line in found)
    assert all(line.startswith(FIRST) for line in found)
    with pytest.raises(DataError):
        read(root)


def test_every_fault_at_once(robot_set: Make) -> None:
    root = robot_set()
    edit(A, cell(0, 0, "nan"))(root / FIRST)
    edit(P, cell(1, 1, "x"))(root / FIRST)
    (root / FIRST / "2.png").unlink()
    (root / "test/traj_0_to_0.tfrecords/0/1.png").write_bytes(b"")
    (root / "validate/traj_0_to_0.tfrecords/0/actions.csv").unlink()
    assert sorted(line.partition(": ")[0] for line in faults(root)) == [
        "test/traj_0_to_0.tfrecords/0/1.png",
        f"{FIRST}/2.png",
        f"{FIRST}/actions.csv row 1, column 1 (dx)",
        f"{FIRST}/endeffector_positions.csv row 2, column 2 (y)",
        "validate/traj_0_to_0.tfrecords/0/actions.csv",
    ]


def test_many_faults_are_counted(robot_set: Make) -> None:
    root = robot_set(frames=60)
    edit(A, lambda lines: ["nan,nan,nan,nan"] * len(lines))(root / FIRST)
    found = faults(root)
    assert len(found) == 21
    assert "more like these" in found[-1]


def test_sizes_differ(robot_set: Make) -> None:
    root = robot_set()
    Image.new("RGB", (4, 4)).save(root / FIRST / "3.png")
    report = check(root, kind="robot", height=8, width=8)
    assert report.ok
    assert report.warnings == ["train: frames of different sizes (8x8: 12, 4x4: 1); all are resized"]


def test_ignored_files_are_reported(robot_set: Make) -> None:
    root = robot_set()
    (root / "train/notes.txt").write_text("a")
    (root / FIRST / "depth.npy").write_text("a")
    (root / "train/empty").mkdir()
    warnings = check(root, kind="robot", height=8, width=8).warnings
    assert {line.partition(": ")[0] for line in warnings} == {
        "train/empty",
        "train/notes.txt",
        f"{FIRST}/depth.npy",
    }


@pytest.mark.parametrize(
    ("place", "says"),
    [("train", "this is one split"), ("..", "did you mean"), ("test/traj_0_to_0.tfrecords/0", "no train")],
)
def test_wrong_roots(robot_set: Make, place: str, says: str) -> None:
    (fault,) = faults(robot_set() / place)
    assert says in fault


def test_missing_parts(robot_set: Make, tmp_path: Path) -> None:
    root = robot_set()
    (root / "train").rename(tmp_path / "away")
    report = check(root, kind="robot", height=8, width=8)
    assert report.ok
    assert any("nothing to train on" in line for line in report.warnings)
    with pytest.raises(DataError, match="training needs"):
        load(root, kind="robot", height=8, width=8)
    (root / "train").mkdir()
    assert any(line.startswith("train: no trajectories") for line in faults(root))


def test_links_out_of_the_set(robot_set: Make, tmp_path: Path) -> None:
    root = robot_set()
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    assert any("link to nothing or out" in line for line in faults(root))


def test_unknown_kind() -> None:
    with pytest.raises(UserError, match="dance or robot"):
        load(None, kind="robots", height=8, width=8)


# -- statistics --


def test_condition_stats() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(5, 2, (n, 3)).astype("f4") for n in (4, 9)]
    for table in rows:
        table[:, 1] = 0.1
        table[0] = 0
    clips = [Clip(f"{i}", np.zeros((len(r), 3, 2, 2), np.uint8), r) for i, r in enumerate(rows)]
    mean, std = condition_stats(clips)
    true = np.concatenate([r[1:] for r in rows]).astype(np.float64)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, true.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std[[0, 2]], true.std(0)[[0, 2]], rtol=1e-6)
    assert std[1] == 1
    with pytest.raises(ValueError, match="condition vectors"):
        condition_stats([])


def test_condition_stats_of_the_frames_that_are_used() -> None:
    """`data.partial` leaves out the end of the set; so do the statistics."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(10, 3)).astype("f4") for _ in range(3)]
    clips = [Clip(f"{i}", np.zeros((10, 3, 2, 2), np.uint8), r) for i, r in enumerate(rows)]
    lengths = first_frames([10, 10, 10], 0.5)
    assert lengths == [10, 5, 0]
    mean, std = condition_stats(clips, lengths)
    true = np.concatenate([rows[0][1:], rows[1][1:5]]).astype(np.float64)
    np.testing.assert_allclose(mean, true.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, true.std(0), rtol=1e-6)
    assert [first_frames([100], share) for share in (0.29, 0.57, 0.58)] == [[29], [57], [58]]
    whole = condition_stats(clips, first_frames([10, 10, 10], 1.0))
    assert all((a == b).all() for a, b in zip(whole, condition_stats(clips), strict=True))
    with pytest.raises(UserError, match=r"data.partial: leaves fewer than two frames"):
        condition_stats(clips, first_frames([10, 10, 10], 0.04))


def test_the_statistics_are_those_of_the_share_trained_on(robot_set: Make) -> None:
    root = robot_set(frames=8)
    raw = {
        "data": {"kind": "robot", "root": str(root), "height": 32, "width": 32, "n_past": 1},
        "model": {"name": "svg", "backbone": "dcgan", "width": 4, "norm": "group", "g_dim": 4, "z_dim": 2},
        "train": {"window": 2, "batch_size": 1},
    }

    def trained_on(*overrides: str) -> tuple[np.ndarray, int]:
        settings = configs.from_dict(raw, overrides)
        data = load_data(settings, ("train", "val"), Silent())
        trainer = build_trainer(settings, data, CPU, Silent())
        assert isinstance(trainer.model, SVG)
        return trainer.model.condition_mean.numpy().copy(), sum(c.n_frames for c in data.splits["train"])

    conditions = [clip.condition for clip in read(root)["train"]]
    mean, frames = trained_on("data.partial=0.5")  # 8 of 17 frames: the first trajectory
    np.testing.assert_allclose(mean, conditions[0][1:].mean(0), rtol=1e-5)
    assert frames == 17
    mean, frames = trained_on("data.train_frames=4")
    np.testing.assert_allclose(mean, np.concatenate([c[1:4] for c in conditions]).mean(0), rtol=1e-5)
    assert frames == 8


# -- real files --


@pytest.mark.shared
def test_a_real_arm(shared: Path) -> None:
    data = load(shared / "data/robot_real", kind="robot", height=64, width=64, need=("train", "val", "test"))
    assert {split: len(clips) for split, clips in data.splits.items()} == {"train": 18, "val": 3, "test": 4}
    assert data.warnings == []
    for clip in (clip for clips in data.splits.values() for clip in clips):
        folder = shared / "data/robot_real" / clip.name
        assert clip.frames.shape == (10, 3, 64, 64)
        true = np.hstack([np.loadtxt(folder / name, delimiter=",", dtype="f4") for name in (A, P)])
        assert clip.condition[1:].tobytes() == true[:-1].tobytes()
        # Its positions follow its actions, roughly: the alignment is the right one.
        moved = np.diff(clip.condition[1:, 4:], axis=0)
        assert np.corrcoef(moved.ravel(), clip.condition[1:-1, :3].ravel())[0, 1] > 0.5


def cases() -> list[str]:
    names = "00_good_control csv_missing_row csv_extra_row csv_nan csv_inf csv_wrong_columns csv_text_value"
    return f"{names} csv_empty csv_absent frame_missing frame_wrong_size".split()


@pytest.mark.shared
@pytest.mark.parametrize("case", cases())
def test_the_listed_cases(shared: Path, case: str) -> None:
    index = json.loads((shared / "bad/index.json").read_text())
    listed = [name.partition("/")[2] for name in index if name.startswith("bair_processed/")]
    assert listed == cases()
    report = check(shared / "bad/bair_processed" / case, kind="robot")
    allowed = index[f"bair_processed/{case}"]["kind"]
    if report.ok:
        assert allowed in ("valid", "broken or warned", "broken or resized")
        assert allowed == "valid" or len(report.warnings) > 1
    else:
        assert allowed.startswith("broken")
        (fault,) = report.faults
        assert fault.startswith("train/traj_0_to_0.tfrecords/0")


def test_listing_decodes_nothing(robot_set: Make) -> None:
    root = robot_set()
    for path in root.rglob("*.*"):
        if path.is_file():
            path.write_bytes(b"x")
    assert Robot(root).report.ok


# -- told apart --


def test_which_kind_a_folder_is(robot_set: Make, dance_set: Make, tmp_path: Path) -> None:
    assert kind_of(robot_set("robot")) == "robot" and kind_of(dance_set("dance")) == "dance"
    for path, name in (("bair/softmotion30_44k/train", "traj_0_to_1.tfrecords"), ("near/set", "x.tfrecord")):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / name).write_bytes(b"")
    assert kind_of(tmp_path / "bair") == kind_of(tmp_path / "near") == "robot"
    (tmp_path / "pictures" / "train" / "0").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "train" / "0" / "0.png")
    for unclear in ("pictures", "pictures/train", "nowhere"):
        assert kind_of(tmp_path / unclear) is None


def test_a_set_read_as_the_other_kind_is_one_fault(robot_set: Make, dance_set: Make) -> None:
    for root, kind, is_a in ((robot_set("robot"), "dance", "robot"), (dance_set("dance"), "robot", "dance")):
        (fault,) = check(root, kind=kind).faults
        assert f"a {is_a} set, read as {kind}" in fault and f"--kind {is_a}" in fault
        with pytest.raises(DataError, match=f"data.kind: {is_a}"):
            load(root, kind=kind, height=8, width=8)


def test_check_on_the_command_line_finds_the_kind(robot_set: Make, dance_set: Make) -> None:
    robot, dance = robot_set("robot"), dance_set("dance")
    size = ["--height", 8, "--width", 8]
    told = cvae("data", "check", robot, *size).good()
    assert "looks like a robot set" in told.err
    assert "train: ranges of the condition: dx " in told.out
    for arguments in ([robot, "--kind", "robot"], [dance]):
        told = cvae("data", "check", *arguments, *size).good()
        assert "looks like" not in told.out + told.err
    told = cvae("data", "check", robot, "--kind", "dance", *size)
    assert told.code == 2 and "read as dance" in told.out


def test_a_conversion_is_summed_up_once(robot_set: Make) -> None:
    notes: list[str] = []
    reporter = Silent()
    reporter.note = notes.append  # type: ignore[method-assign]
    raw = configs.load("quickstart-robot", [f"data.root={robot_set()}", "data.n_past=2", "train.window=4"])
    settings = raw.model_copy(update={"data": raw.data.model_copy(update={"height": 8, "width": 8})})
    load_data(settings, ("train",), reporter)
    assert notes[0] == "train: 2 trajectories, 13 frames (6 to 7 each), 8x8"
    assert notes[1].startswith("train: ranges of the condition: dx ") and "gripper" in notes[1]
    assert sum("trajector" in line for line in notes) == 3, "one line a split"
    notes.clear()
    load_data(settings, ("train",), reporter)
    assert notes == []
