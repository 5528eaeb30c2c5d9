"""Every reader of the tool, fed with changed copies of good files.

    python fuzz/readers.py --examples 1000

A reader may accept the bytes or refuse them with its own one-line error. Any other exception, a reading of
more than 10 s and a process of more than 1 GB are failures. Prints a tally; the exit status is 1 if there was
a failure. ``tests/test_fuzz.py`` does the same with few examples.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cvaecli import checkpoint, evaluations, files, run, tables
from cvaecli.config import loading
from cvaecli.data import images
from cvaecli.data.dance import cuts
from cvaecli.data.robot import bair_record, csv_table, tfrecord
from cvaecli.errors import CvaeError, UserError
from cvaecli.models.pose_checkpoint import load_course_checkpoint
from cvaecli.sweeping.plan import Plan

SECONDS, MEGABYTES = 10.0, 1024.0
REFUSALS = (CvaeError, images.ImageError, tfrecord.RecordError)
Change = tuple[str, float, bytes]
"""What to do, where (as a share of the length), and with which bytes."""


@dataclass(frozen=True)
class Reader:
    """A reader and good contents of its file.

    Attributes:
        read: reads a file.
        seeds: contents that it accepts.
        file: the file's name.
        packed: makes the file's content from changed bytes, e.g. with checksums that match.
    """

    read: Callable[[Path], object]
    seeds: Sequence[bytes]
    file: str = "file"
    packed: Callable[[bytes], bytes] = bytes


def changed(content: bytes, changes: Sequence[Change]) -> bytes:
    """``content`` after some changes."""
    for what, share, piece in changes:
        at = int(share * len(content))
        if what == "put":
            content = content[:at] + piece + content[at + len(piece) :]
        elif what == "insert":
            content = content[:at] + piece + content[at:]
        elif what == "cut":
            content = content[:at]
        elif what == "remove":
            content = content[:at] + content[at + len(piece) :]
        else:
            content = content[:at] + content[at : at + 64] * (1 + len(piece)) + content[at + 64 :]
    return content


PIECES = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, (1 << 60).to_bytes(8, "little")]),
    st.sampled_from(
        [b"nan", b"1e999", b"-1", b"9" * 30, b"\r\n", b"\xef\xbb\xbf", b"&a [*a]", b"!!python/none"]
    ),
    st.sampled_from([b"{}%s%n", b"../../x", b"\xd9\x85\xd8\xb1", b",,,", b'"', b"[" * 40]),
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["put", "insert", "cut", "remove", "repeat"]), st.floats(0, 1), PIECES),
    min_size=1,
    max_size=4,
)


# --- good files ---------------------------------------------------------------------------------------


def pictures() -> list[bytes]:
    """PNG and JPEG in several modes."""
    pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(10, 12, 3)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(120, dtype=np.uint16).reshape(10, 12) * 500)
    kinds = [(image, "PNG", {}), (deep, "PNG", {}), (image.convert("P"), "PNG", {"transparency": 3})]
    kinds += [(image, "JPEG", {"exif": exif}), (image.convert("CMYK"), "JPEG", {})]
    kinds += [(image, "PNG", {"save_all": True, "append_images": [image.rotate(90)]})]
    return [_saved(functools.partial(each.save, format=form, **more)) for each, form, more in kinds]


def _saved(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def record() -> bytes:
    """A trajectory's ``tf.train.Example``."""
    features: dict[str, bytes | np.ndarray] = {}
    for t in range(2):
        features[f"{t}/action"] = np.full(4, 0.5, np.float32)
        features[f"{t}/endeffector_pos"] = np.full(3, 0.25, np.float32)
        features[f"{t}/image_aux1/encoded"] = bytes(4 * 4 * 3)
    return tfrecord.build_example(features)


def checkpoints() -> bytes:
    """A small checkpoint."""
    content = {
        **{"format": 1, "config": loading.load("quickstart").to_yaml(), "epoch": 1, "step": 2},
        **{"condition_shape": [3, 8, 8], "data_fingerprint": "a", "psnr": None},
        "model": {"a.weight": torch.ones(3, 2), "b": torch.zeros(2)},
    }
    return _saved(functools.partial(torch.save, content))


def pickled(archive: bytes) -> bytes:
    """The list of tensors in a file of ``torch.save``."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return opened.read(next(name for name in opened.namelist() if name.endswith("data.pkl")))


def repacked(archive: bytes, content: bytes) -> bytes:
    """A file of ``torch.save`` with another list of tensors, and checksums that match."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
        for part in old.infolist():
            new.writestr(part.filename, content if part.filename.endswith("data.pkl") else old.read(part))
    return buffer.getvalue()


def refuse(faults: Sequence[str]) -> None:
    """Raise the first of the faults that a reader collected; each must be one line."""
    assert not any("\n" in fault for fault in faults), f"not one line: {faults!r}"
    if faults:
        raise UserError(faults[0])


def read_records(path: Path) -> None:
    for number, each in enumerate(tfrecord.scan(path)):
        bair_record.read_record(str(number), each)


