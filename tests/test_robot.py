"""The robot family from end to end: a tiny pushing world trained, resumed, scored, predicted and shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, AddingCVAE, cvae
from PIL import Image

from cvaecli import api, checkpoint
from cvaecli.api import loading
from cvaecli.config import loading as configs
from cvaecli.config.schema import EvalConfig, RunConfig
from cvaecli.data.clip import Clip, VideoData
from cvaecli.data.robot import condition_stats
from cvaecli.engine.evaluate import evaluate
from cvaecli.engine.rollout import rollout
from cvaecli.engine.scores import Evaluation
from cvaecli.errors import UserError
from cvaecli.models.svg.model import SVG, SVGConfig
from cvaecli.reporter import Silent
from cvaecli.run import Run
from cvaecli.seeding import frame_noise
from cvaecli.synthetic import robot as pushing

MODEL: dict[str, Any] = {
    "name": "svg",
    "backbone": "dcgan",
    "width": 8,
    "norm": "group",
    "g_dim": 16,
    "z_dim": 4,
    "rnn_size": 16,
    "conditional_conv": True,
}
RAW: dict[str, Any] = {
    "data": {"kind": "robot", "height": 32, "width": 32},
    "model": MODEL,
    "train": {"epochs": 2, "steps_per_epoch": 12, "window": 12, "batch_size": 4, "log_every": 4},
    "kl": {"schedule": "none", "weight": 1e-5},
    "teacher_forcing": {"ratio": 1.0, "decay_start": 1, "decay": 0.5, "coin": "batch"},
    "optim": {"lr": 3e-3, "schedule": "constant"},
    "runtime": {"device": "cpu", "precision": "fp32"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pushing") / "set"
    pushing.write(path, 32, 32, train=6, val=3, test=2)
    return path


def settings(root: Path, *overrides: str) -> RunConfig:
    return configs.from_dict(RAW, [f"data.root={root}", *overrides])


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    runs = tmp_path_factory.mktemp("home") / "runs"
    return api.train(settings(root), stem="arm", runs=runs)


def rows(run: Run, name: str = "val") -> list[dict[str, str]]:
    with (run.path / "eval" / name / "per_frame.csv").open() as file:
        return list(csv.DictReader(file))


# --- training ----------------------------------------------------------------------------------------


def test_trains_and_scores_two_frames_to_ten(run: Run) -> None:
    assert run.info()["status"] == "finished" and run.info()["steps"] == 24
    summary = api.evaluation(run)
    assert summary["protocol"]["n_past"] == 2 and summary["protocol"]["n_future"] == 10
    assert [clip["frames"] for clip in summary["clips"]] == [10, 10, 10]
    assert [int(row["frame"]) for row in rows(run)[:10]] == list(range(2, 12))
    assert summary["psnr_per_channel"] >= summary["psnr"] > 5
    assert summary["protocol"]["conditions"] == "the clip's own"
    assert 10 < summary["baselines"]["repeat_last_past"]["psnr"] < 30


def test_conditions_are_normalised_by_the_training_split_and_saved(run: Run) -> None:
    opened = loading.open_run(run.path, [])
    data = loading.load_data(opened.config, ("train", "val"), Silent())
    mean, std = condition_stats(data.splits["train"])
    assert isinstance(opened.model, SVG)
    np.testing.assert_array_equal(opened.model.condition_mean, mean)
    np.testing.assert_array_equal(opened.model.condition_std, std)
    assert (std > 0).all() and not np.array_equal(mean, condition_stats(data.splits["val"])[0])
    saved = checkpoint.load(run.checkpoint_path("last"))["model"]
    np.testing.assert_array_equal(saved["condition_mean"], mean)


def test_normalisation_is_what_the_model_sees() -> None:
    """Raw conditions with the statistics set equal normalised conditions without."""
    torch.manual_seed(0)
    model = SVG(SVGConfig(**MODEL), (7,)).eval()
    mean, std = torch.linspace(-2, 3, 7), torch.linspace(0.5, 4, 7)
    past, condition = torch.rand(2, 3, 3, 32, 32), torch.randn(2, 6, 7)
    noise = [torch.zeros(2, 3, *shape) for shape in model.noise_shapes((32, 32))]

    def predicted(condition: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            state = model.start(past, condition[:, :3])
            x = past[:, -1:].expand(-1, 3, -1, -1, -1)
            return model.unroll(state, x, model.encode(condition[:, 3:]), noise, posterior=False)[0].x_hat

    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    plain = predicted((condition - mean) / std)
    assert not torch.allclose(plain, predicted(condition), atol=1e-4)
    model.set_condition_stats(mean, std)
    torch.testing.assert_close(predicted(condition), plain)
    raw = SVG(SVGConfig(**MODEL, normalise=False), (7,))
    raw.set_condition_stats(mean, std)
    assert not raw.condition_mean.any() and bool((raw.condition_std == 1).all())


def test_a_training_from_weights_keeps_their_statistics(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pushing.write(other, 32, 32, train=4, val=2, test=1, seed=9)
    init = f"train.init={run.checkpoint_path('last')}"
    second = api.train(settings(other, init, "train.max_steps=1"), runs=tmp_path / "runs")
    first, second_ = (checkpoint.load(one.checkpoint_path("last"))["model"] for one in (run, second))
    torch.testing.assert_close(second_["condition_std"], first["condition_std"], rtol=0, atol=0)


def test_resuming_is_exact(run: Run, root: Path, tmp_path: Path) -> None:
    part = api.train(settings(root, "train.max_steps=7"), runs=tmp_path / "runs")
    again = api.resume(part.path, ["train.max_steps=null"])
    whole, resumed = (checkpoint.load(one.checkpoint_path("last"))["model"] for one in (run, again))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_batch_norm_needs_two(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.batch_size: 1") as caught:
        api.train(settings(root, "model.norm=batch", "train.batch_size=1"), runs=tmp_path / "runs")
    assert "model.norm=group" in caught.value.hint and not (tmp_path / "runs").exists()
    divided = "train.batch_size=4", "train.accumulate=4"
    with pytest.raises(UserError, match="1 row in a micro-batch"):
        api.train(settings(root, "model.norm=batch", *divided), runs=tmp_path / "runs")


def test_label_models_refuse_vectors(root: Path) -> None:
    with pytest.raises(UserError):
        api.dry_run(settings(root, "model.name=pose"))


# --- samples -----------------------------------------------------------------------------------------


def test_samples_have_a_best_a_worst_and_a_spread(run: Run) -> None:
    summary = api.validate(run.path, ["eval.samples=3"])
    for name in ("psnr", "ssim"):
        best, worst = summary[f"{name}_best_of_samples"], summary[f"{name}_worst_of_samples"]
        assert best > summary[name] > worst
    assert summary["diversity"] > 0 and summary["protocol"]["samples"] == 3
    table = rows(run)
    for name in ("psnr_best", "psnr_worst", "ssim_best", "ssim_worst", "diversity", "psnr_per_channel"):
        assert all(np.isfinite(float(row[name])) for row in table), name
    for key in ("psnr_best", "psnr_worst"):
        mean = np.mean([float(row[key]) for row in table])
        assert mean == pytest.approx(summary[f"{key}_of_samples"], abs=1e-5)
    assert np.mean([float(row["diversity"]) for row in table]) == pytest.approx(summary["diversity"])
    one = api.validate(run.path)
    assert one["diversity"] is None and {row["diversity"] for row in rows(run)} == {""}
    assert one["psnr_best_of_samples"] == one["psnr"] == one["psnr_worst_of_samples"]
    assert api.validate(run.path, ["eval.samples=2", "eval.prior=mean"])["diversity"] == 0


def scored(run: Run, **limits: Any) -> Evaluation:
    opened = loading.open_run(run.path, [])
    clips = loading.load_data(opened.config, ("val",), Silent()).splits["val"]
    return evaluate(opened.model, clips, CPU, EvalConfig(**limits), n_past=2, n_future=10)


def test_diversity_is_the_standard_deviation_of_the_predictions(run: Run) -> None:
    opened = loading.open_run(run.path, [])
    model, clips = opened.model, loading.load_data(opened.config, ("val",), Silent()).splits["val"]
    torch.manual_seed(0)
    with torch.no_grad():  # after so short a training z hardly shows
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    clip, shapes = clips[1], model.noise_shapes((32, 32))
    x = torch.from_numpy(clip.frames.copy())[None, :2].float() / 255
    c = torch.from_numpy(clip.condition.copy())[None]
    drawn = [frame_noise(5, [clip.name], range(2, 12), shapes, sample) for sample in range(3)]
    samples = [
        torch.cat(list(rollout(model, x, c[:, :2], [c[:, 2:12]], lambda *_, n=n: n, CPU))).numpy()
        for n in drawn
    ]
    expected = np.concatenate(samples).clip(0, 1).std(0, ddof=1).mean((1, 2, 3))
    assert expected.min() > 1e-3, "so that it says something"
    for limits in ({}, {"chunk": 3}, {"batch_size": 1}):
        config = EvalConfig(samples=3, **limits)
        one = evaluate(model, clips, CPU, config, n_past=2, n_future=10, seed=5).clips[1]
        assert one.diversity is not None
        np.testing.assert_allclose(one.diversity, expected, rtol=1e-3)


def test_the_strip_shows_truth_posterior_and_rollout(run: Run) -> None:
    strip = scored(run).clips[0].strip
    assert list(strip) == ["truth", "posterior", "rollout"], "a vector is no picture"
    assert {rows.shape for rows in strip.values()} == {(10, 32, 32, 3)}
    one = scored(run, samples=3).clips[0]
    assert list(one.strip) == ["truth", "posterior", "rollout", "best sample"]
    error = ((one.strip["best sample"] / 255.0 - one.strip["truth"] / 255.0) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(-10 * np.log10(error), one.psnr[one.best], atol=0.1)
    error = ((one.strip["posterior"] / 255.0 - one.strip["truth"] / 255.0) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(-10 * np.log10(error), one.psnr_posterior, atol=0.1)


# --- what the condition is worth ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("swap", "columns"),
    [("actions", slice(0, 4)), ("positions", slice(4, 7)), ("conditions", slice(0, 7))],
)
def test_a_swap_changes_these_columns_of_the_predicted_steps_only(
    run: Run, swap: Any, columns: slice
) -> None:
    own = api.validate(run.path)
    before = (run.path / "eval/val/metrics.json").read_text()
    other = api.validate(run.path, swap=swap)
    assert (run.path / "eval/val/metrics.json").read_text() == before
    assert json.loads((run.path / f"eval/val-swapped-{swap}/metrics.json").read_text()) == other
    assert other["protocol"]["conditions"] == f"predicted steps: the next clip's {swap}"
    assert other["protocol"]["split"] == "val"
    assert other["psnr"] != own["psnr"] and other["baselines"] == own["baselines"]
    opened = loading.open_run(run.path, [])
    clips = loading.load_data(opened.config, ("val",), Silent()).splits["val"]
    by_hand = []
    for clip, next_clip in zip(clips, [*clips[1:], clips[0]], strict=True):
        condition = np.array(clip.condition)
        condition[2:, columns] = next_clip.condition[2:, columns]
        by_hand.append(Clip(clip.name, clip.frames, condition))
    scores = evaluate(opened.model, by_hand, CPU, EvalConfig(), n_past=2, n_future=10, seed=42)
    assert other["psnr"] == pytest.approx(scores.summary()["psnr"], abs=1e-6)


def test_a_swap_leaves_the_frames_and_what_drives_the_given_ones(run: Run) -> None:
    """Else a predictor that looks at no action would lose decibels too."""
    from cvaecli.api.validation import swapped

    clips = loading.load_data(loading.open_run(run.path, []).config, ("val",), Silent()).splits["val"]
    for columns in (slice(0, 4), slice(4, 7), slice(None)):
        exchanged = swapped(clips, columns, 2)
        for clip, other in zip(clips, exchanged, strict=True):
            np.testing.assert_array_equal(clip.frames, other.frames)
            np.testing.assert_array_equal(clip.condition[:2], other.condition[:2])


def test_the_command_says_whose_conditions_and_how_far_samples_spread(run: Run) -> None:
    out = cvae("validate", run.path, "--swap", "actions", "--samples", 2).good().out
    for text in ("the next clip's actions", "best sample", "worst sample", "diversity 0."):
        assert text in out
    out = cvae("validate", run.path, "--swap", "positions", "--json").good().out
    assert "the next clip's positions" in json.loads(out)["protocol"]["conditions"]
    cvae("validate", run.path, "--swap", "labels").usage("--swap", "'labels' is not one of")


def test_the_command_shows_the_psnr_that_the_literature_quotes(run: Run) -> None:
    said = cvae("validate", run.path).good().out
    metrics = api.evaluation(run)
    assert metrics["protocol"]["literature_psnr"] == "psnr_per_channel"
    assert "PSNR of each channel averaged*" in said and f"{metrics['psnr_per_channel']:.2f}" in said


def test_what_cannot_be_swapped_is_refused(run: Run, tmp_path: Path) -> None:
    from cvaecli.api.validation import _columns

    pushing.write(tmp_path / "one", 32, 32, train=1, val=1, test=1)
    with pytest.raises(UserError, match="one clip"):
        api.validate(run.path, [f"data.root={tmp_path / 'one'}"], swap="conditions")
    with pytest.raises(UserError, match="--swap actions: these data have no actions"):
        _columns(VideoData({}, "labels", "0"), "actions")


def test_swapping_cuts_to_the_shorter_of_two() -> None:
    from cvaecli.api.validation import swapped

    frames, vectors = np.zeros((9, 3, 8, 8), np.uint8), np.zeros((9, 2), np.float32)
    clips = [Clip("long", frames, vectors), Clip("short", frames[:5], vectors[:5] + 1)]
    long, short = swapped(clips, slice(None), 2)
    assert (long.name, long.n_frames, long.n_steps) == ("long", 5, 5)
    assert (short.name, short.n_frames, short.n_steps) == ("short", 5, 5)
    assert not long.condition[:2].any() and long.condition[2:].all()
    assert short.condition[:2].all() and not short.condition[2:].any()


def test_models_that_do_not_normalise_ignore_condition_stats() -> None:
    model = AddingCVAE()
    before = model.state_dict()
    model.set_condition_stats(torch.ones(7), torch.ones(7))
    assert model.state_dict().keys() == before.keys()


# --- pictures ----------------------------------------------------------------------------------------


def test_predicts_the_given_frames_and_ten_more(run: Run, tmp_path: Path) -> None:
    (path,) = api.predict(run.path, out=tmp_path / "x.npz")
    assert np.load(path)["frames"].shape == (12, 32, 32, 3)
    (path,) = api.predict(run.path, out=tmp_path / "y.npz", frames=14)
    assert len(np.load(path)["frames"]) == 14, "as long as the actions go"
    with pytest.raises(UserError, match="--frames 15"):
        api.predict(run.path, out=tmp_path / "z.npz", frames=15)


def test_exports_truth_beside_prediction(run: Run) -> None:
    path = api.export_gif(run.path)
    assert path.name == "test-0-panels.gif"
    with Image.open(path) as gif:
        assert getattr(gif, "n_frames", 1) >= 8


@pytest.mark.usefixtures("coarse_figures")
def test_plots_everything(run: Run, tmp_path: Path) -> None:
    api.validate(run.path, ["eval.samples=3"])
    names = {path.stem for path in api.plot("all", [run.path], out=tmp_path)}
    assert names >= {"psnr", "loss", "beta", "tfr", "kl"}
    api.validate(run.path, swap="conditions")
    assert api.plot("psnr", [run.path], out=tmp_path / "swapped.png", split="val-swapped-conditions")
