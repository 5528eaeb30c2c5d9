"""Films, keypoints and detectors become a data set; what is broken is refused in one line."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cvae
from PIL import Image

from cvaecli import media
from cvaecli.data.loading import check, load
from cvaecli.errors import UserError
from cvaecli.importing import (
    detector,
    drawing,
    importer,
    keypoint_files,
    keypoints,
    quality,
    skeletons,
    textures,
)
from cvaecli.importing.film import Shot, open_film
from cvaecli.importing.importer import at_rate, import_film
from cvaecli.importing.keypoints import Person
from cvaecli.importing.options import Options
from cvaecli.importing.preview import overlay, preview
from cvaecli.media import ffmpeg

COUNT, WIDTH, HEIGHT = 24, 96, 64
LEFT = ("left_shoulder", "left_elbow", "left_wrist")
RIGHT = ("right_shoulder", "right_elbow", "right_wrist")
NAMES = ("nose", *LEFT, *RIGHT)


def picture(number: int) -> np.ndarray:
    """A smooth background with a dark block that moves two pixels a frame."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frame = np.stack([60 + x, 80 + y, 180 - x // 2], axis=-1).astype(np.uint8)
    frame[24:44, 10 + 2 * number : 20 + 2 * number] = 20
    return frame


def figure(number: int) -> np.ndarray:
    """The points of a figure on the block, ``[P, 3]``; the last one is missing."""
    x, y = 15.0 + 2 * number, 24.0
    points = [(x, y), *((x + s * (4 + 3 * i), y + 6 * i) for s in (1, -1) for i in range(3))]
    return np.array([[*point, 0.9] for point in points[:-1]] + [[0, 0, 0]])


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of 24 frames, 10 a second."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    media.write(map(picture, range(COUNT)), path, fps=10)
    return path


def plain_csv(path: Path, frames: int = COUNT, scale: float = 1.0) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(keypoints.COLUMNS)
        for number in range(frames):
            person = Person("0", figure(number) * [scale, scale, 1])
            table.writerows(keypoints.rows(number, [person], NAMES))
    return path


@pytest.fixture
def points(tmp_path: Path) -> Path:
    return plain_csv(tmp_path / "points.csv")


# --- a film becomes a set -----------------------------------------------------------------------------


