"""The scripts in benchmarks/ at tiny sizes: that they run and agree, never how fast."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZES, write_set, yaml_config

import cvaecli
from cvaecli.config import loading as configs
from cvaecli.config.schema import RunConfig

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import compare_numbers
import compare_speed
import first_step
import gpu_check
import residual_directions


@pytest.fixture
def tiny(tmp_path: Path) -> RunConfig:
    return configs.load(yaml_config(tmp_path, write_set(tmp_path / "set"), model=SIZES), ["eval.chunk=2"])


def test_the_warm_up_is_spread_over_a_lifetime() -> None:
    assert compare_speed.WARM_UP == 2
    assert compare_speed.summary([9.0, 3.0, 2.0, 1.0, 2.5], 500) == (2.0 + 8.0 / 500, 8.0)
    assert compare_speed.summary([1.0, 1.0, 2.0, 2.0], 500) == (2.0, 0.0)


@pytest.mark.parametrize("side", compare_speed.SIDES)
@pytest.mark.parametrize("clips", [0, 3])
def test_both_sides_take_as_many_turns_as_they_are_asked_for(tiny: RunConfig, side: str, clips: int) -> None:
    turns = compare_speed.SIDES[side](tiny, clips, 3)
    for _ in range(1 + compare_speed.WARM_UP + 3):
        next(turns)
    turns.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", compare_speed.CASES)
def test_the_cases_are_configs_that_the_plain_path_has(name: str) -> None:
    case = compare_speed.CASES[name]
    config = configs.load(case.config, case.overrides)
    if not case.clips:
        compare_speed.plain_training.check(config)
    assert config.model_name in ("pose", "svg")


def test_agreement(tiny: RunConfig) -> None:
    found = compare_numbers.training(tiny)
    assert max(found[name] for name in ("loss", "recon", "kl", "grad_norm", "gradient")) < 1e-5
    assert found["GFLOP plain"] > 0 and found["GFLOP tool"] > 0
    assert compare_numbers.predictions(tiny, 3) < 1e-5


def test_the_first_step_of_the_real_command(tiny: RunConfig) -> None:
    assert first_step.seconds_to_first_step(tiny) > 0


# --- the first half hour on a GPU ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["versions", "clock", "waits", "agreement"])
def test_a_check_that_needs_no_gpu_runs(name: str) -> None:
    found = gpu_check.checked(name, [])
    assert found.summary and found.passed is not False, found.summary


NEEDS_A_GPU = (
    "tests",
    "graphs",
    "prefetch",
    "refused",
    "coins",
    "speed",
    "rollouts",
    "layouts",
    "validation",
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
@pytest.mark.parametrize("name", NEEDS_A_GPU)
def test_what_needs_a_gpu_is_left_out(name: str) -> None:
    found = gpu_check.checked(name, [])
    assert found.passed is None and "needs" in found.summary


def test_the_table_has_every_check_whatever_happens_to_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that raises fails like one whose process crashes or never ends; all others still run."""

    def broken(given: Sequence[str]) -> gpu_check.Found:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setitem(gpu_check.CHECKS, "broken", broken)
    raised = gpu_check.checked("broken", [])
    assert raised == (False, "RuntimeError: CUDA error: an illegal memory access was encountered", ())
    crashed = gpu_check.checked_apart("no such check", [])  # its process ends without a result
    assert crashed.passed is False and "status 1" in crashed.summary
    endless = gpu_check.checked_apart("versions", [], seconds=0.01)
    assert endless.passed is False and "not done" in endless.summary
    found = {"a": raised, "b": gpu_check.Found(True, "fine", ["pose: 7 frames/s"]), "c": crashed}
    gpu_check.report(found, dict.fromkeys(found, 1.0))
    told = capsys.readouterr().out
    assert "| a | FAILED | 1 | RuntimeError" in told and "| b | passed | 1 | fine |" in told
    assert told.rstrip().endswith("For docs/performance.md:\n\n- pose: 7 frames/s")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the scripts measure memory in /proc")
def test_the_benchmark_of_long_rollouts_runs(tmp_path: Path) -> None:
    sizes = ["data.height=16", "data.width=16", "data.cuts=none", f"data.root={write_set(tmp_path, size=16)}"]
    model = ["model.widths=[16,16]", "model.encoder_blocks=[0,1]", "model.decoder_blocks=[0]"]
    told = _run("long_rollout.py", "--frames", "2,70", "--config", "reference", *sizes, *model)
    head, *rows = [line.split() for line in told.splitlines()]
    assert head[:2] == ["frames", "RssAnon"] and [row[0] for row in rows] == ["2", "70"]
    assert all(float(row[1]) > 0 for row in rows)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the scripts measure memory in /proc")
def test_the_benchmark_of_tfrecord_conversion_runs(tmp_path: Path) -> None:
    told = _run("tfrecord_conversion.py", "--gb", "0.003", "--folder", str(tmp_path))
    assert "train: 4 trajectories, 120 frames" in told and "RssAnon: " in told
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_of_pushed_objects_runs(tmp_path: Path) -> None:
    size = ["data.height=16", "data.width=16", "model.patch=1", "model.widths=[16,16]"]
    short = ["model.encoder_blocks=[0,0]", "model.decoder_blocks=[0]", "eval.clips=1", "eval.sample_strips=0"]
    once = ["train.epochs=1", "train.steps_per_epoch=1", "train.batch_size=2", "train.window=5"]
    config = cvaecli.load_config("quickstart-robot", [*size, *short, *once, "data.n_future=3"])
    run = cvaecli.train(config, runs=tmp_path).path
    told = _run("robot_objects.py", str(run), "--split", "val", "--strip", str(tmp_path / "strip.png"))
    rows = {row.split("|")[1].strip(): row.split("|")[2:5] for row in told.splitlines()}
    still, futures = (rows[name] for name in ("perfect arm, objects stay", "mean of 16 other futures"))
    objects, others, _ = (float(cell.split()[0]) for cell in still)
    assert objects < float(futures[0].split()[0]) and others > 40
    assert run.name in rows and (tmp_path / "strip.png").stat().st_size > 0


def test_the_directions_of_a_models_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    direction = np.eye(12)[3]
    strength = rng.normal(size=(2, 40, 1))
    errors = 5.0 + strength * direction + 0.01 * rng.normal(size=(2, 40, 12))
    variance, found, scores = residual_directions.components(errors)
    assert variance[0] == pytest.approx(strength.var(), rel=0.02) and variance[1] < 0.001
    assert abs(found[0] @ direction) > 0.999
    assert abs(np.corrcoef(scores[..., 0].ravel(), strength.ravel())[0, 1]) > 0.999

    config = configs.load(yaml_config(tmp_path, write_set(tmp_path / "set")), ["train.max_steps=1"])
    run = cvaecli.train(config, runs=tmp_path)
    told = _run("residual_directions.py", str(run.path), "--picture", str(tmp_path / "four.png"))
    assert "components have more than 1 s²" in told and "| 4 | " in told
    assert (tmp_path / "four.png").stat().st_size > 0


def _run(script: str, *arguments: str) -> str:
    path = Path(__file__).parents[1] / "benchmarks" / script
    done = subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
