"""Data kinds: declared once, read by schema and command line, extended by one class and one entry."""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from helpers import cvae, in_one_line

import cvaecli
from cvaecli.config import loading as config
from cvaecli.config.schema import DataConfig
from cvaecli.data.kinds import KINDS, parts
from cvaecli.data.loading import load
from cvaecli.errors import UserError

MakeSet = Callable[..., Path]


def run(code: str, *path: Path) -> str:
    """Runs Python code in a process of its own; ``path`` comes first where it looks for modules."""
    home = Path(cvaecli.__file__).parents[1]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, home)))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", KINDS)
def test_the_schema_has_the_declared_defaults(name: str) -> None:
    kind = KINDS[name]
    data = DataConfig.model_validate({"kind": name})
    assert (data.height, data.width) == (kind.height, kind.width)
    assert (data.n_past, data.n_future) == (kind.n_past, kind.n_future)
    assert DataConfig.model_validate({"kind": name, "n_past": 3}).n_past == 3
    assert DataConfig.model_validate(data.model_dump()) == data


def test_a_key_that_is_given_is_not_defaulted() -> None:
    data = DataConfig.model_validate({"kind": "robot", "height": 32, "n_future": None})
    assert (data.height, data.width, data.n_future) == (32, KINDS["robot"].width, None)
    assert DataConfig.model_validate(data.model_dump()) == data


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    for value in ("robots", "3", "[robot]"):
        with pytest.raises(UserError, match=r"data\.kind: .* input should be 'dance' or 'robot'"):
            config.load("quickstart", [f"data.kind={value}"])


def test_the_command_line_has_the_declared_defaults(tmp_path: Path) -> None:
    help_text = in_one_line(cvae("data", "synth", "--help").good().out)
    robot, dance = KINDS["robot"], KINDS["dance"]
    assert f"(dance: {dance.height}, robot: {robot.height})" in help_text
    assert f"(dance: {dance.built_in.frames}, robot: {robot.built_in.frames})" in help_text
    refused = cvae("data", "synth", tmp_path / "d", "--noise", 1, "--stray", 0.1)
    refused.wrong("--noise, --stray: not an option of a dance set", "--kind robot")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("name", KINDS)
def test_the_built_in_set_is_as_declared(name: str) -> None:
    kind = KINDS[name]
    generator = import_module(kind.built_in.module)
    usual = {key: value.default for key, value in inspect.signature(generator.generate).parameters.items()}
    assert (usual["height"], usual["width"]) == (kind.height, kind.width)
    assert usual["frames"] == kind.built_in.frames
    counts = {split: usual[split] or usual["test"] for split in ("train", "val", "test")}
    assert counts == kind.built_in.clips
    made = generator.generate(16, 16, frames=3, train=1, val=2, test=1)
    assert {split: len(clips) for split, clips in made.items()} == {"train": 1, "val": 2, "test": 1}
    for clip in (clip for clips in made.values() for clip in clips):
        vectors = (3, sum(map(len, kind.columns.values())))
        assert clip.condition.shape == (vectors if kind.columns else clip.frames.shape)


def test_parts_of_a_condition() -> None:
    assert KINDS["robot"].condition_parts == {"actions": slice(0, 4), "positions": slice(4, 7)}
    assert KINDS["dance"].condition_parts == {}
    assert parts({"actions": "abc", "positions": ""}) == {"actions": slice(0, 3), "positions": slice(3, 3)}


@pytest.mark.parametrize("name", KINDS)
def test_a_cached_built_in_set_imports_no_generator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = import_module(KINDS[name].built_in.module)
    monkeypatch.setattr(
        generator, "generate", functools.partial(generator.generate, frames=3, train=1, test=1)
    )
    made = load(None, kind=name, height=16, width=20)
    assert made.condition_parts == KINDS[name].condition_parts
    code = (
        "import sys\nfrom cvaecli.data.loading import load\n"
        f"print(load(None, kind={name!r}, height=16, width=20).fingerprint)\n"
        "print([name for name in sys.modules if name.startswith('cvaecli.synthetic.')])"
    )
    assert run(code).split() == [made.fingerprint, "[]"]