def test_a_film_becomes_a_set_that_training_takes(film: Path, points: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    report = import_film(film, out, Options(labels=str(points), size=(48, 32)))
    assert report.warnings == [] and report.summary[0].startswith(
        "24 frames of 48x32, 10 a second: 20 train, 4 val"
    )
    assert check(out, height=32, width=48).faults == []
    loaded = load(out, height=32, width=48, need=("train", "val", "test"))
    assert [clip.name for clips in loaded.splits.values() for clip in clips] == [
        "train/0-19",
        "val/20-23",
        "test/0",
    ]
    truth = np.stack(
        [Image.fromarray(picture(n)).resize((48, 32), Image.Resampling.BILINEAR) for n in range(20)]
    )
    frames = np.moveaxis(loaded.splits["train"][0].frames, 1, -1)
    assert np.abs(frames.astype(int) - truth).mean() < 4, "resized once; H.264 costs a little"
    ink = (loaded.splits["val"][0].condition.min(axis=1) < 128).nonzero()
    assert abs(ink[2][ink[0] == 0].mean() - (15 + 2 * 20) / 2) < 2, "the sticks lie on the block"
    rows = list(csv.DictReader((out / "frames.csv").open()))
    assert [int(row["source"]) for row in rows] == list(range(COUNT))
    assert [float(row["time"]) for row in rows] == pytest.approx(np.arange(COUNT) / 10, abs=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["points.csv", "set"]


def test_part_of_the_time_and_of_the_picture(film: Path, points: Path, tmp_path: Path) -> None:
    options = Options(labels=str(points), start=0.4, stop=2.2, fps=5, crop=(48, 32, 24, 20), val=0.4)
    import_film(film, tmp_path / "set", options)
    rows = list(csv.DictReader((tmp_path / "set/frames.csv").open()))
    assert [int(row["source"]) for row in rows] == list(range(4, 22, 2))
    nose = next(
        row for row in csv.DictReader((tmp_path / "set/keypoints.csv").open()) if row["name"] == "nose"
    )
    assert (float(nose["x"]), float(nose["y"])) == pytest.approx(
        ((23 - 24) * 64 / 48, (24 - 20) * 42 / 32), abs=0.01
    )
    assert Image.open(tmp_path / "set/train/train_img/0.png").size == (64, 42)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(picture(number)).save(folder / f"IMG_{number + 5}.png")
    import_film(folder, tmp_path / "set", Options(labels="edges", size=(WIDTH, HEIGHT)))
    for number, split in ((0, "train"), (4, "train"), (11, "val")):
        stored = np.asarray(Image.open(tmp_path / f"set/{split}/{split}_img/{number}.png"))
        assert (stored == picture(number)).all(), "in the order of their numbers, unchanged"


def test_rotation_is_honoured(film: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    ffmpeg.run(["-y", "-display_rotation", "90", "-i", str(film), "-c", "copy", str(turned)])
    (shot, *_) = open_film(turned).shots()
    (upright, *_) = open_film(film).shots()
    assert np.abs(shot.picture.astype(int) - np.rot90(upright.picture)).mean() < 1


def test_gif_and_cuts(tmp_path: Path) -> None:
    frames = [picture(n) if n < 20 else 255 - picture(n)[:, ::-1] for n in range(40)]
    media.write(iter(frames), tmp_path / "film.gif", fps=20)
    report = import_film(tmp_path / "film.gif", tmp_path / "set", Options(labels="foreground"))
    assert "cuts found before frames 20" in report.summary
    table = (tmp_path / "set/clips.csv").read_text().split()
    assert table == ["split,first,last", "train,0,19", "train,20,33", "val,34,39"]


def shots(times: Sequence[float]) -> Iterator[Shot]:
    return (Shot(n, time, np.zeros((1, 1, 3), np.uint8)) for n, time in enumerate(times))


@pytest.mark.parametrize(
    ("times", "rate", "options", "expected"),
    [
        ([0, 0.033, 0.067, 0.1, 0.133], 30, Options(), [0, 1, 2, 3, 4]),  # times rounded to milliseconds
        ([0, 0.1, 0.2, 0.3, 0.4, 0.5], 10, Options(fps=5), [0, 2, 4]),
        ([0, 0.1, 0.2], 10, Options(fps=20), [0, 0, 1, 1, 2, 2]),
        ([0, 0.1, 0.4, 0.5], 10, Options(), [0, 1, 1, 1, 2, 3]),  # a variable rate: the gap is filled
        ([0, 0.02, 0.1, 0.2], 10, Options(), [1, 2, 3]),  # and what is too much is left out
        ([0, 0.1, 0.2, 0.3, 0.4], 10, Options(start=0.1, stop=0.3), [1, 2]),
        ([0, 0.1], 10, Options(start=5), []),
    ],
)
def test_a_constant_rate(times: list[float], rate: float, options: Options, expected: list[int]) -> None:
    kept = at_rate(shots(times), rate, options.fps or rate, options)
    assert [shot.number for shot in kept] == expected


def test_a_variable_rate_is_reported(tmp_path: Path) -> None:
    parts = tmp_path / "even.mp4"
    media.write(map(picture, range(COUNT)), parts, fps=10)
    uneven = tmp_path / "uneven.mp4"
    late = "setpts='if(gt(N,12),PTS+0.5/TB,PTS)'"
    ffmpeg.run(["-y", "-i", str(parts), "-vf", late, "-fps_mode", "vfr", str(uneven)])
    report = import_film(uneven, tmp_path / "set", Options(labels="edges", fps=None))
    assert any("variable frame rate" in line for line in report.warnings)
    times = [float(row["time"]) for row in csv.DictReader((tmp_path / "set/frames.csv").open())]
    assert len(times) > COUNT - 2 and max(np.diff(times)) > 0.5


# --- keypoint files -----------------------------------------------------------------------------------


def openpose(folder: Path, count: int = COUNT) -> Path:
    folder.mkdir()
    order = skeletons.OPENPOSE[18]
    for number in range(count):
        values = np.zeros((18, 3))
        for name, point in zip(NAMES, figure(number), strict=True):
            values[order.index(name)] = point
        people = [{"person_id": [-1], "pose_keypoints_2d": values.ravel().tolist()}]
        (folder / f"film_{number:012}_keypoints.json").write_text(json.dumps({"people": people}))
    return folder


def coco(path: Path, count: int = COUNT, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    images = [
        {"id": n + 7, "file_name": f"{n:06}.png", "width": size[0], "height": size[1]} for n in range(count)
    ]
    annotations = [
        {"image_id": n + 7, "keypoints": (figure(n) * [1, 1, 1 / 0.9 * 2]).ravel().tolist()}
        for n in range(count)
    ]
    categories = [{"keypoints": list(NAMES)}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def deeplabcut(path: Path, count: int = COUNT) -> Path:
    head = [["scorer"], ["bodyparts"], ["coords"]]
    for name in NAMES:
        for row, cells in zip(head, (["net"] * 3, [name] * 3, ["x", "y", "likelihood"]), strict=True):
            row += cells
    body = [[n, *("" if value == 0 else value for value in figure(n).ravel())] for n in range(count)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([*head, *body])
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "openpose": openpose,
    "points.json": coco,
    "dlc.csv": deeplabcut,
    "plain.csv": plain_csv,
}


@pytest.mark.parametrize("name", WRITERS)
def test_formats(name: str, tmp_path: Path) -> None:
    found = keypoint_files.read(WRITERS[name](tmp_path / name))
    assert sorted(found.frames) == list(range(COUNT)) and found.length == (None if "plain" in name else COUNT)
    for number in (0, 11):
        (person,) = found.people(number, "all")
        by_name = dict(zip(found.names, person.points, strict=True))
        for point, expected in zip(NAMES, figure(number), strict=True):
            value = by_name.get(point, np.zeros(3))  # a plain table does not name what is never there
            assert value[:2] == pytest.approx(expected[:2]) and (value[2] > 0) == (expected[2] > 0), point
        middle = (figure(number)[1, :2] + figure(number)[4, :2]) / 2
        if name != "openpose":  # which has a neck of its own
            assert by_name["neck"][:2] == pytest.approx(middle)


def test_whom_to_draw(tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    path.write_text(
        "frame,person,name,x,y\n0,ann,a,1,1\n0,ann,b,5,5\n0,bob,a,10,10\n0,bob,b,40,40\n1,ann,a,2,2\n"
    )
    found = keypoint_files.read(path)
    assert [[p.name for p in found.people(0, who)] for who in ("all", "largest", "ann", "eve")] == [
        ["ann", "bob"],
        ["bob"],
        ["ann"],
        [],
    ]
    with pytest.raises(UserError, match=r"--person eve: not in .*two.csv \(it has ann, bob\)"):
        found.check("eve", 50, 50)


def test_individuals_of_deeplabcut(tmp_path: Path) -> None:
    path = tmp_path / "mice.csv"
    path.write_text(
        "scorer,n,n,n,n,n,n\nindividuals,m1,m1,m1,m2,m2,m2\nbodyparts,tail,tail,tail,tail,tail,tail\n"
        "coords,x,y,likelihood,x,y,likelihood\n0,1,2,0.5,3,4,0.9\n1,,,,5,6,NaN\n2,1,2,0.4,7,-8,0.3\n"
    )
    found = keypoint_files.read(path)
    seen = {n: [(p.name, *p.points[0].tolist()) for p in found.people(n, "all")] for n in range(3)}
    assert seen == {
        0: [("m1", 1, 2, 0.5), ("m2", 3, 4, 0.9)],
        1: [],  # NaN: missing
        2: [("m1", 1, 2, 0.4), ("m2", 7, -8, 0.3)],  # outside the picture is a place
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"people": [{"pose_keypoints_2d": [1, 2, NaN]}]}', "NaN is not a number"),
        ('{"people": [{"pose_keypoints_2d": [1, 2]}]}', "not a list of x, y, confidence"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, 1e999]}]}', "inf is not a number"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, 1]}]}', "1 points instead of 18"),
        ('{"people": 3}', "no list of people"),
        ("[" * 100_000, "not JSON"),
        ("{", "not JSON"),
    ],
)
def test_bad_openpose(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        keypoint_files.read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "0.json"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "frame,name,x\n0,a,1\n", "no column y"),
        ("a.csv", "frame,name,x,y\n0,a,1,inf\n", "row 2, column 4: 'inf' is not a number"),
        ("a.csv", "frame,name,x,y\n-1,a,1,2\n", "frame '-1' is not a whole number"),
        ("a.csv", "frame,name,x,y\n0,a,1,2\n0,a,1,2\n", "a of frame 0 is there twice"),
        ("a.csv", "scorer,n\nbodyparts,a\ncoords,x\n", "not a DeepLabCut file"),
        ("a.csv", "", "no column frame, name, x, y"),
        ("a.json", '{"annotations": [{"image_id": 0, "keypoints": [1, 2, 3]}]}', "1 points instead of 17"),
        ("a.json", "3", "not COCO keypoints"),
        ("a.npy", "", "unknown keypoint file"),
    ],
)
def test_bad_tables(name: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        keypoint_files.read(tmp_path / name)
    assert says in str(caught.value) and str(tmp_path / name) in str(caught.value)


# --- skeletons and drawing ----------------------------------------------------------------------------


def test_skeleton_files(tmp_path: Path) -> None:
    path = tmp_path / "mouse.yaml"
    path.write_text(
        'points: [Nose, tail base, tip]\nlimbs:\n  - [nose, tail_base]\n  - [tail base, tip, "#ff8000"]\n'
    )
    skeleton = skeletons.read(path)
    assert skeleton.points == ("nose", "tail_base", "tip") and skeleton.limbs[1].colour == (255, 128, 0)
    assert skeletons.choose(skeleton, skeleton.points) is skeleton
    with pytest.raises(UserError, match=r"the keypoints have no 'tip' \(they have nose, tail_base\)"):
        skeletons.choose(skeleton, ["nose", "tail_base"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("limbs: [[a]]", "is not [a, b]"),
        ("limbs: [[a, b, mauve2]]", "'mauve2' is not a colour"),
        ("limbs: [[a, b]]\nbones: []", "not a skeleton"),
        ("limbs: []", "not a skeleton"),
        ("limbs: [[a, b]]\npoints: a", "points is not a list"),
        ("limbs: !!python/object/apply:os.system [ls]", "not a valid config"),
        ("a: &a [1]\nlimbs: *a", "aliases"),
    ],
)
def test_bad_skeletons(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        skeletons.read(tmp_path / "s.yaml")
    assert says in str(caught.value) and str(tmp_path / "s.yaml") in str(caught.value)


def test_a_skeleton_is_chosen_by_the_names() -> None:
    assert skeletons.choose(None, skeletons.COCO_17) is skeletons.PERSON
    dots = skeletons.choose(None, ["snout", "tail"])
    assert [(limb.start, limb.end) for limb in dots.limbs] == [("snout", "snout"), ("tail", "tail")]
    with pytest.raises(UserError, match="none of its limbs"):
        skeletons.choose("person", ["snout", "tail"])


def stick(sure: float, *, side: str = "left") -> np.ndarray:
    names = [f"{side}_knee", f"{side}_ankle"]
    return drawing.draw([np.array([[8, 4, sure], [8, 12, sure]])], names, skeletons.PERSON, (16, 16))


def test_sticks() -> None:
    left, right = stick(1), stick(1, side="right")
    assert (left[8, 8] != right[8, 8]).any(), "left and right are told apart"
    assert (left[8, 0] == 255).all() and (left[15] == 255).all()
    pale = stick(0.25)
    assert (pale >= left).all() and 0 < (255 - pale[8, 8]).sum() < (255 - left[8, 8]).sum()
    assert (stick(0) == 255).all(), "missing"
    thin = drawing.draw(
        [np.array([[4, 2, 1], [4, 6, 1]])], ["left_knee", "left_ankle"], skeletons.PERSON, (8, 8)
    )
    assert (255 - thin[4].astype(int)).max() > 100, "it survives a small frame"


def test_sticks_that_leave_the_picture_are_cut() -> None:
    points = [np.array([[8, 8, 1.0], [8, -1e5, 1.0]])]
    drawn = drawing.draw(points, ["left_knee", "left_ankle"], skeletons.PERSON, (16, 16))
    assert (drawn[0, 8] < 255).any() and (drawn[12] == 255).all()


def planes(count: int = 20) -> np.ndarray:
    return np.stack([picture(n).transpose(2, 0, 1) for n in range(count)])


def test_edges_are_where_the_brightness_changes() -> None:
    frames = planes()
    label = textures.edges(frames)(frames[5])
    assert label.shape == (HEIGHT, WIDTH, 3) and label[34, 20].max() < 60, "the block's left side"
    assert (label[34, 25] == 255).all() and (label[5, 60] == 255).all(), "neither in it nor far away"


def test_the_foreground_is_what_moves() -> None:
    frames = planes()
    label = textures.foreground(frames)(frames[5])
    assert (label[34, 25] == 0).all() and (label[34, 60] == 255).all() and (label[5] == 255).all()


# --- the detector -------------------------------------------------------------------------------------


class FakeDetector:
    """Finds the figure, and can be interrupted."""

    names = NAMES
    batch, seconds, device = 4, 0.5, "cpu"

    def __init__(self, weights: Path | None = None, device: str | None = None) -> None:
        self.calls = 0

    def __call__(self, pictures: Sequence[Any]) -> list[list[Person]]:
        self.calls += 1
        places = [
            int(np.argmax(picture[34, :, 0] < 40)) - 10 for picture in pictures
        ]  # the block's left side
        return [[Person("0", figure(round(place / 2)))] for place in places]


def test_an_interrupted_import_goes_on(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "Detector", FakeDetector)
    out, again, calls = tmp_path / "set", tmp_path / "again", []
    import_film(film, again, Options())

    def stop(self: FakeDetector, pictures: Sequence[Any]) -> list[list[Person]]:
        calls.append(len(pictures))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return FakeDetector.__call__(self, pictures)

    class Stopping(FakeDetector):
        __call__ = stop

    monkeypatch.setattr(detector, "Detector", Stopping)
    with pytest.raises(KeyboardInterrupt):
        import_film(film, out, Options())
    work = tmp_path / ".set.importing"
    assert not out.exists() and work.is_dir()
    with (work / "frames.u8").open("ab") as file:  # as if it was killed while it wrote
        file.write(b"half a frame")
    with (work / "detected.csv").open("a") as file:
        file.write("9,0,no")
    import_film(film, out, Options())
    assert sum(calls[3:]) == COUNT - 8, "what was done is not done again"
    assert tree(out) == tree(again) and not work.exists()


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_another_command_begins_anew(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        import_film(film, tmp_path / "set", Options(labels="edges"))
    monkeypatch.undo()
    import_film(film, tmp_path / "set", Options(labels="edges", size=(32, 32)))
    assert Image.open(tmp_path / "set/val/val_img/20.png").size == (32, 32)


def test_what_the_detector_returns() -> None:
    found = detector._people(
        {
            "scores": torch.tensor([0.9, 0.3]),
            "keypoints": torch.arange(2 * 17 * 3).view(2, 17, 3).float(),
            "keypoints_scores": torch.full((2, 17), 2.0),
        }
    )
    assert len(found) == 1 and found[0].points[1].tolist() == pytest.approx([3, 4, 0.5])


def test_bad_weights(film: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"a": torch.zeros(1)}, tmp_path / "others.pth")
    for name, says in (
        ("none.pth", "cannot be read"),
        ("text.pth", "not a file of weights"),
        ("others.pth", "not the weights of torchvision's Keypoint R-CNN"),
    ):
        with pytest.raises(UserError, match=says):
            import_film(film, tmp_path / "set", Options(weights=tmp_path / name))
    assert {path.name for path in tmp_path.iterdir()} == {"text.pth", "others.pth"}


# --- broken input: one line, exit 2, nothing left -----------------------------------------------------


def sound(folder: Path, film: Path) -> Path:
    ffmpeg.run(["-y", "-f", "lavfi", "-i", "sine=d=0.2", str(folder / "x.mp4")])
    return folder / "x.mp4"


def truncated(folder: Path, film: Path) -> Path:
    long = folder / "x.mp4"
    ffmpeg.run(
        ["-y", "-stream_loop", "3", "-i", str(film), "-c", "copy", "-movflags", "+faststart", str(long)]
    )
    os.truncate(long, int(long.stat().st_size * 0.5))
    return long


def without_index(folder: Path, film: Path) -> Path:
    ffmpeg.run(["-y", "-i", str(film), "-c", "copy", str(folder / "x.mp4")])
    os.truncate(folder / "x.mp4", int(film.stat().st_size * 0.5))
    return folder / "x.mp4"


def text(content: str) -> Callable[[Path, Path], Path]:
    def write(folder: Path, film: Path) -> Path:
        (folder / "x.mp4").write_text(content)
        return folder / "x.mp4"

    return write


def empty_folder(folder: Path, film: Path) -> Path:
    (folder / "x").mkdir()
    return folder / "x"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (sound, "no video in the file"),
        (truncated, "the file is damaged: "),
        (without_index, "not a video, or damaged"),
        (text(""), "the file is empty"),
        (text("#EXTM3U\n/etc/hostname\n"), "text, not a video"),
        (empty_folder, "no pictures in the folder"),
        (lambda folder, film: folder / "x.mp4", "no such file"),
    ],
)
def test_broken_films(make: Callable[[Path, Path], Path], says: str, film: Path, tmp_path: Path) -> None:
    path = make(tmp_path, film)
    before = set(tmp_path.iterdir())
    line = refused(str(path), "--out", str(tmp_path / "set"), "--labels", "edges")
    assert line.startswith(f"error: {path}: {says}")
    assert set(tmp_path.iterdir()) == before


