"""TFRecords: framing, checksums and messages; nothing damaged is ever taken for data."""

from __future__ import annotations

import os
import random
import resource
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvaecli.data import cache
from cvaecli.data.clip import VideoData
from cvaecli.data.images import File
from cvaecli.data.loading import check, load
from cvaecli.data.robot import tfrecord
from cvaecli.data.robot.bair_record import BairRecord
from cvaecli.data.robot.records import Conversion, Records
from cvaecli.data.robot.tfrecord import (
    Record,
    RecordError,
    Span,
    build_example,
    crc32c,
    frame,
    parse_example,
    scan,
)
from cvaecli.errors import DataError, UserError
from cvaecli.synthetic.robot import example

SIDE = 6


def trajectory(seed: int, frames: int = 3, side: int = SIDE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (frames, 3, side, side), dtype=np.uint8)
    return pixels, rng.normal(size=(frames, 4)).astype("f4"), rng.normal(size=(frames, 3)).astype("f4")


def features(frames: int = 3) -> dict[str, bytes | np.ndarray]:
    pixels, actions, positions = trajectory(0, frames)
    made: dict[str, bytes | np.ndarray] = {}
    for t in range(frames):
        made |= {f"{t}/action": actions[t], f"{t}/endeffector_pos": positions[t]}
        made[f"{t}/image_aux1/encoded"] = pixels[t].transpose(1, 2, 0).tobytes()
        made[f"{t}/image_main/encoded"] = b"the other camera"
    return made


def put(root: Path, raw: bytes, split: str = "test", name: str = "traj_0_to_0.tfrecords") -> Path:
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / split / name).write_bytes(raw)
    return root


def faults(root: Path, raw: bytes) -> list[str]:
    return check(put(root, raw), kind="robot", height=SIDE, width=SIDE).faults


# -- checksums --


