"""``cvae bench``: what it counts, measures and prints. Never whether something is fast."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    CPU,
    SIZES,
    cvae,
    in_one_line,
    make_clip,
    make_config,
    make_model,
    make_trainer,
    write_set,
    yaml_config,
)
from test_fast_step import recorded
from torch import nn

import cvaecli
from cvaecli.api import benchmark
from cvaecli.api.loading import build_model
from cvaecli.config import loading as configs
from cvaecli.engine import measure
from cvaecli.engine.device import Device
from cvaecli.engine.graph import Replayed

KEYS = {
    *("train_frames_per_s", "rollout_frames_per_s", "peak_gflops", "train_fraction_of_peak"),
    *("rollout_fraction_of_peak", "peak_memory_gb", "seconds_to_first_step"),
}

FRACTIONS = {"train_fraction_of_peak", "rollout_fraction_of_peak"}
"""These round to zero for a model this small."""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config file and its data; the device's peak is given, not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "measure_peak", lambda device: measure.Peak(20.0, 16.0))
    data = write_set(tmp_path / "set", size=8)
    return yaml_config(tmp_path, data, model={**SIZES}).name


def test_bench_as_json(tiny: str) -> None:
    before = sorted(Path().iterdir())
    result = cvae("bench", "--config", tiny, "--steps", 3, "--frames", 5, "--json", "eval.chunk=2").good()
    report = json.loads(result.out)
    assert set(report) >= KEYS and all(
        math.isfinite(report[key]) and report[key] > 0 for key in KEYS - FRACTIONS
    )
    assert sorted(Path().iterdir()) == before, "no run is left behind"
    assert report["peak_gflops"] == 20.0 and report["batch"] == [2, 4] and report["frame_size"] == [8, 8]
    assert report["train_frames_per_s"] == pytest.approx(2 * 3 / report["seconds_per_step"], rel=1e-2)
    for name in ("train", "rollout"):
        done = report[f"{name}_gflop_per_frame"] * report[f"{name}_frames_per_s"]
        assert report[f"{name}_fraction_of_peak"] == pytest.approx(done / 20.0, abs=1e-4, rel=0.05)
    # Forward and backward of a frame against forward alone, the posterior only in training.
    assert 2.5 < report["train_gflop_per_frame"] / report["rollout_gflop_per_frame"] < 5.5


def test_bench_as_a_table_says_what_its_numbers_are(tiny: str) -> None:
    result = cvae("bench", "--config", tiny, "--steps", 1, "--frames", 2, "teacher_forcing.ratio=1").good()
    words = in_one_line(result.out)
    for told in (
        "predicted frames/s",
        "GFLOP per frame",
        "100% forced",
        "batch 2",
        "fp32",
        "torch",
        "peak 20",
    ):
        assert told in words, words
    assert "after the process start" in words or "after the call" in words


def test_mistakes_of_bench(tiny: str) -> None:
    for arguments in (
        ["--config", "nope"],
        ["--config", tiny, "train.windw=3"],
        ["--config", tiny, "train.window=99"],
    ):
        assert cvae("bench", *arguments).wrong().err.count("\n") == 1
    cvae("bench", "--config", tiny, "--steps", 0).usage("--steps")
    cvae("bench", "--config", tiny, "stray").wrong("stray")


def test_the_timed_steps_never_reach_a_validation(monkeypatch: pytest.MonkeyPatch, tiny: str) -> None:
    """Not even where the config's epochs are shorter than what is timed."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("validated")

    monkeypatch.setattr("cvaecli.engine.fit.evaluate", refuse)
    config = configs.load(tiny, ["train.steps_per_epoch=1", "train.max_steps=1"])
    report = cvaecli.bench(config, steps=7, frames=3)
    assert report["steps"] == 7 and report["first_step_counted_from"] == "call"