def read_checkpoint(path: Path) -> None:
    loaded = checkpoint.load(path)
    checkpoint.fingerprint(loaded)
    checkpoint.config_of(loaded)


@functools.cache
def readers() -> dict[str, Reader]:
    """All readers by name."""
    saved = checkpoints()
    course = _saved(
        functools.partial(torch.save, {"state_dict": {"w": torch.ones(2)}, "lr": 0.1, "tfr": 0.5})
    )
    config = Path(loading.find("quickstart")).read_bytes()
    numbers = b"0.1,0.2,0.3,0.4\n0.5,0.6,0.7,0.8\n"
    rows = b"step,epoch,loss\n1,0,0.5\n2,0,0.25\n"
    summary = {"psnr": 20.0, "baselines": {"repeat_last_past": {"psnr": 15.0}}, "protocol": {"split": "val"}}
    plan = b"kind: grid\nsource: quickstart\nvary: ['seed=0,1']\nfixed: []\nconfig: {seed: 1}\n"
    clips = b"split,first,last\r\ntrain,0,3\ntrain,4,7\nval,0,3\n"
    frames = {"train": range(8), "val": range(4)}
    expected = {"w": torch.ones(2)}
    return {
        "picture": Reader(images.decode, pictures(), "0.png"),
        "clips.csv": Reader(lambda path: refuse(cuts.read_table(path, frames).faults), [clips], "clips.csv"),
        "robot CSV": Reader(
            lambda path: refuse(csv_table.read(path, path.name, ("a", "b", "c", "d"), 2).faults),
            [numbers, b"a,b,c,d\n" + numbers],
        ),
        "TFRecord": Reader(read_records, [tfrecord.frame(record()) * 2]),
        "TFRecord behind good checksums": Reader(read_records, [record()], packed=tfrecord.frame),
        "YAML config": Reader(loading.load, [config], "config.yaml"),
        "checkpoint": Reader(read_checkpoint, [saved], "last.pt"),
        "checkpoint behind good checksums": Reader(
            read_checkpoint, [pickled(saved)], "last.pt", functools.partial(repacked, saved)
        ),
        "course checkpoint": Reader(lambda path: load_course_checkpoint(path, expected, {}), [course]),
        "course checkpoint behind good checksums": Reader(
            lambda path: load_course_checkpoint(path, expected, {}),
            [pickled(course)],
            packed=functools.partial(repacked, course),
        ),
        "steps.csv and metrics.csv": Reader(
            lambda path: (run.read_rows(path), tables.read_table(path, ["step"], ["loss"])), [rows]
        ),
        "run.json": Reader(files.read_json, [json.dumps({"status": "finished", "steps": 3}).encode()]),
        "metrics.json of an evaluation": Reader(
            lambda path: evaluations.read_summary(path.parents[2]),
            [json.dumps(summary).encode()],
            "eval/val/metrics.json",
        ),
        "sweep.yaml": Reader(lambda path: Plan.read(path.parent), [plan], "sweep.yaml"),
    }


# --- running ------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of the examples of one reader."""

    examples: int = 0
    refused: int = 0
    slowest: float = 0.0

    def one(self, reader: Reader, path: Path, content: bytes) -> None:
        """Read one content; raises what the reader should not raise."""
        path.write_bytes(reader.packed(content))
        began = time.perf_counter()
        try:
            reader.read(path)
        except REFUSALS as error:
            text = str(error)
            assert text and "\n" not in text, f"not one line: {text!r}"
            self.refused += 1
        self.examples += 1
        self.slowest = max(self.slowest, time.perf_counter() - began)
        assert self.slowest < SECONDS, f"{self.slowest:.1f} s"


def fuzz(name: str, examples: int, folder: Path) -> Tally:
    """Feed a reader with ``examples`` changed files; raises at the first failure, with its changes."""
    reader, tally = readers()[name], Tally()
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < 100,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(reader.seeds), CHANGES)
    def check(seed: bytes, changes: list[Change]) -> None:
        tally.one(reader, path, changed(seed, changes))

    check()
    return tally


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000, help="examples for each reader")
    examples, failed, total = parser.parse_args().examples, False, 0
    before = peak_megabytes()
    print(f"{'reader':42}{'inputs':>8}{'refused':>9}{'slowest':>10}")
    for name in readers():
        with tempfile.TemporaryDirectory() as folder:
            try:
                tally = fuzz(name, examples, Path(folder))
            except Exception as error:
                failed = True
                print(f"{name:42} FAILED: {error!r}")
                print("\n".join(getattr(error, "__notes__", [])))
                continue
        total += tally.examples
        print(f"{name:42}{tally.examples:8}{tally.refused:9}{tally.slowest:9.3f}s", flush=True)
    print(f"{total} inputs; memory {before:.0f} MB before, {peak_megabytes():.0f} MB at most")
    return int(failed or peak_megabytes() > MEGABYTES)


if __name__ == "__main__":
    sys.exit(main())