def slow_crc(data: bytes) -> int:
    """Bit by bit, as RFC 3720 defines it."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def test_known_checksums() -> None:
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("length", [1, 3, 63, 64, 65, 66, 67, 127, 128, 129, 1000, 4095, 4096, 4097, 20_003])
def test_checksum_of_any_length(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert crc32c(data) == crc32c(memoryview(data)) == slow_crc(data)


# -- messages --


def test_a_message_and_back() -> None:
    raw = build_example({"a": b"x" * 300, "b": np.array([1, -2.5, 3e-30], "f4"), "c/é": b""})
    read = parse_example(memoryview(raw))
    assert list(read) == ["a", "b", "c/é"]
    assert [raw[slice(*span)] for span in read["a"].blobs] == [b"x" * 300]
    assert read["b"].floats.tolist() == np.array([1, -2.5, 3e-30], "f4").tolist()
    assert [span.stop - span.start for span in read["c/é"].blobs] == [0]


def field(number: int, value: bytes) -> bytes:
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


def test_unpacked_floats_and_unknown_fields() -> None:
    floats = b"".join(b"\x0d" + struct.pack("<f", value) for value in (1.5, -2.0))
    feature = field(9, b"unknown") + field(2, floats + field(1, struct.pack("<f", 4.0))) + b"\x78\x05"
    raw = field(1, field(1, field(2, feature) + field(1, b"name"))) + b"\x79" + bytes(8)
    assert parse_example(memoryview(raw))["name"].floats.tolist() == [1.5, -2.0, 4.0]


def test_the_last_of_equal_keys_wins() -> None:
    raw = build_example({"a": np.array([1], "f4")}) + build_example({"a": np.array([2], "f4")})
    assert parse_example(memoryview(raw))["a"].floats.tolist() == [2]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",  # a length is missing
        b"\x0a\x05abc",  # a value is cut
        b"\x0b",  # groups are not used
        b"\x00\x00",  # field 0
        b"\xff" * 11,  # a varint without end
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # 2^63 bytes
        b"\x09abc",  # eight bytes cut
        field(1, field(1, field(1, b"\xff\xfe"))),  # a name that is no text
        field(1, field(1, field(1, b"a") + field(2, field(2, field(1, b"abc"))))),  # 3/4 of a float
    ],
)
def test_broken_messages(raw: bytes) -> None:
    with pytest.raises(RecordError):
        parse_example(memoryview(raw))


# -- files --


def test_records_and_where_they_lie(tmp_path: Path) -> None:
    payloads = [b"one", b"", b"x" * 1000]
    (tmp_path / "a.tfrecords").write_bytes(b"".join(map(frame, payloads)))
    raw = (tmp_path / "a.tfrecords").read_bytes()
    records = list(scan(tmp_path / "a.tfrecords"))
    assert [bytes(record.payload) for record in records] == payloads
    assert [raw[slice(*record.span)] for record in records] == payloads
    assert not any(record.fault for record in records)
    assert records[0].span == Span(12, 15)


GOOD = frame(build_example(features()))
BROKEN = {
    "empty": (b"", "the file is empty (0 bytes)"),
    "header": (GOOD[:7], "record 0: the file ends inside its header"),
    "payload": (GOOD[:100], "record 0: the file ends inside it"),
    "last_checksum": (GOOD[:-2], "record 0: the file ends inside it"),
    "second_record": (GOOD + GOOD[:50], "record 1: the file ends inside it"),
    "second_header": (GOOD + b"\1\0", "record 1: the file ends inside its header"),
    "garbage_after": (GOOD + b"garbage, garbage", "record 1: its header is damaged"),
    "payload_bit": (GOOD[:40] + bytes([GOOD[40] ^ 1]) + GOOD[41:], "record 0: the data are damaged"),
    "length_bit": (bytes([GOOD[0] ^ 1]) + GOOD[1:], "not a TFRecord file"),
    "zip": (b"PK\3\4" + bytes(400), "not a TFRecord file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(400), "compressed with gzip"),
    "empty_record": (frame(b""), "record 0: no robot trajectory"),
    "no_message": (frame(b"\x0b" * 40), "record 0: not a tf.train.Example"),
    "other_message": (frame(build_example({"image/encoded": b"x"})), "record 0: no robot trajectory"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path: Path, name: str) -> None:
    raw, says = BROKEN[name]
    (fault,) = faults(tmp_path, raw)
    assert fault.startswith(f"test/traj_0_to_0.tfrecords: {says}")


def without(key: str) -> dict[str, bytes | np.ndarray]:
    return {name: value for name, value in features().items() if name != key}


CONTENTS = {
    "no_action": (without("2/action"), "no 2/action"),
    "no_position": (without("0/endeffector_pos"), "no 0/endeffector_pos"),
    "no_frame": (without("1/image_aux1/encoded"), "no 1/image_aux1/encoded"),
    "gap": ({k: v for k, v in features().items() if k[0] != "1"}, "its steps are 0, 2"),
    "far": (features() | {"999999999/action": np.zeros(4, "f4")}, "its steps are 0-2, 999999999"),
    "five": (features() | {"0/action": np.zeros(5, "f4")}, "0/action has 5 numbers, 4 are needed"),
    "none": (features() | {"0/action": np.zeros(0, "f4")}, "0/action has 0 numbers, 4 are needed"),
    "bytes": (features() | {"1/action": b"abcd"}, "1/action has 0 numbers, 4 are needed"),
    "nan": (
        features() | {"1/action": np.array([0, np.nan, 0, 0], "f4")},
        "1/action has a number that is not",
    ),
    "inf": (features() | {"2/endeffector_pos": np.full(3, np.inf, "f4")}, "2/endeffector_pos has a number"),
    "short": (features() | {"1/image_aux1/encoded": b"x" * 100}, "1/image_aux1/encoded: 100 bytes"),
    "floats": (features() | {"1/image_aux1/encoded": np.zeros(3, "f4")}, "1/image_aux1/encoded: 0 values"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_wrong_contents(tmp_path: Path, name: str) -> None:
    content, says = CONTENTS[name]
    (fault,) = faults(tmp_path, frame(build_example(content)))
    assert fault.startswith(f"test/traj_0_to_0.tfrecords: record 0: {says}")


def test_every_fault_at_once(tmp_path: Path) -> None:
    good = frame(build_example(features()))
    bad = [CONTENTS[name][0] for name in ("five", "nan", "gap")]
    raw = (
        good
        + b"".join(frame(build_example(content)) for content in bad)
        + BROKEN["payload_bit"][0]
        + good[:9]
    )
    put(tmp_path, b"", "train", "traj_0_to_3.tfrecords")
    lines = faults(tmp_path, raw)
    assert [line.split(": ")[1] for line in lines[1:]] == [f"record {i}" for i in (1, 2, 3, 4, 6 - 1)]
    assert lines[0].startswith("train/traj_0_to_3.tfrecords: the file is empty")
    with pytest.raises(DataError):
        load(tmp_path, kind="robot", height=SIDE, width=SIDE)


def test_other_numbers_of_columns(tmp_path: Path) -> None:
    def raw(actions: int) -> bytes:
        return frame(build_example(features() | {f"{t}/action": np.zeros(actions, "f4") for t in range(3)}))

    report = check(put(tmp_path / "six", raw(6)), kind="robot")
    assert report.ok
    assert any("6 actions and 3 positions" in line for line in report.warnings)
    (fault,) = faults(tmp_path / "mixed", raw(6) + raw(4))
    assert "all must have the same" in fault


# -- sets --


def write_set(root: Path, counts: dict[str, list[int]], frames: int = 4) -> dict[str, tuple[np.ndarray, ...]]:
    """Files of so many trajectories by split; returns what is in them by clip name."""
    made = {}
    seed = 0
    for split, sizes in counts.items():
        first = 0
        for size in sizes:
            name = f"traj_{first}_to_{first + size - 1}"
            items = [trajectory(seed + i, frames + i % 2) for i in range(size)]
            put(root, b"".join(frame(example(*item)) for item in items), split, f"{name}.tfrecords")
            base = f"{split}/{name}" if split else name
            made |= {f"{base}/{i}": item for i, item in enumerate(items)}
            first, seed = first + size, seed + size
    return made


def test_a_set_bit_for_bit(tmp_path: Path) -> None:
    made = write_set(tmp_path / "softmotion30_44k", {"train": [8, 8, 24], "test": [2]})
    data = load(tmp_path, kind="robot", height=SIDE, width=SIDE, need=("train", "val", "test"))
    assert {split: len(clips) for split, clips in data.splits.items()} == {"train": 38, "val": 2, "test": 2}
    clips = [clip for clips in data.splits.values() for clip in clips]
    assert [clip.name for clip in clips] == [f"softmotion30_44k/{name}" for name in made]
    assert data.splits["val"][-1].name == "softmotion30_44k/train/traj_16_to_39/23"
    for clip, (pixels, actions, positions) in zip(clips, made.values(), strict=True):
        assert (clip.frames == pixels).all()
        assert clip.condition.dtype == np.float32
        assert (clip.condition[0] == 0).all()
        assert clip.condition[1:].tobytes() == np.hstack([actions, positions])[:-1].tobytes()
    (warning,) = data.warnings
    assert "the last 2 of 40 train trajectories" in warning


def test_order_of_files_is_that_of_their_numbers(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": [900, 200, 3]}, frames=1)
    assert [file.name for file in Records(tmp_path, tmp_path).files] == [
        "train/traj_0_to_899.tfrecords",
        "train/traj_900_to_1099.tfrecords",
        "train/traj_1100_to_1102.tfrecords",
    ]


def test_a_folder_of_files(tmp_path: Path) -> None:
    write_set(tmp_path / "test", {"": [2]})
    report = check(tmp_path / "test", kind="robot", height=SIDE, width=SIDE)
    assert report.ok
    assert any("used as test" in line for line in report.warnings)
    assert report.summary[0] == "test: 2 trajectories, 9 frames (4 to 5 each), 6x6"
    assert report.summary[1].startswith("test: ranges of the condition: dx ")


def test_a_file_with_fewer_trajectories_than_its_name_says_is_reported(tmp_path: Path) -> None:
    put(tmp_path, GOOD, name="traj_0_to_255.tfrecords")
    report = check(tmp_path, kind="robot", height=SIDE, width=SIDE)
    assert any("holds 1 trajectories, but its name says 256" in line for line in report.warnings)


def test_resized(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": [3]})
    data = load(tmp_path, kind="robot", height=4, width=8)
    assert data.frame_size == (4, 8)
    assert any("proportions" in line for line in data.warnings)


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    pixels = np.zeros((30, 3, 64, 64), np.uint8)
    raw = frame(example(pixels, np.zeros((30, 4), "f4"), np.zeros((30, 3), "f4")))
    put(tmp_path, raw * 12, "train", "traj_0_to_11.tfrecords")
    before = set(cache.folder().iterdir()) if cache.folder().is_dir() else set()
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, kind="robot", height=64, width=64, progress=stop)
    assert len(seen) > 1
    assert set(cache.folder().iterdir()) == before
    assert len(load(tmp_path, kind="robot", height=64, width=64).splits["train"]) == 11


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read through, in order."""
    names: list[str] = []

    def watched(path: Path) -> Iterator[Record]:
        names.append(path.name)
        return scan(path)

    monkeypatch.setattr(tfrecord, "scan", watched)
    return names


