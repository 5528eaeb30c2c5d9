"""The scripts in benchmarks/ at tiny sizes: that they run and agree, never how fast."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SIZES, write_set, yaml_config

from cvaecli.config import loading as configs
from cvaecli.config.schema import RunConfig

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import compare_numbers
import compare_speed
import first_step


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


def _run(script: str, *arguments: str) -> str:
    path = Path(__file__).parents[1] / "benchmarks" / script
    done = subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