TOY = '''
import numpy as np
from cvaecli.data.cache import Rows
from cvaecli.data.images import File
from cvaecli.data.report import Report

class Toy:
    """Clips as arrays of grey pictures, one file per split."""
    val_from_train = False
    remedies = {split: f"add {split}.npy" for split in ("train", "val", "test")}

    def __init__(self, root):
        self.root, self.report = root, Report()
        self.paths = sorted(root.glob("*.npy"))
        self.files = [File(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in self.paths]

    @classmethod
    def recognises(cls, root):
        return any(root.glob("*.npy"))

    @property
    def splits(self):
        return {path.stem for path in self.paths}

    def nbytes(self, height, width):
        return 0

    def convert(self, writer, cut, height, width, progress):
        for path in self.paths:
            grey = np.load(path)
            frames = writer.array(f"{path.stem}-frames", (len(grey), 3, height, width))
            frames[:] = grey[:, None, None, None]
            condition = writer.array(f"{path.stem}-condition", (len(grey), 2), "float32")
            rows = [Rows(f"{path.stem}-{part}", 0, len(grey)) for part in ("frames", "condition")]
            writer.clip(path.stem, f"{path.stem}/0", *rows)
        return Report(summary=[f"{len(self.paths)} files"])
'''
USE_TOY = """
from pathlib import Path
from cvaecli.data.kinds import KINDS, BuiltIn, Kind
built_in = BuiltIn("toy_kind", 6, {"train": 1, "val": 1, "test": 1})
KINDS["toy"] = Kind("toy_kind:Toy", built_in, 8, 12, n_future=3)

from cvaecli.config import loading
from cvaecli.data.loading import kind_of, load
assert loading.load("quickstart", ["data.kind=toy"]).data.n_future == 3
root = Path(ROOT)
assert kind_of(root) == "toy"
print(load(root, kind="toy", height=8, width=12).splits["val"][0].frames[:, 0, 0, 0].tolist())
from typer.testing import CliRunner
from cvaecli.cli import app
told = CliRunner().invoke(app, ["data", "check", str(root), "--quiet"])
assert told.exit_code == 0, told.output
print(told.stdout)
"""


def test_a_new_kind_is_one_class_and_one_entry(tmp_path: Path) -> None:
    (tmp_path / "toy_kind.py").write_text(TOY)
    (tmp_path / "set").mkdir()
    for split in ("train", "val"):
        np.save(tmp_path / "set" / f"{split}.npy", np.arange(6, dtype=np.uint8))
    out = run(f"ROOT = {str(tmp_path / 'set')!r}\n{USE_TOY}", tmp_path).splitlines()
    assert out[0] == "[0, 1, 2, 3, 4, 5]"
    assert "2 files" in out and "no faults: the data set can be used" in out


def test_another_version_of_a_reader_converts_again(dance_set: MakeSet, tmp_path: Path) -> None:
    """A change in a reader, or in the decoder that all readers share, makes older cache entries unused."""
    root = dance_set(size=(24, 20), label_size=(24, 20))
    code = (
        "from pathlib import Path\nfrom cvaecli.data.loading import load\n"
        f"data = load(Path({str(root)!r}), height=10, width=12)\n"
        "print(data.converted, data.fingerprint)"
    )
    copy = tmp_path / "copy"
    shutil.copytree(
        Path(cvaecli.__file__).parent, copy / "cvaecli", ignore=shutil.ignore_patterns("__pycache__")
    )
    first = run(code, copy).split()
    assert first[0] == "True" and run(code, copy).split() == ["False", first[1]]
    for name, old, new in (
        ("images.py", "Image.Resampling.BILINEAR", "Image.Resampling.NEAREST"),
        ("dance/source.py", '"train", "val", "test"', '"train", "val", "test",'),
    ):
        path = copy / "cvaecli" / "data" / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        again = run(code, copy).split()
        assert again[0] == "True"
        assert again[1] != first[1], "the other filter"