def refused(*arguments: str) -> str:
    (line,) = cvae("data", "import", *arguments).wrong().err.strip().splitlines()
    return line


def many_values(path: Path) -> Path:
    path.write_bytes(b"[" + b"0," * 10_000_000 + b"0]")
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: openpose(folder / "p", 15), "keypoints of 15 frames, but"),
        (lambda folder: plain_csv(folder / "p.csv", COUNT + 5), "keypoints of 29 frames, but"),
        (
            lambda folder: coco(folder / "p.json", size=(1920, 1080)),
            "keypoints of a 1920x1080 film, but this is",
        ),
        (lambda folder: plain_csv(folder / "p.csv", scale=10), "of the points are outside the 96x64 picture"),
        (lambda folder: plain_csv(folder / "p.csv", scale=0.01), "coordinates are shares of the picture"),
        (lambda folder: many_values(folder / "p.json"), "values, more than"),
    ],
)
def test_keypoints_of_something_else(
    make: Callable[[Path], Path], says: str, film: Path, tmp_path: Path
) -> None:
    path = make(tmp_path)
    line = refused(str(film), "--out", str(tmp_path / "set"), "--labels", str(path))
    assert line.startswith(f"error: {path}: ") and says in line
    assert list(tmp_path.iterdir()) == [path]