FILES = [f"traj_{first}_to_{first + 2}.tfrecords" for first in (0, 3, 6)]


def contents(data: VideoData) -> list[tuple[str, bytes, bytes]]:
    clips = [clip for clips in data.splits.values() for clip in clips]
    return [(clip.name, clip.frames.tobytes(), clip.condition.tobytes()) for clip in clips]


@pytest.mark.parametrize("links", [True, False])
def test_an_interrupted_conversion_goes_on_where_it_stopped(
    tmp_path: Path, scanned: list[str], monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    write_set(tmp_path, {"train": [3, 3, 3]})
    monkeypatch.setenv("CVAE_CACHE", str(tmp_path / "whole"))
    whole = load(tmp_path, kind="robot", height=SIDE, width=SIDE)
    assert whole.converted and whole.summary[0].startswith("train: 8 trajectories, ")
    monkeypatch.setenv("CVAE_CACHE", str(tmp_path / "broken"))
    copy = Conversion._copy

    def stop(self: Conversion, part: cache.Writer, file: File, shots: list[BairRecord]) -> None:
        if file.name.endswith(FILES[2]):
            raise KeyboardInterrupt
        copy(self, part, file, shots)

    with monkeypatch.context() as broken:
        broken.setattr(Conversion, "_copy", stop)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path, kind="robot", height=SIDE, width=SIDE)
    scanned.clear()
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    data = load(tmp_path, kind="robot", height=SIDE, width=SIDE)
    assert scanned[-1] == FILES[2] and FILES[1] not in scanned
    assert contents(data) == contents(whole) and data.fingerprint == whole.fingerprint
    assert (data.summary, data.warnings) == (whole.summary, whole.warnings)
    assert len(list(cache.folder().iterdir())) == 1, "the parts are gone"
    again = load(tmp_path, kind="robot", height=SIDE, width=SIDE)
    assert again.summary == data.summary and not again.converted


