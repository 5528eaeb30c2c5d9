"""README.md and docs/: every command in them runs, at a small size; every option and picture exists."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cvae, make_clip, make_model, small_overrides, write_frames, write_set
from typer.main import get_command

import cvaecli
from cvaecli import media
from cvaecli.api.demo_server import DemoServer
from cvaecli.cli import app
from cvaecli.config import loading as config
from cvaecli.engine import measure
from cvaecli.run import Run

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "runs" / "README.md")
}
FEW = ("train.max_steps=1", "train.batch_size=2", "eval.clips=1", "eval.frames=2", "eval.sample_strips=false")
NEEDS_A_CLUSTER = ("--gpus", "$SLURM", "$DATA")

FILLED_IN = {
    **{"NAME": "quickstart", "KIND": "psnr", "RUN": "latest", "N": "2"},
    **{"section.key=value": "seed=1", "key=a,b,c": "kl.ratio=0.3,0.5"},
}
"""The words of the README's overview that stand for something else; DIR depends on the kind of data."""


# --- what the pages say -------------------------------------------------------------------------------


def blocks(text: str, language: str = "") -> list[str]:
    """The code blocks in this language; lines that end in a backslash are joined with the next."""
    found = re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)
    return [re.sub(r" *\\\n *", " ", block) for block in found]


def commands(text: str) -> list[str]:
    """The ``cvae`` commands of the code blocks in their order, the turns of a shell loop one by one."""
    lines: list[str] = []
    for block in blocks(text):
        variable, values = "", [""]
        for line in map(str.strip, block.splitlines()):
            if loop := re.match(r"for (\w+) in (.*); do$", line):
                variable, values = f"${loop[1]}", shlex.split(loop[2])
            elif line == "done":
                variable, values = "", [""]
            elif command := re.search(r"(?:^|&& )(cvae \w.*)", line):
                plain = first_choice(without_remark(command[1]))
                lines += [plain.replace(variable, value) if variable else plain for value in values]
    return lines


def without_remark(line: str) -> str:
    """A command without the remark after ``#``, or in a column to its right."""
    line = re.sub(r"^(cvae \S+) +", r"\1 ", line.partition(" #")[0])
    return re.sub(r"(?<=\S) {2,}[a-z].*", "", line).strip()


def first_choice(line: str) -> str:
    """A line of the overview as a command: with what is optional, and with the first of several choices."""
    line = re.sub(r" \[(.*?)\]", r" \1", line).replace(" ...", "")
    line = re.sub(r" \| [^-]*", " ", line)
    return re.sub(r"\|\S+", "", line)


COMMANDS = {name: commands(text) for name, text in PAGES.items()}
COMMANDS["README.md"] += re.findall(r"`(cvae [^`]*)`", PAGES["README.md"])  # within sentences


def test_the_commands_are_found() -> None:
    found = COMMANDS["README.md"]
    assert found[0].startswith("cvae train --config quickstart") and len(found) > 15
    names = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {line.split()[1] for line in found} == names, "the README shows every command"
    assert sum(bool(lines) for lines in COMMANDS.values()) >= 5


# --- they run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny data set of each kind."""
    folder = tmp_path_factory.mktemp("sets")
    dance = write_set(folder / "dance", size=16, test=0)
    write_frames(make_clip(7, size=16), dance / "test/test_img/0", dance / "test/test_label/0")
    sizes = ("--height", "16", "--width", "16", "--train-clips", "3", "--test-clips", "2")
    cvae("data", "synth", folder / "robot", "--kind", "robot", *sizes).good()
    return {"dance": dance, "robot": folder / "robot"}


def write_film(folder: Path) -> None:
    """``film.mp4`` and OpenPose's files for it in ``keypoints/``."""
    clip = make_clip(20, size=16)
    media.write(np.moveaxis(clip.frames, 1, -1), folder / "film.mp4", fps=10)
    (folder / "keypoints").mkdir()
    for number in range(20):
        points = [value for i in range(18) for value in (4 + i % 3 + number % 6, 1 + i / 2, 0.9)]
        people = json.dumps({"people": [{"pose_keypoints_2d": points}]})
        (folder / f"keypoints/film_{number:012}_keypoints.json").write_text(people)


