"""TensorBoard files hold the points of the CSV files, each once."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import make_config, write_set

from cvaecli import api
from cvaecli.api import tensorboard
from cvaecli.config.schema import RunConfig
from cvaecli.errors import UserError
from cvaecli.run import Run, read_rows


def settings(root: Path, **train: object) -> RunConfig:
    return make_config(
        data={"root": str(root)}, train={"epochs": 2, "log_every": 1, "tensorboard": True, **train}
    )


def points(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: name to (step, value)."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_the_points_are_those_of_the_csv_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = api.train(settings(write_set(tmp_path / "set")), runs=tmp_path / "runs")
    shown = points(run)
    for name, file, column in (
        ("step/loss", "steps.csv", "loss"),
        ("step/beta", "steps.csv", "beta"),
        ("train/kl", "metrics.csv", "train/kl"),
        ("val/psnr", "metrics.csv", "val/psnr"),
        ("epoch/tfr", "metrics.csv", "tfr"),
    ):
        rows = [(int(row["step"]), float(row[column])) for row in read_rows(run.path / file) if row[column]]
        assert [step for step, _ in shown[name]] == [step for step, _ in rows], name
        assert [v for _, v in shown[name]] == pytest.approx([v for _, v in rows], rel=1e-5), name


def test_a_resumed_run_shows_no_point_twice(tmp_path: Path) -> None:
    writers = pytest.importorskip("torch.utils.tensorboard")
    run = api.train(settings(write_set(tmp_path / "set"), max_steps=2), runs=tmp_path / "runs")
    with writers.SummaryWriter(str(run.path / "tensorboard")) as writer:  # steps after the last checkpoint
        for step in (3, 4):
            writer.add_scalar("step/loss", 99.0, step)
    api.resume(run.path, ["train.max_steps=null"])
    steps = [int(row["step"]) for row in read_rows(run.path / "steps.csv")]
    shown = points(run)["step/loss"]
    assert [step for step, _ in shown] == steps and len(steps) > 3
    assert all(value != 99.0 for _, value in shown)


def test_without_the_package_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.tensorboard: tensorboard is not installed"):
        api.train(settings(write_set(tmp_path / "set")), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    run = api.train(
        settings(write_set(tmp_path / "set"), tensorboard=False, epochs=1), runs=tmp_path / "runs"
    )
    assert not (run.path / "tensorboard").exists()
