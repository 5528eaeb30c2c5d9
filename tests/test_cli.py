"""The command line: what it prints where, exit codes, and one line for a mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Result, cvae, write_set, yaml_config
from PIL import Image
from rich.console import Console

from cvaecli.cli.console import Terminal
from cvaecli.engine.events import StepEvent

VALIDATE_KEYS = {
    *("psnr", "psnr_one_step", "psnr_of_mean_mse", "psnr_per_channel", "ssim", "kl", "frames", "clips"),
    *("baselines", "protocol"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and a trained run ``a``, made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    write_set(folder / "set", size=12)
    config = yaml_config(folder, folder / "set")
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = cvae(
            "train", "--config", config.name, "--name", "a", "data.height=12", "data.width=12"
        ).good()
    finally:
        os.chdir(before)
    (folder / "train.out").write_text(result.out)
    (folder / "train.err").write_text(result.err)
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(home)
    yield home


# --- train --------------------------------------------------------------------------------------------


def test_train_ends_with_a_table_and_what_to_do_next(home: Path) -> None:
    out, err = (home / "train.out").read_text(), (home / "train.err").read_text()
    assert "rollout (own predictions fed back)" in out and "run: runs/a" in out and "cvae plot all" in out
    lines = [line for line in err.splitlines() if "dB" in line]
    assert len(lines) == 2 and all(line.startswith("epoch") and "loss" in line for line in lines), err
    assert "\x1b" not in out + err, "no escape codes into a pipe"


def test_quiet_is_silent_on_stderr(here: Path) -> None:
    result = cvae(
        "train", "-c", "tiny.yaml", "--name", "quiet", "-q", "data.height=12", "data.width=12"
    ).good()
    assert result.err == "" and "PSNR" in result.out
    assert cvae("validate", "a", "-q").good().err == ""


def test_the_data_are_named_first_and_in_every_result(here: Path, tmp_path: Path) -> None:
    source = f"dance layout in {here / 'set'}"
    for command in (["validate", "a"], ["predict", "a"], ["export-gif", "a"], ["train", "--resume", "a"]):
        assert cvae(*command).good().err.splitlines()[0] == f"data: {source}"
    assert f"data: {source};" in cvae("validate", "a", "-q").good().out
    assert json.loads(cvae("validate", "a", "--json").good().out)["protocol"]["data"] == source
    for command in (["predict", "a", "-q"], ["export-gif", "a", "-q"]):
        out = cvae(*command, "--json", "--out", tmp_path / "x.gif").good().out
        assert json.loads(out)["data"] == source


def test_train_as_json(here: Path) -> None:
    result = cvae("train", "-c", "tiny.yaml", "--name", "json", "--json", "data.height=12", "data.width=12")
    assert set(json.loads(result.good().out)) >= VALIDATE_KEYS
    resumed = cvae("train", "--resume", "json", "--json").good()
    assert json.loads(resumed.out)["psnr"] == json.loads(result.out)["psnr"]
    assert "all 6 steps are done" not in resumed.out and "steps are done" in resumed.err


def test_dry_run_leaves_no_run(here: Path) -> None:
    before = set((here / "runs").iterdir())
    assert "parameters" in cvae("train", "-c", "tiny.yaml", "--dry-run", "data.height=12").good().out
    report = json.loads(cvae("train", "-c", "tiny.yaml", "--dry-run", "--json").good().out)
    assert report["parameters"] > 0 and report["steps"] > 0
    assert set((here / "runs").iterdir()) == before


def test_mistakes_of_train(here: Path) -> None:
    cvae("train", "-c", "nope").wrong("nope: no such config")
    cvae("train", "-c", "tiny.yaml", "kl.cylces=3").wrong("did you mean kl.cycles?")
    cvae("train", "-c", "tiny.yaml", "train.epochs=many").wrong("train.epochs", "many")
    cvae("train", "-c", "tiny.yaml", "--name", "a").wrong("runs/a", "exists")
    cvae("train", "-c", "tiny.yaml", "data.root=nowhere").wrong("nowhere")
    cvae("train", "-c", "tiny.yaml", "runtime.device=cuda:77").wrong("runtime.device")
    cvae("train", "-c", "tiny.yaml", "epochs").wrong("epochs: not an override", "section.key=value")
    for command in ("train", "bench"):
        for name in ("tiny.yaml", "cyclical.yaml", "cyclical", "reports/pose-floor"):
            cvae(command, name).wrong(f"did you mean --config {name}?")
    cvae("train", "--resume", "nope").wrong("nope: no such run", "a")
    cvae("train", "--resume", "a", "optim.lr=1").wrong("optim.lr")
    for option in (("--dry-run",), ("--name", "b"), ("--config", "tiny.yaml")):
        cvae("train", "--resume", "a", *option).usage("--resume continues a run with its own config")


def test_debug_shows_the_traceback(here: Path) -> None:
    result = cvae("train", "-c", "nope", "--debug")
    assert result.code == 1 and type(result.exception).__name__ == "UserError"


def test_a_failed_training_exits_1(here: Path) -> None:
    result = cvae(
        *("train", "-c", "tiny.yaml", "--name", "broken", "-q", "optim.lr=1e30", "train.grad_clip=null"),
        *("optim.name=sgd", "eval.every=0", "train.max_skips=0"),
    )
    result.wrong("training stopped", "step", code=1)


# --- validate -----------------------------------------------------------------------------------------


def test_validate_json_is_one_object_on_stdout(here: Path) -> None:
    metrics = json.loads(cvae("validate", "a", "--json").good().out)
    assert set(metrics) >= VALIDATE_KEYS
    assert metrics["frames"] == 6 and len(metrics["clips"]) == 1 and metrics["clips"][0]["name"]
    assert set(metrics["baselines"]) == {"repeat_last_past", "mean_frame"}
    assert metrics["protocol"]["split"] == "val" and metrics["protocol"]["samples"] == 1
    assert metrics == json.loads((here / "runs/a/eval/val/metrics.json").read_text())


def test_validate_takes_samples_overrides_and_a_checkpoint(here: Path) -> None:
    path = "runs/a/checkpoints/last.pt"
    metrics = json.loads(cvae("validate", path, "eval.prior=mean", "--samples", 2, "--json").good().out)
    assert metrics["protocol"]["checkpoint"] == "last.pt" and metrics["protocol"]["prior"] == "mean"
    assert "best sample of each clip" in cvae("validate", "a", "--samples", 2).good().out


def test_mistakes_of_validate(here: Path) -> None:
    cvae("validate", "nope").wrong("nope: no such run")
    cvae("validate", "a", "train.epochs=3").wrong("train.epochs: is fixed by the training")
    cvae("validate", "a", "eval.sampels=3").wrong("did you mean eval.samples?")
    cvae("validate", "a", "--split", "nope").wrong("nope")
    cvae("validate", "a", "--split", "test").wrong("no true frames")
    cvae("validate", "a", "b").usage("one RUN at most")
    cvae("validate", "a", "--samples", 0).usage("--samples")
    cvae("validate", "tiny.yaml").wrong("tiny.yaml: damaged, or not a checkpoint")


def test_without_any_run_the_message_names_cvae_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["validate"], ["predict"], ["export-gif"], ["plot", "psnr"]):
        cvae(*command).wrong("no run with a checkpoint", "cvae train")


# --- predict ------------------------------------------------------------------------------------------


def written(result: Result) -> list[Path]:
    return [Path(line) for line in result.good().out.splitlines()]


def test_predict_in_every_form(here: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    for name in ("x.gif", "x.npz", "x.png", "x.mp4"):
        (path,) = written(cvae("predict", "a", "--frames", 5, "--out", tmp_path / name))
        assert path == tmp_path / name and path.stat().st_size > 100
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.size == (396, 396) and getattr(gif, "n_frames", 1) == 5
    written(cvae("predict", "a", "--frames", 5, "--out", tmp_path / "x.gif", "--scale", 1))
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.size == (12, 12)
    assert np.load(tmp_path / "x.npz")["frames"].shape == (5, 12, 12, 3)
    (folder,) = written(cvae("predict", "a", "--out", f"{tmp_path}/frames/", "--scale", 2))
    assert sorted(p.name for p in folder.iterdir()) == [f"{t}.png" for t in range(7)]
    with Image.open(folder / "6.png") as picture:
        assert picture.size == (24, 24)


def test_predict_goes_into_the_run_when_not_told_where(here: Path) -> None:
    assert written(cvae("predict", "a")) == [Path("runs/a/predictions/test-0.gif")]
    own = Path("runs/a/predictions/mine.npz")
    assert written(cvae("predict", "a", "--out", own)) == [own]
    paths = json.loads(cvae("predict", "a", "--sequence", "all", "--split", "test", "--json").good().out)[
        "written"
    ]
    assert [Path(p).name for p in paths] == ["test-0.gif", "test-1.gif"]


def test_sequences_samples_and_the_submission(here: Path, tmp_path: Path) -> None:
    paths = written(
        cvae(
            *("predict", "a", "--out", tmp_path / "x.npz", "--sequence", "all", "--samples", 2),
            *("--submission", tmp_path / "submission.csv"),
        )
    )
    names = [f"x-{s}-s{k}.npz" for s in range(2) for k in range(2)]
    assert [path.name for path in paths] == [*names, "submission.csv"]
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert lines[0].startswith("id,0,1,") and [line.split(",")[0] for line in lines[1:]] == [
        str(k) for k in range(14)
    ]


def test_mistakes_of_predict(here: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.gif")
    cvae("predict", "a", *out, "--frames", 8).wrong("--frames 8", "2 to 7")
    cvae("predict", "a", *out, "--frames", 0).usage("--frames")
    cvae("predict", "a", *out, "--sequence", 5).wrong("--sequence 5", "0 to 1")
    cvae("predict", "a", *out, "--sequence", "some").usage("a number or 'all'")
    cvae("predict", "a", *out, "--split", "nope").wrong("nope")
    cvae("predict", "a", "--out", tmp_path / "x.bmp").wrong("unknown suffix")
    cvae("predict", "a", "--out", ".").wrong("not an empty folder")
    cvae("predict", "a", *out, "data.root=nowhere").wrong("nowhere")
    cvae("predict", "a", *out, "kl.stop=1").wrong("kl.stop")
    assert not list(tmp_path.iterdir())


# --- the others ---------------------------------------------------------------------------------------


def test_export_gif(here: Path, tmp_path: Path) -> None:
    assert written(cvae("export-gif", "a", "--out", tmp_path / "x.gif")) == [tmp_path / "x.gif"]
    assert written(cvae("export-gif", "a")) == [Path("runs/a/predictions/val-0-panels.gif")]
    cvae("export-gif", "a", "--frames", 99).wrong("--frames 99")


@pytest.mark.usefixtures("coarse_figures")
def test_plot(here: Path, tmp_path: Path) -> None:
    paths = written(cvae("plot", "all", "a"))
    assert len(paths) >= 5 and all(path.parent == Path("runs/a/plots") for path in paths)
    comparison = written(cvae("plot", "psnr", "runs/a", "runs/a/", "--out", tmp_path / "x.png"))
    assert comparison == [tmp_path / "x.png"] and comparison[0].stat().st_size > 1000
    cvae("plot", "psnr", "nope").wrong("nope: no such run")
    cvae("plot", "nonsense", "a").usage("nonsense")
    assert written(cvae("plot", "grid", "a", "--out", tmp_path / "x.gif"))[0].read_bytes().startswith(b"GIF")


def test_data_synth_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ("--height", 16, "--width", 16)
    cvae("data", "synth", "s", *sizes, "--frames", 12, "--train-clips", 1, "--test-clips", 1).good()
    report = cvae("data", "check", "s", *sizes, "--json").good()
    assert json.loads(report.out)["faults"] == []
    assert "train" in cvae("data", "check", "s", *sizes).good().out
    cvae("data", "synth", "s", *sizes).wrong("s")
    next(iter((tmp_path / "s/train/train_label").iterdir())).write_bytes(b"broken")
    bad = cvae("data", "check", "s", *sizes)
    assert bad.code == 2 and bad.out.startswith("fault: ") and "Traceback" not in bad.err
    bad = cvae("data", "check", "s", *sizes, "--json")
    assert bad.code == 2 and len(json.loads(bad.out)["faults"]) == 1


def test_version_and_help() -> None:
    assert cvae("--version").good().out.startswith("cvae ")
    commands = ("train", "validate", "predict", "plot", "export-gif", "data")
    for command in commands:
        assert command in cvae("--help").good().out
        assert "Usage" in cvae(command, "--help").good().out
    assert cvae("nonsense").code == 2 and cvae().code in (0, 2)


def test_shells_complete_commands_and_options() -> None:
    """What a shell runs when the tab key is pressed, see `cvae --install-completion`."""
    environment = {
        **os.environ,
        "_CVAE_COMPLETE": "complete_bash",
        "COMP_WORDS": "cvae pr",
        "COMP_CWORD": "1",
    }
    code = "from cvaecli.cli import app; app(prog_name='cvae')"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.split() == ["predict"], result.stderr


def test_a_full_disk_and_a_forbidden_folder_are_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "runs/x/config.yaml")

    monkeypatch.setattr("cvaecli.run.Run.write_config", full)
    cvae("train", "-c", "tiny.yaml", "--name", "full", "-q").wrong("No space left", "config.yaml", code=1)


def test_out_of_memory_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("cvaecli.engine.fit.Trainer._train_step", out_of_memory)
    result = cvae("train", "-c", "tiny.yaml", "--name", "memory", "-q")
    result.wrong("out of memory", "train.batch_size", code=1)


# --- how it starts ------------------------------------------------------------------------------------

HEAVY = ("torch", "torchvision", "matplotlib", "imageio", "imageio_ffmpeg", "torchmetrics", "skimage")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["predict", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom cvaecli.cli import main\n"
        f"sys.argv = ['cvae', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    "module", ["cvaecli", "cvaecli.cli.console", "cvaecli.config.loading", "cvaecli.run", "cvaecli.errors"]
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --- the terminal -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 150])
def test_live_bars_show_what_a_training_does(width: int) -> None:
    """On a terminal: bars before the totals are known, a line of values, a new bar for each epoch."""
    console, shown_on = Terminal(), io.StringIO()
    console.err = Console(file=shown_on, force_terminal=True, width=width, color_system=None)
    with console.task("Preparing data") as advance:
        advance(1, 2)
    with console.training(3):
        terms = {"loss": 1.25, "recon": 0.5, "kl": 123.45, "grad_norm": 1.0}
        console.step(StepEvent(1, 0, 1, 2, 0.125, 0.75, 1.0, 1e-3, terms, 321.0))
        console.step(StepEvent(2, 0, 2, 2, 0.25, 0.75, 0.0, 1e-3, None, None))
        console.validating(0, 1887)
        console._bars.refresh() if console._bars else None
        console.validating(1887, 1887)
        console.step(StepEvent(3, 1, 1, 2, 0.25, 0.5, 0.5, 1e-3, None, None))
        assert console._bars is not None
        console._bars.refresh()
        steps = console._bars.tasks[1]
        assert (steps.completed, steps.total, steps.finished) == (1, 2, False)
        console._bars.refresh()
    shown = shown_on.getvalue()
    for text in ("loss", "1.2500", "recon", "kl", "beta", "0.250", "tfr", "0.50", "321 frames/s", "ETA"):
        assert text in shown, text
    assert "0:00:00" in shown and "0/1887" in shown and "…" not in shown, "nothing is cut"


def test_markup_in_messages_is_text() -> None:
    console = Terminal()
    with console.err.capture() as captured:
        console.warn("data[0]: odd [bold]name[/]")
        console.error("runs/[x]: no", "try [y]")
    assert "data[0]: odd [bold]name[/]" in captured.get() and "runs/[x]: no (try [y])" in captured.get()
