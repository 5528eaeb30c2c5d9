"""What must not lose a run: deaths around a save, a second process, moved folders, edited data, signals."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import QUICK, cvae, make_config, write_set
from PIL import Image

from cvaecli import api, checkpoint, tensor_files
from cvaecli.api import prediction, training, validation
from cvaecli.config.schema import RunConfig
from cvaecli.data import images
from cvaecli.data.loading import check
from cvaecli.engine.events import StepEvent
from cvaecli.errors import CvaeError, UserError
from cvaecli.reporter import Silent
from cvaecli.run import Run, read_rows
from cvaecli.synthetic import dancer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_set(tmp_path_factory.mktemp("data") / "set")
    for path in root.rglob("*.png"):  # uncompressed: other pixels, same size
        Image.open(path).save(path, compress_level=0)
    return root


def settings(data: Path, *overrides: str) -> RunConfig:
    small = ("train.sampling=windows", "eval.sample_strips=false", "eval.frames=2", "runtime.threads=1")
    return make_config(f"data.root={data}", *small, *overrides, model=QUICK)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs of a few steps."""
    return api.train(settings(data), name="whole", runs=tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(whole.path, tmp_path / "copy")))


def same(run: Run, other: Run) -> bool:
    one, two = (checkpoint.fingerprint(checkpoint.load(r.checkpoint_path("last"))) for r in (run, other))
    tables = (
        [
            {key: row[key] for key in row if key not in ("time", "frames_per_s")}
            for row in read_rows(r.path / name)
        ]
        for r in (run, other)
        for name in ("metrics.csv", "steps.csv")
    )
    metrics, steps, other_metrics, other_steps = tables
    return one == two and metrics == other_metrics and steps == other_steps


class Lines(Silent):
    """Keeps notes and warnings, and does something at a step."""

    def __init__(self, at: int = 0, act: Any = None) -> None:
        self.lines: list[str] = []
        self._at, self._act = at, act

    def note(self, text: str) -> None:
        self.lines.append(text)

    warn = note

    def step(self, event: StepEvent) -> None:
        if event.step == self._at:
            self._act()


# --- around a save ------------------------------------------------------------------------------------


class DiedError(BaseException):
    """The process ends here."""


def die() -> None:
    raise DiedError


