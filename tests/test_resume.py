"""An interrupted and resumed training equals an uninterrupted one bit for bit, whatever ended it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import QUICK, make_clip, make_config, make_trainer, run_events, write_set

from cvaecli import api, checkpoint
from cvaecli.config.schema import RunConfig
from cvaecli.engine.events import EpochEvent, StepEvent
from cvaecli.engine.fit import Trainer
from cvaecli.errors import UserError
from cvaecli.reporter import Silent
from cvaecli.run import Run, read_rows
from cvaecli.signals import InterruptedRun

EVERYTHING: dict[str, dict[str, Any]] = {
    "train": {
        "epochs": 4,
        "batch_size": 1,
        "log_every": 3,
        "interpolate_every": 2,
        "augment": {"flip": 0.5, "shift": [1, 1], "zoom": 0.1},
    },
    "teacher_forcing": {"ratio": 0.7, "decay": 0.2, "coin": "step", "mode": "blend", "noise": 0.05},
    "optim": {"name": "adamw", "schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.01},
    "kl": {"schedule": "cyclical", "cycles": 2},
}
AVERAGED = {**EVERYTHING, "train": {**EVERYTHING["train"], "interpolate_every": 0, "ema": 0.9}}
"""The other kind of average of weights; the two exclude each other."""


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit, but for clocks."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds"}:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_equal(one, other, f"{where}/{k}")
    else:
        assert a == b, where


def stored(values: dict[str, Any]) -> dict[str, Any]:
    """Through a file, as a run does it."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def continued(config: RunConfig, stop: Callable[[Any], bool]) -> Trainer:
    """Two trainers: the first until ``stop(event)``, the second from its state."""
    first = make_trainer(config)
    for event in first.events():
        if stop(event):
            break
    state, kept = stored(first.state_dict()), stored(first.trained.state_dict())
    second = make_trainer(config)
    second.load_state_dict(state, kept)
    run_events(second)
    return second


# --- the engine ---------------------------------------------------------------------------------------

KINDS = {"blended": EVERYTHING, "averaged": AVERAGED}


@pytest.fixture(scope="module", params=KINDS)
def uninterrupted(request: pytest.FixtureRequest) -> Trainer:
    """A trainer that has done its 4 epochs of 4 steps."""
    trainer = make_trainer(make_config(**KINDS[request.param]))
    run_events(trainer)
    return trainer


@pytest.mark.parametrize("step", [1, 4, 6, 7, 8])
def test_resumed_after_any_step_equals_uninterrupted(uninterrupted: Trainer, step: int) -> None:
    """Within an epoch, after its last step, and in the epoch after a blend of weights."""
    whole = uninterrupted
    resumed = continued(whole.config, lambda event: isinstance(event, StepEvent) and event.step == step)
    assert whole.step == resumed.step == 16
    assert_equal(resumed.state_dict(), whole.state_dict())
    assert_equal(dict(resumed.trained.state_dict()), dict(whole.trained.state_dict()))


def test_resumed_after_an_epoch_equals_uninterrupted(uninterrupted: Trainer) -> None:
    resumed = continued(
        uninterrupted.config, lambda event: isinstance(event, EpochEvent) and event.epoch == 1
    )
    assert_equal(resumed.state_dict(), uninterrupted.state_dict())


def test_taking_the_state_changes_nothing() -> None:
    config = make_config(**EVERYTHING)
    plain, watched = make_trainer(config), make_trainer(config)
    for event, other in zip(plain.events(), watched.events(), strict=True):
        watched.state_dict()
        one, two = (e.row if isinstance(e, EpochEvent) else e.terms for e in (event, other))
        if one is None or two is None:
            assert one is two
        else:
            assert {**one, "time": 0} == {**two, "time": 0}