def test_keypoints_must_reach_to_the_end_of_the_part(film: Path, tmp_path: Path) -> None:
    labels = str(openpose(tmp_path / "p", 15))
    import_film(film, tmp_path / "set", Options(labels=labels, stop=1.3))
    with pytest.raises(UserError, match=r"keypoints of 15 frames, but .* has 2\d"):
        import_film(film, tmp_path / "more", Options(labels=labels, stop=2))


def test_the_size_of_the_keypoints_pictures(film: Path, tmp_path: Path) -> None:
    for name, scale, size in (("ten", 10, (10 * WIDTH, 10 * HEIGHT)), ("one", 1, None)):
        path = plain_csv(tmp_path / f"{name}.csv", scale=scale)
        import_film(film, tmp_path / name, Options(labels=str(path), keypoint_size=size))
    assert tree(tmp_path / "ten") == tree(tmp_path / "one")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--crop", "96x64+1+0"], "--crop 96x64+1+0: outside the picture, which is 96x64"),
        (["--crop", "96"], "--crop '96': not a part of a picture"),
        (["--size", "64"], "--size '64': not a size"),
        (["--size", "64x4"], "--size 64x4: both must be 8 to 4096"),
        (["--from", "9"], "no frames from 9 s"),
        (["--from", "1", "--to", "0:01"], "--to 1: not after --from 1"),
        (["--from", "soon"], "--from 'soon': not a time"),
        (["--fps", "0"], "--fps 0: must be above 0"),
        (["--val", "1"], "--val 1: must be between 0 and 1"),
        (["--to", "0.3"], "3 frames leave no train clip of 3 frames"),
        (["--labels", "joints"], "--labels joints: no such file or folder"),
        (["--skeleton", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_bad_options(arguments: list[str], says: str, film: Path, tmp_path: Path) -> None:
    before = [] if "--labels" in arguments else ["--labels", "edges"]
    assert says in refused(str(film), "--out", str(tmp_path / "set"), *before, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_set_is_not_written_over(film: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    assert "is not an empty folder" in refused(str(film), "--out", str(tmp_path), "--labels", "edges")


# --- preview ------------------------------------------------------------------------------------------


def test_a_preview(film: Path, points: Path, tmp_path: Path) -> None:
    lines = points.read_text().splitlines()
    moved = [line for line in lines if not line.startswith("7,")]  # nobody in frame 7
    jumped = [
        f"{row[0]},0,{row[2]},{float(row[3]) + 40},{row[4]},{row[5]}" if row[0] == "12" else ",".join(row)
        for row in (line.split(",") for line in moved)
    ]
    points.write_text("\n".join(jumped) + "\n")
    import_film(film, tmp_path / "set", Options(labels=str(points)))
    shown = json.loads(cvae("data", "preview", tmp_path / "set", "--json").good().out)
    train, val = shown["labels"]
    assert train == {
        **{"split": "train", "frames": "20", "blank": "5.0%", "repeated": "0.0%"},
        **{"points missing": "0.0%", "jumps": "2"},
    }
    assert val["frames"] == "4" and val["blank"] == "0.0%" and shown["jumps"] == [12, 13]
    sheet, gif, table = (Path(path) for path in shown["written"])
    assert Image.open(sheet).width > 1000 and Image.open(gif).n_frames == COUNT
    rows = list(csv.DictReader(table.open()))
    assert [row["frame"] for row in rows if row["blank"] == "1"] == ["7"]


def test_a_preview_of_another_set(dance_set: Callable[..., Path]) -> None:
    shown = preview(dance_set(train=20, val=8), dance_set("other") / "p")
    assert all(path.is_file() for path in shown.written) and shown.quality.lost == {}
    assert quality.summary(shown.quality.rows, "train")[-2:] == ["-", "-"]


def test_the_overlay_shows_both() -> None:
    frame = np.full((1, 3, 3), 40, np.uint8)
    label = np.array([[[255, 255, 255], [0, 255, 0], [0, 0, 0]]], np.uint8)
    assert overlay(frame, label)[0].tolist() == [[40, 40, 40], [0, 255, 0], [255, 40, 0]]


def test_a_preview_needs_a_data_set(tmp_path: Path) -> None:
    cvae("data", "preview", tmp_path).wrong("no frames in train/train_img")


# --- real films ---------------------------------------------------------------------------------------


@pytest.mark.shared
def test_two_formats_of_one_film_agree(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/own_video"
    if not folder.is_dir():
        pytest.skip(f"no film at {folder}")
    options = {"stop": 1.0, "size": (64, 36)}
    for name in ("openpose", "coco_keypoints.json"):
        report = import_film(
            folder / "film.mp4", tmp_path / name, Options(labels=str(folder / name), **options)
        )
        assert report.summary[0].startswith("30 frames of 64x36, 30 a second")
    places = []
    for name in ("openpose", "coco_keypoints.json"):
        rows = csv.DictReader((tmp_path / name / "keypoints.csv").open())
        places.append(
            {(r["frame"], r["name"]): (float(r["x"]), float(r["y"])) for r in rows if r["name"] != "neck"}
        )
    both = places[0].keys() & places[1].keys()
    assert len(both) > 300 and all(places[0][key] == pytest.approx(places[1][key], abs=0.02) for key in both)
