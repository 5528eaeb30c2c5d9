"""Training, validation and prediction together: what they leave on the disk, and that they agree."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, QUICK, SIZES, SMALL_MODELS, make_config, write_set
from PIL import Image

import cvaecli
from cvaecli import api, checkpoint, evaluations
from cvaecli.api import loading, prediction, training
from cvaecli.api.demo import Stage
from cvaecli.config import loading as config
from cvaecli.data.clip import Clip, VideoData
from cvaecli.engine.evaluate import evaluate
from cvaecli.errors import CvaeError, UserError
from cvaecli.reporter import Silent
from cvaecli.run import METRIC_COLUMNS, Run, read_rows
from cvaecli.synthetic import robot


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data") / "set", size=12)


def settings(data: Path, *overrides: str, **sections: dict[str, Any]) -> Any:
    sizes = ("data.height=12", "data.width=12", f"data.root={data}")
    return make_config(*sizes, *overrides, **{"model": QUICK, **sections})


TRAINED = (
    *("train.epochs=3", "train.steps_per_epoch=20", "train.save_every=2", "optim.lr=1e-2", "kl.weight=1e-4"),
    "model.z_dim=8",
)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    runs = tmp_path_factory.mktemp("home") / "runs"
    return api.train(settings(data, *TRAINED), stem="tiny", runs=runs)


def test_a_training_leaves_the_run_folder_of_the_readme(run: Run, data: Path) -> None:
    found = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert found - {".lock"} == {
        *("config.yaml", "run.json", "metrics.csv", "steps.csv", "checkpoints/steps.csv"),
        *(f"checkpoints/{name}.pt" for name in ("last", "previous", "best", "epoch-0001")),
        *(f"samples/epoch-000{epoch}.png" for epoch in range(3)),
        *(f"eval/val/{name}" for name in ("metrics.json", "per_frame.csv", "strip.png", "frames.npz")),
    }
    assert run.name == "tiny-001" and (run.path.parent / "latest").resolve() == run.path.resolve()
    assert config.load(run.path / "config.yaml") == settings(data, *TRAINED)
    info = run.info()
    assert info["status"] == "finished" and info["steps"] == 60 and info["seed"] == 42
    assert info["data"]["fingerprint"] and info["parameters"] > 0 and info["precision"] == "fp32"
    rows = read_rows(run.path / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"] and list(rows[0]) == METRIC_COLUMNS
    assert all(row["val/psnr"] and row["train/loss"] for row in rows)


def test_an_evaluation_keeps_pictures_of_its_clips(run: Run) -> None:
    clip = evaluations.read_frames(run.path)[0]
    assert list(clip.rows) == ["truth", "posterior", "rollout", "condition"]
    last = int(clip.numbers[-1])
    assert clip.numbers[0] == 1 and clip.rows["truth"].shape == (len(clip.numbers), 12, 12, 3)
    rows = list(csv.DictReader((run.path / "eval/val/per_frame.csv").open()))
    due = next(float(row["psnr"]) for row in rows if row["clip"] == clip.name and int(row["frame"]) == last)
    error = np.mean((clip.rows["rollout"][-1] / 255.0 - clip.rows["truth"][-1] / 255.0) ** 2)
    assert -10 * np.log10(error) == pytest.approx(due, abs=0.05), "the pictures are those that were scored"


def test_best_is_the_best_validation_and_is_what_is_scored(run: Run) -> None:
    rows = read_rows(run.path / "metrics.csv")
    values = [float(row["val/psnr"]) for row in rows]
    best = checkpoint.load(run.checkpoint_path("best"))
    assert best["epoch"] - 1 == values.index(max(values)) and best["psnr"] == pytest.approx(max(values))
    assert "trainer" not in best and "trainer" in checkpoint.load(run.checkpoint_path("last"))
    metrics = api.evaluation(run)
    assert metrics["psnr"] == pytest.approx(max(values), abs=1e-3)
    assert metrics["protocol"]["checkpoint"] == "best.pt"
    assert metrics["protocol"]["checkpoint_fingerprint"] == checkpoint.fingerprint(best)


def test_validate_gives_what_it_writes(run: Run) -> None:
    summary = api.validate(run.path)
    written = json.loads((run.path / "eval/val/metrics.json").read_text())
    assert summary == written
    assert set(summary) >= {
        *("psnr", "psnr_one_step", "psnr_of_mean_mse", "psnr_per_channel", "ssim", "kl", "frames", "clips"),
        *("baselines", "protocol"),
    }
    assert set(summary["baselines"]) == {"repeat_last_past", "mean_frame"}
    rows = list(csv.DictReader((run.path / "eval/val/per_frame.csv").open()))
    assert len(rows) == summary["frames"] == 6
    assert np.mean([float(row["psnr"]) for row in rows]) == pytest.approx(summary["psnr"], abs=1e-5)
    assert [int(row["frame"]) for row in rows] == [1, 2, 3, 4, 5, 6]


def test_validating_twice_and_in_other_pieces_is_the_same(run: Run) -> None:
    scores = [
        api.validate(run.path, overrides, runs=run.path.parent)["psnr"]
        for overrides in ([], [], ["eval.chunk=2", "eval.batch_size=1"], ["seed=7"])
    ]
    assert scores[0] == scores[1] == pytest.approx(scores[2], abs=1e-4)
    assert scores[3] != scores[0], "another seed, other noise"


def test_prediction_and_validation_agree(run: Run, data: Path, tmp_path: Path) -> None:
    api.validate(run.path)
    (path,) = api.predict(run.path, out=tmp_path / "x.npz", split="val")
    frames = np.load(path)["frames"]
    truth = np.stack([np.asarray(Image.open(data / f"val/val_img/{t}.png")) for t in range(7)])
    assert frames.shape == truth.shape == (7, 12, 12, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[0], truth[0])
    error = ((frames / 255.0 - truth / 255.0) ** 2).mean((1, 2, 3))[1:]
    rows = list(csv.DictReader((run.path / "eval/val/per_frame.csv").open()))
    np.testing.assert_allclose(-10 * np.log10(error), [float(row["psnr"]) for row in rows], atol=0.05)


def test_prediction_and_validation_draw_the_same_noise(run: Run, tmp_path: Path) -> None:
    """To the last grey level, and another seed gives another picture."""
    opened = loading.open_run(run.path, [])
    clips = loading.load_data(opened.config, ("val",), Silent()).splits["val"]
    scores = evaluate(opened.model, clips, CPU, opened.config.eval, n_past=1, seed=opened.config.seed)
    strip = scores.clips[0].strip["rollout"]
    (path,) = api.predict(run.path, out=tmp_path / "x.npz", split="val")
    np.testing.assert_array_equal(np.load(path)["frames"][1:], strip)
    (path,) = api.predict(run.path, ["seed=7"], out=tmp_path / "x.npz", split="val")
    assert not np.array_equal(np.load(path)["frames"][1:], strip)


def test_the_prior_mean_has_one_sample(run: Run, tmp_path: Path) -> None:
    def frames(*overrides: str) -> list[np.ndarray]:
        paths = api.predict(run.path, overrides, out=tmp_path / "m.npz", samples=2)
        return [np.load(path)["frames"] for path in paths]

    a, b = frames()
    assert not np.array_equal(a, b)
    a, b = frames("eval.prior=mean")
    assert np.array_equal(a, b)


def test_a_run_is_scored_with_and_without_the_mirrored_prediction(
    run: Run, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    copy = Path(shutil.copytree(run.path, tmp_path / "copy/run"))
    plain = api.validate(copy)
    averaged = api.validate(copy, ["eval.average_flips=true"])
    assert averaged["psnr"] != plain["psnr"] and averaged["kl"] == plain["kl"]
    assert averaged["protocol"]["average_flips"] and not plain["protocol"]["average_flips"]
    frames = []
    for average in ("false", "true"):
        average = f"eval.average_flips={average}"
        (path,) = api.predict(copy, [average], out=tmp_path / "x.npz", split="val")
        frames.append(np.load(path)["frames"])
    assert not np.array_equal(*frames)

    pose = settings(data, "eval.average_flips=true", model=SIZES)
    with pytest.raises(UserError, match="the model pose cannot average over flips"):
        api.train(pose, name="b", runs=tmp_path)
    assert not (tmp_path / "b").exists()


def test_the_first_frames_of_a_long_prediction_equal_a_short_one(run: Run, tmp_path: Path) -> None:
    long, short = (
        np.load(api.predict(run.path, out=tmp_path / f"{n}.npz", frames=n)[0])["frames"] for n in (7, 4)
    )
    np.testing.assert_array_equal(long[:4], short)


def test_the_submission_has_the_courses_layout(run: Run, data: Path, tmp_path: Path) -> None:
    paths = api.predict(
        run.path, out=tmp_path / "x.npz", sequence="all", submission=tmp_path / "submission.csv"
    )
    assert [path.name for path in paths] == ["x-0.npz", "x-1.npz", "submission.csv"]
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert lines[0] == ",".join(["id", *map(str, range(3 * 12 * 12))])
    table = np.array([[int(v) for v in line.split(",")] for line in lines[1:]])
    assert table.shape == (14, 1 + 3 * 12 * 12) and table[:, 0].tolist() == list(range(14))
    frames = np.concatenate([np.load(path)["frames"] for path in paths[:2]])
    np.testing.assert_array_equal(table[:, 1:].reshape(14, 3, 12, 12), np.moveaxis(frames, -1, 1))
    first = np.asarray(Image.open(data / "test/test_img/1/0.png"))
    np.testing.assert_array_equal(table[7, 1:].reshape(3, 12, 12), np.moveaxis(first, -1, 0))


def test_videos_predicted_together_are_those_predicted_one_by_one(run: Run, tmp_path: Path) -> None:
    def frames(folder: str, *overrides: str) -> np.ndarray:
        paths = api.predict(
            run.path,
            overrides,
            out=tmp_path / folder / "x.npz",
            sequence="all",
            samples=3,
            submission=tmp_path / folder / "submission.csv",
        )
        names = [f"x-{s}-s{k}.npz" for s in range(2) for k in range(3)]
        assert [path.name for path in paths] == [*names, "submission.csv"]
        return np.stack([np.load(path)["frames"] for path in paths[:-1]]).astype(int)

    alone = frames("alone", "eval.batch_size=1")
    assert all((alone[a] != alone[b]).any() for a, b in itertools.combinations(range(6), 2))
    for size in (2, 4, 8):
        together = frames(f"{size}", f"eval.batch_size={size}")
        assert np.abs(together - alone).max() <= 1, "sums of another batch may be rounded differently"
        rows = (tmp_path / f"{size}" / "submission.csv").read_text().splitlines()[1:]
        table = np.array([[int(v) for v in row.split(",")] for row in rows])
        assert table[:, 0].tolist() == list(range(14))
        first_samples = np.moveaxis(together[[0, 3]], -1, 2).reshape(14, -1)
        np.testing.assert_array_equal(table[:, 1:], first_samples)


def test_noise_does_not_depend_on_the_other_videos(data: Path, run: Run) -> None:
    opened = loading.open_run(run.path, [])
    a, b = loading.load_data(opened.config, ("test",), Silent()).splits["test"]
    videos = [prediction.Video(a, 7), prediction.Video(b, 7, 1), prediction.Video(a, 7, 2)]
    (together,) = prediction._noise(opened.model, videos, opened.config)(2, 3)
    alone = [prediction._noise(opened.model, [video], opened.config)(2, 3)[0] for video in videos]
    assert torch.equal(together, torch.cat(alone)) and not torch.equal(alone[0], alone[2])


def test_a_submission_holds_every_sequence_whichever_is_asked_for(run: Run, tmp_path: Path) -> None:
    paths = api.predict(
        run.path, out=tmp_path / "x.npz", sequence=1, samples=2, submission=tmp_path / "s.csv"
    )
    assert [path.name for path in paths] == ["x-s0.npz", "x-s1.npz", "s.csv"]
    rows = (tmp_path / "s.csv").read_text().splitlines()[1:]
    table = np.array([[int(v) for v in row.split(",")] for row in rows])
    assert table[:, 0].tolist() == list(range(14))
    frames = np.moveaxis(np.load(paths[0])["frames"], -1, 1).reshape(7, -1)
    np.testing.assert_array_equal(table[7:, 1:], frames)


def test_a_failed_write_leaves_nothing_that_looks_finished(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out-1").mkdir()
    (tmp_path / "out-1" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="not an empty folder"):
        api.predict(run.path, out=tmp_path / "out", sequence="all", submission=tmp_path / "s.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["out-1"]


def test_an_error_while_predicting_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        yield torch.zeros(2, 3, 3, 12, 12)
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "rollout", broken)
    with pytest.raises(KeyboardInterrupt):
        api.predict(run.path, out=tmp_path / "x.gif", sequence="all", submission=tmp_path / "s.csv")
    assert list(tmp_path.iterdir()) == []


def test_too_many_frames_are_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    for sequence in (0, "all"):
        with pytest.raises(UserError, match="--frames 8") as caught:
            api.predict(run.path, out=tmp_path / "x.gif", frames=8, sequence=sequence)
        assert "2 to 7" in caught.value.hint
    with pytest.raises(UserError, match="--frames 1"):
        api.predict(run.path, out=tmp_path / "x.gif", frames=1)
    assert not list(tmp_path.iterdir())


def test_a_short_sequence_is_noticed_before_the_long_ones_are_predicted(
    run: Run, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "set")
    for t in (4, 5, 6):
        (tmp_path / f"set/test/test_label/1/{t}.png").unlink()
    with pytest.raises(UserError, match="--frames 6: test/1 has conditions for 4"):
        api.predict(
            run.path,
            [f"data.root={tmp_path / 'set'}"],
            out=tmp_path / "x.npz",
            frames=6,
            submission=tmp_path / "submission.csv",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_export_gif_shows_three_panels_where_there_is_a_truth(run: Run) -> None:
    path = api.export_gif(run.path)
    assert path == run.path / "predictions" / "val-0-panels.gif"
    with Image.open(path) as gif:
        width, frames = gif.width, getattr(gif, "n_frames", 1)
    assert frames == 7
    without = api.export_gif(run.path, split="test")
    with Image.open(without) as gif:
        assert gif.width < width, "test has no true frames: two panels"


@pytest.mark.usefixtures("coarse_figures")
def test_plot_draws_from_the_files_alone(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(run.path, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    for path in api.plot("all", [copy]):
        with Image.open(path) as image:
            assert image.width > 100


def test_a_failed_training_says_so_and_keeps_its_last_checkpoint(data: Path, tmp_path: Path) -> None:
    """The learning rate is so high that the weights overflow; the first epoch's loss is still finite."""
    broken = settings(
        data,
        *("optim.lr=1e30", "train.window=20", "train.batch_size=1", "eval.every=0", "train.epochs=5"),
        optim={"name": "sgd", "schedule": "constant"},
        train={"grad_clip": None},
    )
    with pytest.raises(CvaeError, match="no step of epoch 1 was finite") as caught:
        api.train(broken, name="broken", runs=tmp_path)
    assert caught.value.exit_code == 1
    run = Run(tmp_path / "broken")
    assert run.info()["status"] == "failed" and "training stopped" in run.info()["error"]
    assert checkpoint.load(run.checkpoint_path("last"))["step"] == 1
    assert len(read_rows(run.path / "metrics.csv")) == 1