@pytest.mark.parametrize(
    "override",
    [
        *("eval.frames=2", "eval.clips=1", "eval.samples=2", "eval.prior=mean", "eval.average_flips=true"),
        "eval.batch_size=1",
    ],
)
def test_a_best_value_of_another_protocol_is_not_compared(override: str) -> None:
    """A validation of fewer frames or more samples has another PSNR for the same weights."""
    val = [make_clip(6, "v", seed=2), make_clip(6, "w", seed=3)]
    first = make_trainer(make_config(), val=val)
    run_events(first)
    second = make_trainer(make_config(override), val=val)
    second.load_state_dict(stored(first.state_dict()), stored(first.trained.state_dict()))
    same = override == "eval.batch_size=1"
    assert first.best_psnr is not None and second.best_psnr == (first.best_psnr if same else None)


# --- the run folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data") / "set")


CONSECUTIVE = ("runtime.threads=1", "train.sampling=windows")
"""Windows of consecutive frames, of which an epoch has 5 batches here."""


def settings(data: Path, *overrides: str) -> RunConfig:
    return make_config(*CONSECUTIVE, f"data.root={data}", *overrides, model=QUICK, **EVERYTHING)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted training: 4 epochs of 5 steps."""
    return api.train(settings(data), name="whole", runs=tmp_path_factory.mktemp("whole"))


def rows(run: Run, name: str, *clocks: str) -> list[dict[str, str]]:
    return [
        {key: value for key, value in row.items() if key not in clocks} for row in read_rows(run.path / name)
    ]


def assert_runs_equal(run: Run, whole: Run, best: bool = True) -> None:
    for name in ("last", "best") if best else ("last",):
        one, other = (checkpoint.load(r.checkpoint_path(name)) for r in (run, whole))
        assert_equal(*({k: v for k, v in c.items() if k != "config"} for c in (one, other)), name)
    assert rows(run, "metrics.csv", "time") == rows(whole, "metrics.csv", "time")
    assert rows(run, "steps.csv", "frames_per_s") == rows(whole, "steps.csv", "frames_per_s")
    assert api.evaluation(run)["psnr"] == api.evaluation(whole)["psnr"]
    assert run.info()["status"] == "finished"


class Interrupts(Silent):
    """Sends a signal to this process at a step."""

    def __init__(self, step: int, signum: signal.Signals = signal.SIGTERM) -> None:
        self.at, self.signum = step, signum

    def step(self, event: StepEvent) -> None:
        if event.step == self.at:
            signal.raise_signal(self.signum)


@pytest.mark.parametrize(
    ("step", "signum", "code"), [(2, signal.SIGTERM, 143), (5, signal.SIGINT, 130), (12, signal.SIGTERM, 143)]
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    data: Path, whole: Run, tmp_path: Path, step: int, signum: signal.Signals, code: int
) -> None:
    before = signal.getsignal(signal.SIGINT)  # the default, or ignored where tests run in the background
    with pytest.raises(InterruptedRun) as caught:
        api.train(settings(data), name="a", runs=tmp_path, reporter=Interrupts(step, signum))
    assert caught.value.exit_code == code and f"step {step};" in caught.value.message
    run = Run(tmp_path / "a")
    assert run.info()["status"] == "interrupted"
    assert checkpoint.load(run.checkpoint_path("last"))["step"] == step
    with pytest.raises(InterruptedRun):  # and once more
        api.resume("latest", runs=tmp_path, reporter=Interrupts(step + 6))
    assert_runs_equal(api.resume("a", runs=tmp_path), whole)
    assert run.info()["resumed_at_step"] == step + 6
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupted_average_of_weights_goes_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    config = make_config(*CONSECUTIVE, f"data.root={data}", "train.epochs=2", model=QUICK, **AVERAGED)
    whole = api.train(config, name="whole", runs=tmp_path)
    with pytest.raises(InterruptedRun):
        api.train(config, name="a", runs=tmp_path, reporter=Interrupts(7))
    assert_runs_equal(api.resume("a", runs=tmp_path), whole)


class InterruptsLastEpoch(Silent):
    """Sends a signal after the last epoch, before its end is recorded."""

    def epoch(self, event: EpochEvent) -> None:
        if event.last:
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_after_the_last_epoch_is_not_lost(data: Path, whole: Run, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRun) as caught:
        api.train(settings(data), name="a", runs=tmp_path, reporter=InterruptsLastEpoch())
    assert caught.value.exit_code == 143
    run = Run(tmp_path / "a")
    assert run.info()["status"] == "interrupted" and not (run.path / "eval").exists()
    assert_runs_equal(api.resume("a", runs=tmp_path), whole)


class InterruptsValidation(Silent):
    """Sends a signal in the middle of a validation; the training must not wait for its end."""

    def __init__(self, number: int) -> None:
        self.left = number

    def validating(self, done: int, total: int) -> None:
        assert self.left > 0, "the validation went on after the signal"
        if done * 2 >= total > done:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_interrupted_validation_is_repeated(data: Path, whole: Run, tmp_path: Path, number: int) -> None:
    """After epochs with and without a blend of weights, and after the last."""
    with pytest.raises(InterruptedRun) as caught:
        api.train(settings(data), name="a", runs=tmp_path, reporter=InterruptsValidation(number))
    assert caught.value.exit_code == 143 and f"step {5 * number};" in caught.value.message
    run = Run(tmp_path / "a")
    assert len(read_rows(run.path / "metrics.csv")) == number - 1
    assert_runs_equal(api.resume("a", runs=tmp_path), whole)


@pytest.mark.parametrize("steps", [7, 10])
def test_the_validation_of_a_training_that_is_cut_short_is_repeated(
    data: Path, tmp_path: Path, steps: int
) -> None:
    """Within the second epoch, and at its end."""
    config = settings(data, f"train.max_steps={steps}")
    whole = api.train(config, name="whole", runs=tmp_path)
    with pytest.raises(InterruptedRun):
        api.train(config, name="a", runs=tmp_path, reporter=InterruptsValidation(2))
    run = api.resume("a", runs=tmp_path)
    assert len(read_rows(run.path / "metrics.csv")) == 2
    assert_runs_equal(run, whole)


def test_saving_within_epochs_changes_nothing(data: Path, whole: Run, tmp_path: Path) -> None:
    config = settings(data, "train.save_minutes=1e-9")
    assert_runs_equal(api.train(config, name="a", runs=tmp_path), whole)


@pytest.mark.parametrize("steps", [10, 13])
def test_a_raised_max_steps_goes_on_bit_for_bit(data: Path, whole: Run, tmp_path: Path, steps: int) -> None:
    run = api.train(settings(data, f"train.max_steps={steps}"), name="a", runs=tmp_path)
    assert run.info()["status"] == "finished" and run.info()["steps"] == steps
    api.resume("a", ["train.max_steps=null"], runs=tmp_path)
    # The validation at the stop is one more that the best is chosen from.
    assert_runs_equal(run, whole, best=steps == 10)


def test_resuming_a_finished_run_is_harmless(whole: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(whole.path, tmp_path / "whole")))
    notes = []
    reporter = Silent()
    reporter.note = notes.append  # type: ignore[method-assign]
    assert_runs_equal(api.resume(copy.path, reporter=reporter), whole)
    assert any("all 20 steps are done" in note for note in notes)


def test_a_resumed_run_is_scored_as_its_config_says_now(whole: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(whole.path, tmp_path / "whole")))
    api.resume(copy.path, ["eval.samples=2", "runtime.precision=bf16"])
    protocol = json.loads((copy.path / "eval" / "val" / "metrics.json").read_text())["protocol"]
    assert protocol["samples"] == 2 and protocol["precision"] == "bf16"


def test_a_damaged_last_checkpoint_falls_back_with_a_warning(data: Path, whole: Run, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRun):
        api.train(settings(data), name="a", runs=tmp_path, reporter=Interrupts(12))
    run, warnings = Run(tmp_path / "a"), []
    last = run.checkpoint_path("last")
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    reporter = Silent()
    reporter.warn = warnings.append  # type: ignore[method-assign]
    assert_runs_equal(api.resume("a", runs=tmp_path, reporter=reporter), whole)
    assert any("last.pt" in w and "damaged" in w and "previous.pt" in w for w in warnings)
    assert run.info()["resumed_at_step"] == 10


def test_with_both_checkpoints_damaged_the_message_is_one_line(
    data: Path, whole: Run, tmp_path: Path
) -> None:
    copy = Run(Path(shutil.copytree(whole.path, tmp_path / "whole")))
    for name in ("last", "previous"):
        copy.checkpoint_path(name).write_bytes(b"")
    with pytest.raises(UserError, match=r"previous\.pt: damaged"):
        api.resume(copy.path)
    shutil.copy(copy.checkpoint_path("best"), copy.checkpoint_path("last"))
    copy.checkpoint_path("previous").unlink()
    with pytest.raises(UserError, match="only weights"):
        api.resume(copy.path)


def test_other_data_are_refused(whole: Run, tmp_path: Path) -> None:
    other = write_set(tmp_path / "other", train=24)
    copy = shutil.copytree(whole.path, tmp_path / "whole")
    before = (copy / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match="not the data"):
        api.resume(copy, [f"data.root={other}"])
    assert (copy / "metrics.csv").read_bytes() == before
    assert Run(copy).info()["status"] == "finished"


def test_the_same_data_may_have_moved(data: Path, whole: Run, tmp_path: Path) -> None:
    moved = shutil.copytree(data, tmp_path / "moved")
    copy = shutil.copytree(whole.path, tmp_path / "whole")
    assert_runs_equal(api.resume(copy, [f"data.root={moved}"]), whole)


@pytest.mark.parametrize("override", ["optim.lr=1", "model.z_dim=8", "seed=1", "data.height=16", "kl.stop=2"])
def test_what_would_make_it_another_run_is_refused(whole: Run, override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        api.resume(whole.path, [override])


class Warnings(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


def test_more_epochs_that_move_a_schedule_are_reported_and_recorded(whole: Run, tmp_path: Path) -> None:
    """Cyclical beta and cosine lr refer to the whole length: at the old end both restart."""
    copy = Run(Path(shutil.copytree(whole.path, tmp_path / "whole")))
    reporter = Warnings()
    api.resume(copy.path, ["train.epochs=8", "train.max_steps=21"], reporter=reporter)
    (change,) = copy.info()["schedule_changes"]
    rows = read_rows(copy.path / "metrics.csv")
    assert change["step"] == 20 and change["total_steps"] == [20, 40]
    assert change["changed"] == {"train.epochs": [4, 8], "train.max_steps": [None, 21]}
    for name in ("beta", "lr", "tfr"):
        old, new = change[name]
        assert old == pytest.approx(float(rows[3][name])) and new == pytest.approx(float(rows[4][name]))
    assert change["beta"] == [1, 0] and change["lr"][0] == 0 < change["lr"][1]
    (line,) = reporter.lines
    for text in ("train.epochs 4 -> 8", "at step 20 beta 1 -> 0, lr 0 -> 0.000", "no longer comparable"):
        assert text in line, line
    later = Warnings()
    api.resume(copy.path, ["train.max_steps=22"], reporter=later)
    assert later.lines == [] and copy.info()["schedule_changes"] == [change]


def test_a_change_that_was_never_saved_is_forgotten(whole: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(whole.path, tmp_path / "whole")))
    for _ in range(2):  # the first is killed before it saves
        with pytest.raises(InterruptedRun):
            api.resume(copy.path, ["train.epochs=8"], reporter=Interrupts(21))
        assert len(copy.info()["schedule_changes"]) == 1
        shutil.copy(whole.checkpoint_path("last"), copy.checkpoint_path("last"))
    api.resume(copy.path)
    assert copy.info()["schedule_changes"] == []


def test_more_epochs_that_move_nothing_are_as_if_asked_for_at_once(data: Path, tmp_path: Path) -> None:
    plain = ("kl.schedule=none", "optim.schedule=constant", "optim.warmup_steps=0", "train.ema=null")
    run = api.train(settings(data, *plain, "train.epochs=1"), name="a", runs=tmp_path)
    reporter = Warnings()
    api.resume(run.path, ["train.epochs=2"], reporter=reporter)
    assert reporter.lines == [] and "schedule_changes" not in run.info()
    at_once = api.train(settings(data, *plain, "train.epochs=2"), name="b", runs=tmp_path)
    one, other = (checkpoint.load(r.checkpoint_path("last"))["model"] for r in (run, at_once))
    assert_equal(one, other)


def test_another_batch_size_is_another_training(whole: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(whole.path, tmp_path / "whole")))
    before, reporter = (copy.path / "config.yaml").read_text(), Warnings()
    with pytest.raises(UserError, match=r"train.batch_size 1 -> 2: no effect, all 20 steps are done"):
        api.resume(copy.path, ["train.batch_size=2"])
    assert (copy.path / "config.yaml").read_text() == before and copy.info()["status"] == "finished"
    api.resume(copy.path, ["train.batch_size=2", "train.epochs=5"], reporter=reporter)
    assert "train.batch_size 1 -> 2" in reporter.lines[0]
    assert copy.info()["schedule_changes"][0]["changed"] == {
        "train.batch_size": [1, 2],
        "train.epochs": [4, 5],
    }


def test_a_training_goes_on_from_its_last_checkpoint_only(whole: Run) -> None:
    for name in ("best", "previous"):
        with pytest.raises(UserError, match=f"{name}.pt: a training goes on from last.pt only") as caught:
            api.resume(whole.checkpoint_path(name))
        assert f"train.init={whole.checkpoint_path(name)}" in caught.value.hint


def test_another_protocol_chooses_a_new_best(data: Path, tmp_path: Path) -> None:
    run = api.train(settings(data, "train.max_steps=5"), name="a", runs=tmp_path)
    last = checkpoint.load(run.checkpoint_path("last"))
    last["trainer"]["best_psnr"] = 99.0  # a score that the new protocol cannot reach
    checkpoint.save(run, "last", last)
    best = checkpoint.load(run.checkpoint_path("best"))["step"]
    reporter = Warnings()
    api.resume(run.path, ["eval.frames=2", "train.max_steps=10"], reporter=reporter)
    assert checkpoint.load(run.checkpoint_path("best"))["step"] == 10 > best
    assert any(
        "eval.frames None -> 2" in line and "chosen from the later ones" in line for line in reporter.lines
    )
    assert run.info()["eval_changes"] == [{"step": 5, "changed": {"eval.frames": [None, 2]}}]
    again = Warnings()
    api.resume(run.path, ["train.max_steps=11", "eval.batch_size=1"], reporter=again)
    assert again.lines == [], "the same protocol, in other pieces"


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x", "empty")
    run.write_config(make_config())
    with pytest.raises(UserError, match="no checkpoint"):
        api.resume("empty", runs=tmp_path)


# --- a process that dies ------------------------------------------------------------------------------


def started(config: RunConfig, folder: Path) -> subprocess.Popen[str]:
    (folder / "tiny.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "cvaecli", "train", "--config", "tiny.yaml", "--name", "a", "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


LONGER = ("train.epochs=16", "eval.frames=2", "eval.sample_strips=false")


@pytest.fixture(scope="module")
def longer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return api.train(settings(data, *LONGER), name="longer", runs=tmp_path_factory.mktemp("longer"))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_ended_can_be_resumed(
    data: Path, longer: Run, tmp_path: Path, signum: signal.Signals
) -> None:
    process = started(settings(data, *LONGER), tmp_path)
    run = Run(tmp_path / "runs" / "a")
    wait_for(lambda: len(read_rows(run.path / "metrics.csv")) >= 3, process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert out == "" and "Traceback" not in err
    if signum == signal.SIGKILL:
        assert process.returncode == -9 and run.info()["status"] == "running"
    else:
        assert process.returncode == 128 + signum and run.info()["status"] == "interrupted"
        assert err.count("\n") == 1 and "cvae train --resume" in err
    assert 10 <= checkpoint.load(run.checkpoint_path("last"))["step"] < 80  # saved after the row
    assert_runs_equal(api.resume("a", runs=tmp_path / "runs"), longer)