@pytest.mark.parametrize("when", ["before", "after"])
def test_no_row_is_lost_or_doubled_by_a_death_beside_a_save(
    data: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    usual = training.checkpoints.save_last

    def dies(run: Run, content: dict[str, Any]) -> None:
        if when == "after" or (run.path / "checkpoints/last.pt").exists():
            if when == "after":
                usual(run, content)
            raise DiedError
        usual(run, content)

    monkeypatch.setattr(training.checkpoints, "save_last", dies)
    with pytest.raises(DiedError):
        api.train(settings(data), name="a", runs=tmp_path)
    monkeypatch.undo()
    assert same(api.resume("a", runs=tmp_path), whole)


def test_the_end_of_a_table_that_a_power_failure_left_is_written_again(copy: Run, whole: Run) -> None:
    with (copy.path / "steps.csv").open("ab") as file:
        file.write(bytes(50) + b"\n" + b"7,1,0.")
    assert same(api.resume(copy.path), whole)


def test_a_table_that_a_crash_cut_in_half_is_whole_after_resuming(
    data: Path, whole: Run, tmp_path: Path
) -> None:
    with pytest.raises(DiedError):
        api.train(settings(data), name="a", runs=tmp_path, reporter=Lines(3, die))
    steps = tmp_path / "a" / "steps.csv"
    steps.write_bytes(steps.read_bytes()[: steps.stat().st_size // 2])
    assert same(api.resume("a", runs=tmp_path), whole)


# --- one training at a time, in one place -------------------------------------------------------------


def test_a_second_process_is_refused_and_a_dead_ones_lock_is_not_in_the_way(copy: Run) -> None:
    program = (
        "import pathlib, sys; from cvaecli.run import Run\nwith Run(pathlib.Path(sys.argv[1])).locked():\n"
    )
    command = [sys.executable, "-c", program + " print(flush=True); input()", str(copy.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline()
    with pytest.raises(UserError, match="another process is training this run"):
        api.resume(copy.path)
    holder.kill()
    holder.communicate()
    api.resume(copy.path)


def test_a_run_that_is_moved_while_it_trains_stops_and_goes_on_there(
    data: Path, whole: Run, tmp_path: Path
) -> None:
    old, new = tmp_path / "a", tmp_path / "elsewhere"
    with pytest.raises(CvaeError, match="was it moved or deleted") as caught:
        api.train(settings(data), name="a", runs=tmp_path, reporter=Lines(3, lambda: old.rename(new)))
    assert "--resume" in caught.value.hint and not old.exists()
    assert same(api.resume(new), whole)


# --- what changed between two sessions ----------------------------------------------------------------


def edited(data: Path, folder: Path) -> Path:
    root = Path(shutil.copytree(data, folder))
    path = root / "train/train_img/3.png"
    before = path.stat()
    image = Image.open(path)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(path, compress_level=0)
    assert path.stat().st_size == before.st_size
    return root


def test_other_pixels_in_a_file_of_the_same_size_are_noticed(copy: Run, data: Path, tmp_path: Path) -> None:
    root = edited(data, tmp_path / "edited")
    with pytest.raises(UserError, match="not the data this run was trained on"):
        api.resume(copy.path, [f"data.root={root}"])


def test_an_edit_that_keeps_even_the_time_is_harmless(data: Path, tmp_path: Path) -> None:
    """The clips come from the cache, so that the training goes on with the pixels it began with."""
    root = Path(shutil.copytree(data, tmp_path / "set"))
    began = api.train(settings(root, "train.epochs=1"), name="a", runs=tmp_path)
    path = root / "train/train_img/3.png"
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    api.resume(began.path, ["train.epochs=2"])
    assert began.info()["status"] == "finished"


def test_a_changed_architecture_is_refused_by_name_and_harmless_changes_are_listed(
    copy: Run, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"model\.widths \[16, 16\] -> \[32, 32\]"):
        api.resume(copy.path, ["model.widths=[32,32]"])
    reporter = Lines()
    api.resume(copy.path, ["train.log_every=5", "model.widths=[16,16]"], reporter=reporter)
    assert any("changed settings: train.log_every 2 -> 5" in line for line in reporter.lines)
    path = copy.path / "config.yaml"
    path.write_text(path.read_text().replace("log_every: 5", "log_every: 7"))
    reporter = Lines()
    api.resume(copy.path, reporter=reporter)
    assert any("train.log_every" in line and "which are used" in line for line in reporter.lines)
    path.write_text(path.read_text().replace("- 16", "- 32"))
    with pytest.raises(UserError, match=r"config\.yaml.*model\.widths"):
        api.resume(copy.path)


# --- one machine, one result --------------------------------------------------------------------------


def test_deterministic_runs_are_equal(data: Path, tmp_path: Path) -> None:
    config = settings(data, "runtime.deterministic=true", "train.epochs=1")
    one, other = (api.train(config, name=name, runs=tmp_path) for name in ("a", "b"))
    assert torch.are_deterministic_algorithms_enabled() and same(one, other)
    torch.use_deterministic_algorithms(False)


# --- signals ------------------------------------------------------------------------------------------


def stopped(*_: Any, **__: Any) -> Any:
    signal.raise_signal(signal.SIGTERM)
    pytest.fail("the command went on after the signal")


def stopped_rollout(*_: Any, **__: Any) -> Iterator[Any]:
    yield torch.zeros(1, 2, 3, 8, 8)
    stopped()


COMMANDS = {
    "predict": (prediction, "rollout", stopped_rollout, ["predict", "RUN", "--out", "OUT/x.gif"]),
    "export-gif": (prediction, "rollout", stopped_rollout, ["export-gif", "RUN", "--out", "OUT/x.gif"]),
    "validate": (validation, "evaluate", stopped, ["validate", "RUN"]),
    "data synth": (
        dancer,
        "_save",
        stopped,
        ["data", "synth", "OUT/set", "--frames", "2", "--train-clips", "1"],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_ends_a_command_cleanly(
    command: str, copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, replacement, words = COMMANDS[command]
    monkeypatch.setattr(module, name, replacement)
    (tmp_path / "out").mkdir()
    before = set(tmp_path.rglob("*"))
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    places = {"RUN": str(copy.path), "OUT": str(tmp_path / "out")}
    cvae(*(places.get(w, w.replace("OUT", places["OUT"])) for w in words)).wrong("stopped", code=143)
    assert set(tmp_path.rglob("*")) == before
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import signal, time\nfrom cvaecli.signals import stoppable\n"
        "with stoppable():\n"
        "    try:\n        signal.raise_signal(signal.SIGINT)\n"
        "    finally:\n        signal.raise_signal(signal.SIGINT); time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGINT


# --- all faults at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [False, True])
def test_a_check_shows_lines_or_on_a_terminal_a_table(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    root = Path(shutil.copytree(data, tmp_path / "set"))
    (root / "train/train_img/3.png").write_bytes(b"")
    Image.new("RGB", (8, 8), "white").save(root / "val/val_label/2.png")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    result = cvae("data", "check", root)
    assert result.code == 2
    assert ("remedy" in result.out) == terminal
    assert (
        "fault: train/train_img/3.png: the file is empty (0 bytes); copy it again" in result.out
    ) != terminal
    assert "train/train_img/3.png" in result.out


def test_frames_of_one_colour_and_blank_labels_are_warned_of(data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data, tmp_path / "set"))
    Image.new("RGB", (8, 8), "red").save(root / "train/train_img/3.png")
    for number in (2, 3):
        Image.new("RGB", (8, 8), "white").save(root / f"val/val_label/{number}.png")
    warnings = check(root, height=8, width=8, cuts="none").warnings
    assert any(line.startswith("train: frames 3: of one colour") for line in warnings)
    assert any(line.startswith("val: labels 2-3: blank") for line in warnings)


# --- files from a stranger ----------------------------------------------------------------------------


def test_nothing_is_fetched_from_a_network(
    data: Path, copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any, **__: Any) -> Any:
        pytest.fail("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, closed)
    monkeypatch.setattr(socket, "getaddrinfo", closed)
    api.train(settings(data, "train.epochs=1"), name="a", runs=tmp_path)
    for words in (
        ["predict", "RUN", "--out", f"{tmp_path}/x.gif"],
        ["report", "RUN"],
        ["data", "check", str(data)],
    ):
        cvae(*(word.replace("RUN", str(copy.path)) for word in words)).good()


def refused(path: Path) -> str:
    with pytest.raises(tensor_files.DamagedError) as caught:
        tensor_files.read(path)
    return str(caught.value)


def test_a_checkpoint_that_would_unpack_to_more_than_it_holds_is_refused_before(copy: Run) -> None:
    path = copy.checkpoint_path("last")
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
        new.writestr("last/data/bomb", bytes(50_000_000))
    assert buffer.tell() < 2_000_000
    path.write_bytes(buffer.getvalue())
    assert "compressed" in refused(path)


def test_a_tensor_that_claims_more_values_than_it_has_is_refused(copy: Run) -> None:
    path = copy.checkpoint_path("last")
    content = checkpoint.load(path)
    content["model"] = {"w": torch.zeros(1).expand(2**40)}
    torch.save(content, path)
    with pytest.raises(UserError, match="not a checkpoint of this tool"):
        checkpoint.load(path)


def test_a_state_that_does_not_fit_is_one_line(copy: Run) -> None:
    path = copy.checkpoint_path("last")
    content = checkpoint.load(path)
    del content["trainer"]["optimizer"]["state"][0]["exp_avg"]
    content["trainer"].pop("sums")
    torch.save(content, path)
    with pytest.raises(UserError, match="does not fit") as caught:
        api.resume(copy.path)
    assert "\n" not in str(caught.value)


def test_a_picture_of_60000_by_60000_is_refused_unread(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    raw = buffer.getvalue()
    raw = raw[:12] + head + struct.pack(">I", zlib.crc32(head)) + raw[33:]
    (tmp_path / "0.png").write_bytes(raw)
    with pytest.raises(images.ImageError, match="too large"):
        images.decode(tmp_path / "0.png")


def test_links_to_themselves_are_faults(data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data, tmp_path / "set"))
    loops = [root / "train/train_img/3.png", root / "test/test_img/loop", root / "test/test_label/1"]
    for path in loops:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(path.name)
    report = check(root, height=8, width=8)
    assert any(line.startswith("train/train_img/3.png: a link to nothing") for line in report.faults)
    assert any(line.startswith("test/test_label/1: missing") for line in report.faults)
    assert any(line.startswith("test/test_img/loop: ignored") for line in report.warnings)
