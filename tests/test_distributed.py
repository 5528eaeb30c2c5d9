"""Several processes on the CPU compute what one does, stop together, and lose no run when one dies."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import CPU, make_clip, make_config, run_events, write_set
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from cvaecli import api, checkpoint, launch
from cvaecli.api.loading import build_model
from cvaecli.config import loading as configs
from cvaecli.config.schema import RunConfig
from cvaecli.data.clip import Clip
from cvaecli.engine.batches import batches
from cvaecli.engine.distributed import ALONE, World, join
from cvaecli.engine.fit import Trainer
from cvaecli.engine.split import Split
from cvaecli.errors import CvaeError, ReportedElsewhereError, UserError
from cvaecli.models import layers
from cvaecli.models.layers import BatchNorm
from cvaecli.reporter import Silent
from cvaecli.run import Run, read_rows

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")

# --- two processes ------------------------------------------------------------------------------------


def _start(work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Two processes that run ``work``, with a pipe each for its result or its traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    context, started = multiprocessing.get_context("fork"), []
    for rank in range(2):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ours, theirs = context.Pipe(False)
        process = context.Process(target=_child, args=(theirs, environment, work, arguments), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    return started


def _child(
    pipe: Any, environment: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    try:
        result: Any = work(*arguments)
    except CvaeError as error:
        result = error.exit_code, type(error).__name__, str(error)
    except BaseException:
        result = traceback.format_exc()
    pipe.send_bytes(pickle.dumps(result))  # tensors by value: this process is gone when they are read
    os._exit(0)  # nothing of pytest's is this process's to clean up


def _results(started: list[Any], seconds: float = 60) -> list[Any]:
    """What the processes gave back; None from one that was killed."""
    found = []
    for process, pipe in started:
        try:
            found.append(pickle.loads(pipe.recv_bytes()) if pipe.poll(seconds) else "nothing in time")
        except EOFError:
            found.append(None)
        process.join(5)
        if process.is_alive():
            process.kill()
    return found


def in_two(work: Callable[..., Any], *arguments: Any) -> list[Any]:
    return _results(_start(work, *arguments))


# --- shares of a batch --------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "posterior"), [(8, 8), (7, 7), (12, 8), (11, 6)])
@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (2, 1), (3, 1), (1, 3), (2, 2)])
def test_every_row_is_computed_once(batch: int, posterior: int, size: int, accumulate: int) -> None:
    seen: list[int] = []
    for rank in range(size):
        split = Split(batch, posterior, rank, size, accumulate)
        mine = split.mine.all
        for n in range(accumulate):
            rows, local = split.micro_batch(n), split.local_micro_batch(n)
            assert len(rows.posterior) > 0 and all(row < posterior for row in rows.posterior)
            assert all(row >= posterior for row in rows.prior) and bool(rows.prior) == (posterior < batch)
            assert [mine[k] for k in local.all] == rows.all
        seen += mine
    assert sorted(seen) == list(range(batch))


@pytest.mark.parametrize(
    ("train", "size"),
    [({"batch_size": 3, "accumulate": 2}, 2), ({"batch_size": 8, "prior_share": 0.25, "accumulate": 3}, 1)],
)
def test_too_few_rows_are_refused(train: dict[str, Any], size: int) -> None:
    with pytest.raises(UserError, match=r"train\.batch_size: \d .*too few for \d processes"):
        Split.of(make_config(train=train).train, 0, size)


@pytest.mark.parametrize(("batch", "share"), [(2, 0.1), (2, 0.25), (4, 0.1), (2, 0.8), (1, 0.5)])
def test_a_prior_share_that_rounds_to_no_row_or_to_all_is_refused(batch: int, share: float) -> None:
    train = make_config(train={"batch_size": batch, "prior_share": share}).train
    with pytest.raises(UserError, match=r"train\.prior_share: .* of train\.batch_size") as caught:
        Split.of(train)
    assert str(batch) in caught.value.message and caught.value.hint


def test_the_prior_share_is_that_of_whole_rows() -> None:
    def share(batch: int, wanted: float) -> float:
        return Split.of(make_config(train={"batch_size": batch, "prior_share": wanted}).train).prior_share

    assert [share(2, 0.3), share(2, 0.7), share(8, 0.25), share(3, 0.5), share(4, 0.0)] == [
        0.5,
        0.5,
        0.25,
        pytest.approx(2 / 3),
        0.0,
    ]


def test_a_row_is_the_same_in_the_whole_batch() -> None:
    settings = {"batch_size": 4, "augment": {"flip": 0.5, "shift": [2, 2], "zoom": 0.1}}
    trainer = trainer_of("pose", train=settings)
    draw = (trainer.frames, trainer.sampler, trainer.config.train, 0, 0)
    whole, some = next(batches(*draw)), next(batches(*draw, rows=[3, 1]))
    assert torch.equal(some.frames, whole.frames[[3, 1]])
    assert torch.equal(some.condition, whole.condition[[3, 1]])


# --- the same step ------------------------------------------------------------------------------------

MODELS: dict[str, dict[str, Any]] = {
    "pose": {"name": "pose", "frame_dim": 8, "label_dim": 4, "z_dim": 4, "fusion_dim": 8},
    "pooled": {
        "name": "pose",
        "frame_dim": 8,
        "label_dim": 4,
        "z_dim": 4,
        "fusion_dim": 8,
        "batch_norm": "pooled",
    },
    "svg": {
        "name": "svg",
        "backbone": "dcgan",
        "width": 4,
        "norm": "group",
        "g_dim": 8,
        "z_dim": 3,
        "rnn_size": 8,
    },
}
MODELS["svg batch norm"] = {**MODELS["svg"], "norm": "batch", "levels": [2], "prior": "fixed"}
MODELS["reference"] = {"name": "reference", "widths": [16, 16, 16, 16], "z_dim": 2}

BASE = {"epochs": 1, "window": 4, "batch_size": 6, "steps_per_epoch": 2, "log_every": 1, "ema": 0.9}


def arm(name: str, n: int, seed: int) -> Clip:
    generator = np.random.default_rng(seed)
    frames = generator.integers(0, 255, (n, 3, 16, 16), dtype=np.uint8)
    return Clip(name, frames, generator.standard_normal((n, 3)).astype(np.float32))


def trainer_of(model: str, world: World = ALONE, **sections: dict[str, Any]) -> Trainer:
    vectors = model.startswith("svg")
    data = {"n_past": 2, "height": 16, "width": 16} if vectors else {}
    train = {**BASE, **sections.pop("train", {})}
    raw = make_config(train=train, data=data, **sections).to_dict()
    raw = {**raw, "model": MODELS[model]}
    if model == "reference":
        raw["teacher_forcing"] = None
    config = configs.from_dict(raw)
    make = arm if vectors else lambda name, n, seed: make_clip(n, name, seed=seed)
    train_clips = [make("a", 14, 0), make("b", 15, 1)]
    built = build_model(config, train_clips[0].condition.shape[1:])
    val = [make(f"v{k}", 6 + k % 2, 2 + k) for k in range(3)]
    return Trainer(built, config, CPU, train_clips, val, world)


# The bias before a batch norm has no gradient but rounding, which Adam would make steps of.
SGD = {"optim": {"name": "sgd", "lr": 0.1, "schedule": "constant"}}

CASES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "group norm": ("svg", {"teacher_forcing": {"ratio": 0.5, "coin": "step", "noise": 0.1}}),
    "uneven": ("svg", {"train": {"batch_size": 5, "accumulate": 2}}),
    "per step": ("pose", {**SGD, "teacher_forcing": {"ratio": 1}, "train": {"augment": {"flip": 0.5}}}),
    "pooled, uneven": ("pooled", {**SGD, "train": {"batch_size": 5}}),
    "batch norm": ("svg batch norm", {**SGD, "train": {"batch_size": 8, "prior_share": 0.25}}),
    "prior, parts": ("reference", {"train": {"batch_size": 8, "prior_share": 0.5, "accumulate": 2}}),
}
"""Models and settings of which two processes must make the same as one."""


def trained(model: str, sections: dict[str, Any], world: World = ALONE) -> tuple[Any, ...]:
    """(terms of the steps, weights, their average, the validation's row)."""
    trainer = trainer_of(model, world, **sections)
    steps, epochs = run_events(trainer)
    assert not [name for name, p in trainer.model.named_parameters() if p.grad is None], (
        "takes part in no step"
    )
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    psnr = [clip.psnr for clip in epochs[-1].evaluation.clips] if epochs[-1].evaluation else None
    return [event.terms for event in steps], weights, trainer.trained.state_dict(), epochs[-1].row, psnr


def all_trained() -> dict[str, tuple[Any, ...]]:
    with join("cpu") as world:
        assert world.size == 2
        return {name: trained(model, sections, world) for name, (model, sections) in CASES.items()}


@pytest.fixture(scope="module")
def two() -> list[dict[str, tuple[Any, ...]]]:
    return in_two(all_trained)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(two: list[Any], name: str) -> None:
    assert isinstance(two[0], dict), two[0]
    model, sections = CASES[name]
    one = trained(model, sections)
    terms, weights, average, row, psnr = two[0][name]
    for mine, theirs in zip(one[0], terms, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-7)
    for mine, theirs in ((one[1], weights), (one[2], average)):
        torch.testing.assert_close(theirs, mine, atol=2e-5, rtol=1e-3)
    assert {**row, "time": 0} == pytest.approx({**one[3], "time": 0}, rel=1e-3)
    for mine, theirs in zip(one[4], psnr, strict=True):  # the same clips in the same order
        np.testing.assert_allclose(theirs, mine, atol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_both_processes_hold_the_same_weights(two: list[Any], name: str) -> None:
    (_, weights, average, _, _), (_, others, other_average, row, psnr) = two[0][name], two[1][name]
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    assert all(torch.equal(average[key], other_average[key]) for key in average)
    assert psnr is None and "val/psnr" not in row, "the first process alone has the whole validation"


def reductions() -> tuple[int, int]:
    """How many collective operations a batch norm of two processes makes, forward and backward."""
    calls: list[str] = []
    with join("cpu"):
        for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast"):
            real = getattr(torch.distributed, name)
            setattr(torch.distributed, name, lambda *a, real=real, name=name: calls.append(name) or real(*a))
        y = BatchNorm(3)(torch.randn(2, 3, 4, 4, requires_grad=True))
        forward = len(calls)
        y.square().sum().backward()
        return forward, len(calls) - forward


def test_batch_norm_exchanges_once_each_way() -> None:
    assert in_two(reductions) == [(1, 1)] * 2


@pytest.mark.gpu
def test_batch_norm_over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group of one process, whose statistics are its own."""
    made = {}
    x = torch.randn(6, 3, 8, 8, device="cuda")
    monkeypatch.setattr(layers, "several_processes", lambda: bool(dist.is_initialized()))
    for backend in ("none", "nccl"):
        if backend == "nccl":
            dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
        try:
            norm, given = BatchNorm(3).cuda(), x.clone().requires_grad_()
            y = norm(given)
            (y**3).sum().backward()
            made[backend] = [y.detach(), given.grad, norm.weight.grad, norm.running_var.clone()]
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    torch.testing.assert_close(made["nccl"], made["none"], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu(2)
def test_two_gpus_train_as_one(data: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(settings(data, "train.epochs=1", "runtime.device=cuda").to_yaml())
    for name, more in (("one", []), ("two", ["--gpus", "2"])):
        command = [sys.executable, "-m", "cvaecli", "train", "-c", "tiny.yaml", "--name", name, *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (read_rows(tmp_path / "runs" / name / "steps.csv") for name in ("one", "two"))
    assert [float(row["loss"]) for row in two] == pytest.approx([float(row["loss"]) for row in one], rel=1e-3)


@pytest.mark.parametrize(
    ("model", "train"),
    [("svg", {"batch_size": 7}), ("svg", {"batch_size": 9, "prior_share": 0.4}), ("reference", {})],
)
def test_parts_of_a_batch_make_the_same_step(model: str, train: dict[str, Any]) -> None:
    sections = {"teacher_forcing": {"ratio": 0.5, "noise": 0.1}}
    whole = trained(model, {**sections, "train": train})
    parts = trained(model, {**sections, "train": {**train, "accumulate": 3}})
    for mine, theirs in zip(whole[0], parts[0], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-7)
    torch.testing.assert_close(parts[1], whole[1], atol=2e-5, rtol=1e-3)


# --- runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data") / "set")


def settings(data: Path, *overrides: str) -> RunConfig:
    """5 steps an epoch of 4 rows each."""
    train = {"epochs": 4, "batch_size": 4, "steps_per_epoch": 5, "log_every": 3, "ema": 0.9}
    optim = {"name": "sgd", "lr": 1e-2, "schedule": "constant"}
    return make_config(f"data.root={data}", *overrides, train=train, optim=optim, eval={"frames": 3})


class Trains:
    """A training or its continuation in a process; ``how`` happens to the process ``rank`` at a step."""

    def __init__(
        self, runs: Path, rank: int = 0, step: int = -1, how: Callable[[], object] = lambda: None
    ) -> None:
        self.runs, self.rank, self.step, self.how = runs, rank, step, how

    def __call__(self, config: RunConfig | None) -> Any:
        train_step = Trainer._train_step

        def watched(trainer: Trainer, *arguments: Any) -> Any:
            if trainer.step == self.step and launch.rank() == self.rank:
                self.how()
            return train_step(trainer, *arguments)

        Trainer._train_step = watched  # type: ignore[method-assign]
        warned: list[str] = []
        reporter = Silent()
        reporter.warn = warned.append  # type: ignore[method-assign]
        if config is None:
            api.resume("a", runs=self.runs, reporter=reporter)
        else:
            api.train(config, name="a", runs=self.runs, reporter=reporter)
        return "done"


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted training of one process."""
    return api.train(settings(data), name="whole", runs=tmp_path_factory.mktemp("whole"))


def assert_close_runs(run: Run, whole: Run) -> None:
    one, other = (checkpoint.load(r.checkpoint_path("last")) for r in (run, whole))
    torch.testing.assert_close(one["model"], other["model"], atol=1e-5, rtol=1e-3)
    for name in ("metrics.csv", "steps.csv"):
        pairs = list(zip(read_rows(run.path / name), read_rows(whole.path / name), strict=True))
        assert pairs
        for mine, theirs in pairs:
            assert mine.keys() == theirs.keys()
            for key in mine.keys() - {"time", "frames_per_s"}:
                assert float(mine[key] or 0) == pytest.approx(float(theirs[key] or 0), rel=1e-3), (name, key)
    assert api.evaluation(run)["psnr"] == pytest.approx(api.evaluation(whole)["psnr"], abs=1e-3)
    assert run.info()["status"] == "finished"


def test_killed_and_resumed_by_another_number_of_processes(data: Path, whole: Run, tmp_path: Path) -> None:
    """Two processes of which one is killed, then two that are told to stop, then one."""
    run = Run(tmp_path / "a")
    killed = Trains(tmp_path, 1, 12, lambda: os.kill(os.getpid(), signal.SIGKILL))
    leader, other = in_two(killed, settings(data))
    assert other is None
    assert leader[:2] == (1, "LostProcessError") and f"cvae train --resume {run.path}" in leader[2]
    assert run.info()["status"] == "failed" and run.info()["processes"] == 2
    assert checkpoint.load(run.checkpoint_path("last"))["step"] == 10
    stopped = Trains(tmp_path, 1, 13, lambda: signal.raise_signal(signal.SIGTERM))
    leader, other = in_two(stopped, None)
    assert leader[:2] == (143, "InterruptedRun") and other[:2] == (143, "ReportedElsewhereError")
    assert run.info()["status"] == "interrupted"
    assert 14 <= checkpoint.load(run.checkpoint_path("last"))["step"] < 20
    assert not list(run.path.rglob("*.tmp"))
    api.resume("a", runs=tmp_path)
    assert run.info()["processes"] == 1
    assert_close_runs(run, whole)


def test_the_first_process_may_die_too(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    killed = Trains(tmp_path, 0, 7, lambda: os.kill(os.getpid(), signal.SIGKILL))
    leader, other = in_two(killed, settings(data))
    assert leader is None and other[:2] == (1, "LostProcessError")
    assert run.info()["status"] == "failed" and checkpoint.load(run.checkpoint_path("last"))["step"] == 5


def test_an_error_in_one_process_ends_all_and_is_reported_once(data: Path, tmp_path: Path) -> None:
    few = settings(data, "train.batch_size=1")
    leader, other = in_two(Trains(tmp_path), few)
    assert leader[:2] == (2, "UserError") and "train.batch_size: 1 rows" in leader[2]
    assert other[:2] == (2, "ReportedElsewhereError")
    assert not list(tmp_path.iterdir()), "no run is left behind"


def test_the_clock_stops_all_after_the_same_step(data: Path, tmp_path: Path) -> None:
    assert in_two(Trains(tmp_path), settings(data, "train.max_minutes=1e-6")) == ["done", "done"]
    info = Run(tmp_path / "a").info()
    assert info["status"] == "finished" and info["steps"] == 1


def test_agreement() -> None:
    def work() -> Any:
        with join("cpu") as world:
            mine = 1.0 + world.rank
            both = world.greatest(mine, -mine), world.gather(mine), world.once(lambda: f"by {world.rank}")
            try:
                with world.agreeing():
                    if world.rank == 1:
                        raise UserError("no such folder", "make it")
            except CvaeError as error:
                return both, type(error), error.exit_code, str(error)

    (first, *told), (second, *silent) = in_two(work)
    assert first == ([2.0, -1.0], [1.0, 2.0], "by 0") and second == ([2.0, -1.0], None, "by 0")
    assert told == [UserError, 2, "process 1: no such folder (make it)"]
    assert silent[:2] == [ReportedElsewhereError, 2]


# --- the launcher -------------------------------------------------------------------------------------


def test_arguments_without_gpus() -> None:
    given = ["train", "--gpus", "2", "-c", "x", "--gpus=4", "seed=1"]
    assert launch.without_gpus(given) == ["train", "-c", "x", "seed=1"]


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=r"--gpus 2: this machine has 0 .*torchrun --nproc-per-node 2"
    ) as caught:
        launch.on_gpus(2, [])
    assert caught.value.exit_code == 2


START = "import sys; from cvaecli import launch; sys.exit(launch.in_processes(2, sys.argv[1:]))"


def test_the_launcher_trains_with_two(data: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(settings(data, "train.epochs=1").to_yaml())
    done = subprocess.run(
        [sys.executable, "-c", START, "train", "-c", "tiny.yaml", "--name", "a"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run: runs/a") == 1 and done.stderr.count("epoch   0 (1/1)") == 1
    assert "arning" not in done.stderr
    assert Run(tmp_path / "runs/a").info()["processes"] == 2


def _ended(monkeypatch: pytest.MonkeyPatch, *exit_codes: int) -> int:
    """What ``in_processes`` makes of processes that ended so, the first one first."""
    failures = {}
    for rank, code in enumerate(exit_codes):
        failures[rank] = ProcessFailure(rank, 1, code, "")
        failures[rank].timestamp = rank

    def fail(_: object) -> None:
        raise ChildFailedError("cvaecli", failures)

    monkeypatch.setattr("torch.distributed.run.run", fail)
    monkeypatch.setattr("logging.disable", lambda level: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return launch.in_processes(2, ["train"])


def test_the_launcher_hands_the_exit_status_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _ended(monkeypatch, 2, -signal.SIGTERM) == 2
    assert _ended(monkeypatch, 143, 143) == 143
    with pytest.raises(CvaeError, match="process 0 was killed by SIGKILL"):
        _ended(monkeypatch, -signal.SIGKILL, 1)

    def stopped(_: object) -> None:
        raise SignalException("stopped", signal.SIGINT)

    monkeypatch.setattr("torch.distributed.run.run", stopped)
    assert launch.in_processes(2, ["train"]) == 130


def test_a_wrong_config_is_one_report_per_machine() -> None:
    def work() -> None:
        with launch.one_report_per_machine():
            make_config("kl.cylces=3")

    first, second = in_two(work)
    assert first[:2] == (2, "UserError") and "kl.cylces" in first[2]
    assert second[:2] == (2, "ReportedElsewhereError")