def test_a_long_training_on_a_cpu_says_how_long(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    reporter = Silent()
    reporter.note = notes.append  # type: ignore[method-assign]
    monkeypatch.setattr(training, "MEASURED", 0.0)
    api.train(settings(data, *TRAINED, "train.max_steps=3"), runs=tmp_path, reporter=reporter)
    assert notes == [], "a short one does not"
    monkeypatch.setattr(training, "SLOW", 0.0)
    api.train(settings(data, *TRAINED, "train.max_steps=9"), runs=tmp_path, reporter=reporter)
    (line,) = notes
    for text in ("to go on this CPU (7 steps, ", "--config quickstart", "train.epochs"):
        assert text in line


def test_wrong_data_leave_no_run_behind(data: Path, tmp_path: Path) -> None:
    for overrides in (
        ["data.root=/nowhere"],
        ["train.window=21"],
        ["train.batch_size=99"],
        ["runtime.device=cuda:77"],
    ):
        with pytest.raises(UserError):
            api.train(settings(data, *overrides), runs=tmp_path / "runs")
    small_arm = ["data.height=24", "data.width=24", *SMALL_MODELS["svg"]]  # svg needs multiples of 16
    with pytest.raises(UserError, match="svg needs multiples of 16, these are 24x24"):
        api.train(config.load("robot", small_arm), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_pairs_need_no_clip_as_long_as_a_window(tmp_path: Path) -> None:
    short = write_set(tmp_path / "short", train=3)  # the window is 4, 3 of them consecutive
    pairs = make_config(f"data.root={short}", "train.sampling=pairs", "train.batch_size=1")
    assert api.dry_run(pairs)["splits"]["train"]["longest"] == 3
    with pytest.raises(UserError, match="3 frames"):
        api.dry_run(make_config(f"data.root={short}", "train.batch_size=1"))
    with pytest.raises(UserError, match="longest clip has 3 frames, at least 4"):
        api.dry_run(make_config(f"data.root={short}", "train.sampling=pairs", "train.window=5"))


def test_a_dry_run_leaves_nothing_and_tells_sizes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for overrides in ([], ["train.batch_size=1", "train.window=20"], ["train.max_steps=1"]):
        report = api.dry_run(settings(data, *overrides))
        assert report["seconds_per_step"] > 0 and report["peak_memory_gb"] > 0
    assert report["steps"] == 1
    limited = api.dry_run(settings(data, "train.epochs=100000", "train.max_minutes=2"))
    assert limited["estimated_minutes"] == 2
    assert report["splits"]["train"] == {"clips": 1, "frames": 20, "shortest": 20, "longest": 20}
    assert report["frame_shape"] == [3, 12, 12] and report["batch"] == [2, 4]
    assert not list(tmp_path.iterdir())


def test_the_share_on_the_prior_is_named_in_whole_rows(data: Path) -> None:
    class Warnings(Silent):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def warn(self, text: str) -> None:
            self.lines.append(text)

    for share, rows in (
        (0.5, []),
        (0.3, ["train.prior_share: 0.3 of a batch of 2 is 1 rows, a share of 0.5"]),
    ):
        reporter = Warnings()
        report = api.dry_run(settings(data, f"train.prior_share={share}"), reporter=reporter)
        assert report["prior_share"] == 0.5
        assert [line for line in reporter.lines if "prior_share" in line] == rows


def test_a_dry_run_does_not_validate(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a validation can take minutes")

    monkeypatch.setattr("cvaecli.engine.fit.Trainer.evaluate", never)
    api.dry_run(settings(data, "train.batch_size=1", "train.window=20"))


@pytest.mark.parametrize(
    "override", ["model.z_dim=8", "train.epochs=3", "optim.lr=1", "kl.stop=0", "nonsense=1"]
)
def test_what_belongs_to_the_training_cannot_be_changed_afterwards(run: Run, override: str) -> None:
    for call in (api.validate, api.predict, api.export_gif):
        with pytest.raises(UserError, match="is fixed by the training"):
            call(run.path, [override])


def test_data_of_other_conditions_are_refused(run: Run, tmp_path: Path) -> None:
    """A model of label images, and vectors."""
    robot.write(tmp_path / "robot", 32, 32, train=2, val=1, test=1)
    other = ["data.kind=robot", f"data.root={tmp_path / 'robot'}"]
    for call in (api.validate, api.predict, api.export_gif, api.export, Stage):
        with pytest.raises(UserError, match=r"are vectors of 7 numbers; .* trained with label images"):
            call(run.path, other)


def test_pictures_are_written_before_the_numbers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an interruption leaves no new numbers beside old pictures."""
    before = (run.path / "eval/val/metrics.json").read_text()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluations, "write_frames", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.validate(run.path, ["data.n_future=3"])
    assert (run.path / "eval/val/metrics.json").read_text() == before


@pytest.mark.parametrize("key", ["eval.frames", "eval.clips", "eval.every", "data.partial", "eval.samples"])
def test_what_has_no_effect_here_is_refused(run: Run, key: str) -> None:
    for call in (api.predict, api.export_gif) if key == "eval.samples" else (api.validate, api.predict):
        with pytest.raises(UserError, match=f"{key}: has no effect here") as caught:
            call(run.path, [f"{key}=1"])
    if key == "eval.frames":
        assert "data.n_future=N" in caught.value.hint
        assert api.validate(run.path, ["data.n_future=2"])["frames"] == 2


def test_the_protocol_has_the_lengths_that_were_there_and_the_epochs_done(
    run: Run, data: Path, tmp_path: Path
) -> None:
    warnings: list[str] = []
    reporter = Silent()
    reporter.warn = warnings.append  # type: ignore[method-assign]
    protocol = api.validate(run.path, ["data.n_future=10"], reporter=reporter)["protocol"]
    lengths = [protocol[key] for key in ("n_future", "n_future_min", "n_future_max")]
    assert lengths == [10, 6, 6] and warnings == []
    best = checkpoint.load(run.checkpoint_path("best"))
    assert protocol["epochs_done"] == best["epoch"] == best["step"] / 20 and protocol["step"] == best["step"]
    copied = shutil.copytree(data, tmp_path / "set")
    (copied / "clips.csv").write_text("split,first,last\nval,0,2\nval,3,6\n")
    protocol = api.validate(run.path, [f"data.root={copied}"], reporter=reporter)["protocol"]
    assert (protocol["n_future_min"], protocol["n_future_max"]) == (2, 3)
    assert any("clips of 2 to 3 predicted frames" in line for line in warnings)


def test_splits_and_sequences_that_are_not_there(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        api.validate(run.path, split="nope")
    with pytest.raises(UserError, match="no true frames"):
        api.validate(run.path, split="test")
    with pytest.raises(UserError, match="sequences 0 to 1"):
        api.predict(run.path, sequence=2, out=tmp_path / "x.gif")


def test_train_init_starts_from_a_runs_weights(run: Run, data: Path, tmp_path: Path) -> None:
    best = run.checkpoint_path("best")
    init = shutil.copy(best, tmp_path / "init.pt")
    more = settings(data, f"train.init={init}", "optim.lr=1e-12", "train.epochs=1", "train.grad_clip=1e-9")
    more = more.model_copy(update={"model": settings(data, *TRAINED).model})
    started = api.train(more, name="more", runs=tmp_path)
    old, new = (checkpoint.load(path)["model"] for path in (best, started.checkpoint_path("last")))
    for name, value in old.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(new[name], value, atol=1e-6, rtol=1e-5)
    Path(init).unlink()
    api.resume(started.path, ["train.epochs=2"])  # needs it no more
    other = settings(data, f"train.init={best}")
    with pytest.raises(UserError, match="does not fit"):
        api.train(other, runs=tmp_path)


def test_without_a_root_the_built_in_set_serves_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[str] = []
    reporter = Silent()
    reporter.data_source = sources.append  # type: ignore[method-assign]
    asked: dict[str, Any] = {}

    def load(root: Path | None, **options: Any) -> VideoData:
        asked.update(options, root=root)
        return VideoData({}, "built-in synthetic set, seed 0", "0")

    monkeypatch.setattr(loading.sources, "load", load)
    loading.load_data(make_config(), ("train", "val"), reporter)
    assert asked["root"] is None and asked["need"] == ("train", "val")
    assert sources == ["built-in synthetic set, seed 0 (no data.root given)"]


def test_nan_does_not_reach_json() -> None:
    from cvaecli.api.validation import without_nan

    assert without_nan({"a": math.nan, "b": [math.inf, 1.5, {"c": -math.inf}], "d": "nan", "e": 3}) == {
        **{"a": None, "b": [None, 1.5, {"c": None}]},
        **{"d": "nan", "e": 3},
    }


def test_the_public_names_are_there_and_others_are_not() -> None:
    for name in cvaecli.__all__:
        assert getattr(cvaecli, name) is not None
    assert dir(cvaecli) == sorted(cvaecli.__all__) and cvaecli.train is api.train
    with pytest.raises(AttributeError):
        _ = cvaecli.nonsense  # type: ignore[attr-defined]


def test_a_clip_knows_its_lengths() -> None:
    clip = Clip("x", np.zeros((1, 3, 4, 4), np.uint8), np.zeros((5, 2), np.float32))
    assert (clip.n_frames, clip.n_steps) == (1, 5)