def test_a_timed_rollout_copies_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy for inference is made once, before."""
    log: list[str] = []
    copied, timed = Device.for_inference, benchmark.rollout
    monkeypatch.setattr(Device, "for_inference", lambda *a: log.append("copy") or copied(*a))
    monkeypatch.setattr(benchmark, "rollout", lambda *a: log.append("rollout") or timed(*a))
    trainer = make_trainer()
    data = SimpleNamespace(splits={"val": [make_clip(6)]})
    assert benchmark._time_rollout(trainer, data, 4, lambda done, total: None) > 0  # type: ignore[arg-type]
    assert log == ["copy", "rollout", "rollout"]


def test_the_timed_steps_come_after_the_recording() -> None:
    """All of them are replays."""
    trainer, seen = make_trainer(make_config(train={"steps_per_epoch": 20})), []
    recorded(trainer)
    update, events = trainer._update, trainer.events()
    assert isinstance(update, Replayed)
    device = SimpleNamespace(synchronize=lambda: seen.append(len(update._recordings)))
    next(events)
    benchmark._time_steps(events, 2, device, lambda done, total: None)  # type: ignore[arg-type]
    assert seen == [1] * 4, "before and after each of two blocks"


# --- what is counted ----------------------------------------------------------------------------------


CONVOLUTIONS: list[tuple[Callable[[], nn.Module], int]] = [
    (lambda: nn.Conv2d(8, 6, 3, padding=1), 8 * 6 * 9),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), 8 * 9),
    (lambda: nn.Conv2d(8, 4, 1, groups=2), 4 * 4),
    (lambda: nn.ConvTranspose2d(8, 6, 3, 1, 1), 8 * 6 * 9),
]


@pytest.mark.parametrize(("build", "products"), CONVOLUTIONS)
def test_flops_of_a_convolution(build: Callable[[], nn.Module], products: int) -> None:
    """Two a product; backward once for the weights, and once for the input where it wants a gradient."""
    conv, forward = build(), 2 * products * 5 * 4 * 7
    for wanted, times in ((False, 2), (True, 3)):
        x = torch.randn(5, 8, 4, 7, requires_grad=wanted)
        assert measure.count_flops(lambda x=x: conv(x).sum().backward()) == times * forward  # type: ignore[misc]
    with torch.inference_mode():
        assert measure.count_flops(lambda: conv(torch.randn(5, 8, 4, 7))) == forward


def test_flops_of_the_course_architecture() -> None:
    """6.43 GFLOP a predicted frame of 64x32, the published number, and 629 times that for a rollout."""
    config = configs.load("cyclical")
    with torch.device("meta"):
        model = build_model(config, (3, 32, 64)).to("meta").eval()
        picture, z = torch.empty(1, 3, 32, 64), torch.empty(1, 12, 32, 64)

        def frame() -> None:
            label = model.encode(picture[:, None])["label"][:, 0]
            model.step((), picture, {"label": label}, [z], posterior=False)

        with torch.inference_mode():
            assert measure.count_flops(frame) == pytest.approx(6.43e9, rel=5e-3)


def test_flops_of_a_rollout_are_those_of_its_frames() -> None:
    """``bench`` counts one and two frames and goes on from there."""
    config, clip = make_config("eval.chunk=2"), make_clip(6)
    model = CPU.place(make_model()).eval()

    def flops(frames: int) -> int:
        return measure.count_flops(lambda: list(benchmark.clip_rollout(model, clip, frames, config, CPU)))

    assert flops(5) == flops(1) + 4 * (flops(2) - flops(1)) > 0


def test_a_rollout_longer_than_its_clip_begins_again() -> None:
    config, clip = make_config("eval.chunk=4"), make_clip(6)
    model = CPU.place(make_model()).eval()
    pieces = list(benchmark.clip_rollout(model, clip, 7, config, CPU, clips=3))
    assert [tuple(p.shape) for p in pieces] == [(3, 4, 3, 8, 8), (3, 3, 3, 8, 8)]
    assert not torch.equal(pieces[0][0], pieces[0][1]), "rows have noise of their own"
    alone = torch.cat(list(benchmark.clip_rollout(model, clip, 7, config, CPU)), 1)
    torch.testing.assert_close(alone[0], torch.cat(pieces, 1)[0], rtol=1e-5, atol=1e-5)


# --- what is measured ---------------------------------------------------------------------------------


def test_the_peak_is_the_best_of_real_work() -> None:
    peak = measure.measure_peak(CPU, seconds=0.01)
    assert min(peak) > 0 and math.isfinite(max(peak))


def test_peak_memory_is_of_this_process() -> None:
    before = measure.peak_memory(CPU)
    size = int(before) // 2
    held = torch.ones(size, dtype=torch.uint8)
    assert measure.peak_memory(CPU) >= before > 1e7 and held.numel() == size


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_the_peak_memory_can_be_counted_anew() -> None:
    """In a process of its own: a used one may keep the memory that was given back."""
    code = (
        "import torch\nfrom cvaecli.engine import measure\nfrom cvaecli.engine.device import Device\n"
        "cpu = Device(torch.device('cpu'), False)\n"
        "held = torch.ones(300_000_000, dtype=torch.uint8)\nbefore = measure.peak_memory(cpu)\ndel held\n"
        "measure.reset_peak_memory(cpu)\nprint(before - measure.peak_memory(cpu))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(told.stdout) > 200e6


def test_the_age_of_the_process_grows() -> None:
    age = measure.process_age()
    if age is None:
        pytest.skip("this system does not say when a process was started")
    later = measure.process_age()
    assert later is not None and 0 < age <= later