@pytest.fixture(scope="module")
def course_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the course's template."""
    path = tmp_path_factory.mktemp("course") / "x.ckpt"
    torch.save({"state_dict": make_model(size=16).state_dict()}, path)
    return path


def small(line: str, sets: dict[str, Path]) -> list[str]:
    """A page's command with overrides that make it quick, on a tiny data set."""
    words = [FILLED_IN.get(word, word) for word in shlex.split(line)[1:]]
    kind = "dance"
    if "--config" in words:
        name = words[words.index("--config") + 1]
        kind = config.load(name).data.kind
        if words[0] in ("train", "bench", "sweep"):
            given = any(word.startswith("data.root=") for word in words)
            ours = [*small_overrides(name), *FEW, *([] if given else ["data.root=DIR"])]
            keys = {override.partition("=")[0] for override in ours}  # a sweep refuses a key that comes twice
            words = [word for word in words if word.partition("=")[0] not in keys] + ours
    if "--frames" in words:
        words[words.index("--frames") + 1] = "3"
    words += {
        "sweep": ["--dry-run"],
        "bench": ["--steps", "1", "--frames", "2"],
        "convert": ["data.root=DIR", "data.height=16", "data.width=16"],
        "demo": ["--port", "0"],
    }.get(words[0], [])
    return [word.replace("DIR", str(sets[kind])).replace("RUN/", "runs/latest/") for word in words]


@pytest.mark.usefixtures("coarse_figures")
@pytest.mark.parametrize("page", [name for name, lines in COMMANDS.items() if lines])
def test_the_commands_of_a_page_run_in_their_order(
    page: str, sets: dict[str, Path], course_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(FILLED_IN, "FILE", str(course_file))
    monkeypatch.setattr(DemoServer, "serve_forever", lambda server: None)
    monkeypatch.setattr(measure, "measure_peak", lambda device: measure.Peak(20.0, 16.0))
    if any("data import film.mp4" in line for line in COMMANDS[page]):
        write_film(tmp_path)
    if page != "README.md":  # which begins with a training; the others speak of a run that is there
        cvae(*small("cvae train --config quickstart --name mine", sets)).good()
    for line in COMMANDS[page]:
        if line.startswith("cvae export ") and find_spec("onnxruntime") is None:
            continue
        if not any(word in line for word in NEEDS_A_CLUSTER):
            if "train.init=RUN" in line:  # the run that this one starts from
                cvae(*small(re.sub(r"train\.init=\S+", "", line), sets)).good()
            words, before = small(line, sets), Path("runs/latest").resolve()
            cvae(*words).good()
            if words[0] == "convert":  # the commands that follow speak of a trained run
                shutil.rmtree(Path("runs/latest").resolve())
                Run(before).make_latest()
            folder = Path("runs", words[words.index("--name") + 1]) if "--name" in words else None
            if words[0] == "sweep" and str(folder) in " ".join(COMMANDS[page]):
                shutil.copytree("runs/mine", f"{folder}/cell")  # the sweep was only a dry run


def test_the_readmes_python_runs(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    load = cvaecli.load_config

    def load_small(name: str, overrides: list[str]) -> Any:
        return load(name, [*overrides, *small_overrides(name), *FEW, f"data.root={sets['dance']}"])

    monkeypatch.setattr(cvaecli, "load_config", load_small)
    (block,) = blocks(PAGES["README.md"], "python")
    exec(re.sub(r"frames=\d+", "frames=3", block), {})
    assert float(capsys.readouterr().out) > 0 and (tmp_path / "seq.gif").is_file()


# --- what they name exists ----------------------------------------------------------------------------


def options(*names: str) -> set[str]:
    command = get_command(app)
    for name in names:
        command = command.commands[name]  # type: ignore[attr-defined]
    return {option for p in command.params for option in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_exists(page: str) -> None:
    """In code blocks, also of commands that need a cluster, and within sentences."""
    page_text = PAGES[page]
    found = re.findall(r"`cvae ([^`]*)`", page_text)  # in a sentence
    found += re.findall(r"^cvae (.*)", page_text, flags=re.M)
    found += re.findall(r"(?:&&|srun|-m) (?:cvae|cvaecli) (.*)", page_text)
    for line in found:
        names = line.split()[: 2 if line.startswith("data") else 1]
        assert set(re.findall(r"(?<![\w-])--[\w-]+", line)) <= options(*names), line


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_and_linked_file_exists(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target