def test_files_that_are_done_need_not_be_read_again_when_another_is_corrected(
    tmp_path: Path, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CVAE_CACHE", str(tmp_path / "cache"))
    made = write_set(tmp_path, {"train": [3, 3, 3]})
    path = tmp_path / "train" / FILES[1]
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    for _ in range(2):
        with pytest.raises(DataError, match="ends inside it"):
            load(tmp_path, kind="robot", height=SIDE, width=SIDE)
    path.write_bytes(good)
    scanned.clear()
    data = load(tmp_path, kind="robot", height=SIDE, width=SIDE)
    assert scanned[1:] == FILES[1:], "one more look at the first tells how much room is needed"
    for name, frames, _ in contents(data):
        assert frames == made[name][0].tobytes()


def test_a_damaged_part_is_made_again_and_check_reads_everything(
    tmp_path: Path, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CVAE_CACHE", str(tmp_path / "cache"))
    made = write_set(tmp_path, {"train": [3, 3, 3]})
    path = tmp_path / "train" / FILES[2]
    good = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(DataError):
        load(tmp_path, kind="robot", height=SIDE, width=SIDE)
    parts = list(cache.folder().iterdir())
    assert len(parts) == 2
    os.truncate(parts[0] / "frames.npy", 200)
    path.write_bytes(good)
    assert check(tmp_path, kind="robot", height=SIDE, width=SIDE).ok
    assert set(FILES) <= set(scanned)
    data = load(tmp_path, kind="robot", height=SIDE, width=SIDE)
    for name, frames, _ in contents(data):
        assert frames == made[name][0].tobytes()


def test_memory_of_a_large_file(tmp_path: Path) -> None:
    """50 MB; what Python and numpy allocate stays at a few records."""
    rng = np.random.default_rng(0)
    (tmp_path / "train").mkdir()
    with (tmp_path / "train/traj_0_to_134.tfrecords").open("wb") as file:
        for _ in range(135):
            pixels = rng.integers(0, 256, (30, 3, 64, 64), dtype=np.uint8)
            file.write(frame(example(pixels, np.zeros((30, 4), "f4"), np.zeros((30, 3), "f4"))))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        data = load(tmp_path, kind="robot", height=64, width=64)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    assert (data.splits["val"][-1].frames == pixels).all()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown * (1 if sys.platform == "darwin" else 1024) < 400e6


# -- fuzzing --

WHOLE = frame(example(*trajectory(1)))
QUIET = settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.too_slow])


def read(raw: bytes) -> list[bytes]:
    """What a file gives: frames and conditions of each clip."""
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), raw)
        data = load(Path(folder), kind="robot", height=SIDE, width=SIDE, need=("test",))
    return [part.tobytes() for clip in data.splits["test"] for part in (clip.frames, clip.condition)]


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4))
@QUIET
def test_fuzz_mutations(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(WHOLE)
    for at, value in changes:
        raw[at] = value
    if raw == WHOLE:
        assert read(bytes(raw)) == read(WHOLE)
    else:
        with pytest.raises(UserError):
            read(bytes(raw))


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=40))
@QUIET
def test_fuzz_truncations_and_tails(keep: int, tail: bytes) -> None:
    with pytest.raises(UserError):
        read(WHOLE[:keep])
    if tail:
        with pytest.raises(UserError):
            read(WHOLE + tail)


@given(st.binary(max_size=400))
@QUIET
def test_fuzz_any_bytes(raw: bytes) -> None:
    with pytest.raises(UserError):
        read(raw)
    with pytest.raises(UserError):
        read(frame(raw))


@given(
    st.lists(st.tuples(st.integers(12, len(WHOLE) - 5), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 60),
)
@QUIET
def test_fuzz_messages_behind_good_checksums(changes: list[tuple[int, int]], cut: int) -> None:
    """A well-formed file with odd content is read as it says, or refused; nothing else happens."""
    payload = bytearray(WHOLE[12 : len(WHOLE) - 4 - cut])
    for at, value in changes:
        if at - 12 < len(payload):
            payload[at - 12] = value
    try:
        frames, condition = read(frame(bytes(payload)))
    except UserError:
        return
    assert len(frames) % (3 * SIDE * SIDE) == 0
    assert np.isfinite(np.frombuffer(condition, "f4")).all()


# -- real files --


@pytest.mark.shared
def test_the_published_layout(shared: Path) -> None:
    folder = shared / "data/robot_tfrecord/constant_colour_fake"
    data = load(folder, kind="robot", height=64, width=64, need=("train",))
    (clip,) = data.splits["train"]
    assert clip.frames.shape == (30, 3, 64, 64)
    assert clip.condition.shape == (30, 7)
    # Read a second time by position: every value has the same size.
    (record,) = scan(folder / "traj_0_to_255.tfrecords")
    raw = bytes(record.payload)
    for t in range(30):
        parts = []
        for name, count in ((f"{t}/action", 4), (f"{t}/endeffector_pos", 3)):
            key = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x12"
            at = raw.index(key) + len(key) + 5
            parts.append(raw[at : at + 4 * count])
        if t < 29:
            assert clip.condition[t + 1].tobytes() == b"".join(parts)
        assert (clip.frames[t] == clip.frames[t][:, :1, :1]).all()
        assert clip.frames[t].transpose(1, 2, 0).tobytes() in raw


@pytest.mark.shared
@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("truncated_record", "the file ends inside it"),
        ("truncated_header", "the file ends inside its header"),
        ("data_crc_bad", "the data are damaged"),
        ("zero_bytes", "the file is empty"),
        ("not_a_tfrecord", "not a TFRecord file"),
        ("missing_key", "no 3/action"),
        ("action_5_floats", "0/action has 5 numbers"),
    ],
)
def test_the_listed_cases(shared: Path, case: str, says: str) -> None:
    (fault,) = check(shared / "bad/tfrecord" / case, kind="robot").faults
    assert fault.startswith("test/traj_0_to_255.tfrecords: ")
    assert says in fault
