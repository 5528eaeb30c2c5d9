"""Figures are drawn from files alone; what is missing or damaged is named."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import cvae
from PIL import Image

from cvaecli import plots, schedules
from cvaecli.config import loading
from cvaecli.config.schema import KLConfig, OptimConfig, TeacherForcingConfig
from cvaecli.errors import UserError
from cvaecli.evaluations import ClipFrames, read_frames, write_frames
from cvaecli.plots import style
from cvaecli.plots.psnr import psnr_figure
from cvaecli.plots.runs import Request, make_runs
from cvaecli.plots.schedules import Plan, curve_of, moves_within_epochs, steps_of_epochs
from cvaecli.tables import AbsentError, read_table

SCHEDULES = ("cyclical", "monotonic", "none")
FROM_TRAINING = [kind for kind in plots.KINDS if kind not in ("samples", "compare")]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def make_run(
    folder: Path,
    schedule: str = "cyclical",
    *,
    epochs: int = 40,
    steps_per_epoch: int = 20,
    per_step: bool = False,
    coin: str = "epoch",
    clips: int = 1,
    frames: int = 60,
    every: int = 1,
    samples: int = 1,
    level: float = 30.0,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
) -> Path:
    """A run folder with plausible numbers, and the schedules that its config gives.

    ``settings`` replaces sections of the config, ``info`` entries of run.json.
    """
    rng = np.random.default_rng(seed)
    config: dict[str, Any] = {
        "seed": seed,
        "data": {"kind": "dance"},
        "model": {"name": "anchored"},
        "train": {"epochs": epochs, "steps_per_epoch": steps_per_epoch},
        "kl": {"schedule": schedule, "unit": "step" if per_step else "epoch"},
        "teacher_forcing": {"ratio": 1.0, "decay": 0.05, "decay_start": 6},
        "optim": {"schedule": "multistep"},
        "eval": {"every": every},
    } | (settings or {})
    forcing = TeacherForcingConfig(**(config["teacher_forcing"] or {}))
    plan = Plan(KLConfig(**config["kl"]), forcing, OptimConfig(**config["optim"]), [steps_per_epoch] * epochs)
    metrics, steps = [], []
    for e in range(epochs):
        tfr = plan.value("tfr", 0, e)
        forced = (
            float(rng.random() < tfr) if coin == "epoch" else float(np.clip(tfr + rng.normal(0, 0.02), 0, 1))
        )
        noise = np.exp(rng.normal(0, 0.06))
        recon = noise * (0.02 + 0.3 * np.exp(-e / 6)) * (0.7 if forced > 0.5 else 1.0)
        last = (e + 1) * steps_per_epoch - 1
        kl = 4.0 / (plan.value("beta", last, e) + 0.05) * (0.4 + np.exp(-e / 10))
        scheduled = {name: plan.value(name, last, e) for name in ("beta", "tfr", "lr")}
        row: dict[str, Any] = {"epoch": e, "step": last + 1, "time": 3.0 * e, **scheduled}
        row |= {"train/loss": recon + 1e-3 * kl, "train/recon": recon, "train/kl": kl}
        row |= {"forced": forced, "gpu/celsius": "warm"}
        psnr = level - 9 * np.exp(-e / 8) + rng.normal(0, 0.3)
        val = {"val/loss": 1.2 * recon + 1e-3 * kl, "val/recon": 1.2 * recon, "val/kl": 1.1 * kl}
        val |= {"val/psnr": psnr, "val/psnr_one_step": psnr + 5, "val/ssim": 0.9}
        metrics.append(row | (val if e % every == 0 else dict.fromkeys(val, "")))
        for s in range(4, steps_per_epoch, 5):
            at = e * steps_per_epoch + s
            step = {"step": at + 1, "epoch": e, "loss": recon, "recon": recon}
            step |= {name: plan.value(name, at, e) for name in ("beta", "tfr", "lr")}
            step["kl"] = 4.0 / (step["beta"] + 0.05) * (0.4 + np.exp(-e / 10)) * np.exp(rng.normal(0, 0.1))
            steps.append(step | {"forced": forced, "frames_per_s": 900})
    write_csv(folder / "metrics.csv", metrics)
    write_csv(folder / "steps.csv", steps)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    info = {"status": "finished", "steps": epochs * steps_per_epoch} | (info or {})
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    make_evaluation(folder / "eval" / "val", clips, frames, samples, level, rng)
    make_frames(folder, clips)
    return folder


def make_frames(run: Path, clips: int) -> None:
    shades = np.arange(4, dtype=np.uint8)[:, None, None, None]
    rows = {
        name: np.broadcast_to(shades + 40 * n, (4, 6, 10, 3)).copy()
        for n, name in enumerate(("truth", "posterior", "rollout", "condition"))
    }
    numbers = np.array([1, 21, 41, 60])
    write_frames(run, "val", [ClipFrames(f"val/{clip}", numbers, rows) for clip in range(clips)])


def make_evaluation(
    folder: Path, clips: int, frames: int, samples: int, level: float, rng: np.random.Generator
) -> None:
    rows = []
    hard = np.random.default_rng(7)  # the same frames are hard for every run
    for clip in range(clips):
        walk = np.cumsum(hard.normal(0, 0.4, frames))
        walk -= np.linspace(0, walk[-1], frames)
        for k in range(frames):
            psnr = level + clip + walk[k] + rng.normal(0, 0.4)
            row: dict[str, Any] = {"clip": f"val/{clip}", "frame": k + 1, "psnr": psnr, "ssim": ""}
            row |= {"psnr_one_step": level + 5 + 0.7 * walk[k], "ssim_one_step": ""}
            row |= {"psnr_best": psnr + (0.6 if samples > 1 else 0.0)}
            row |= {"psnr_worst": psnr - (0.4 if samples > 1 else 0.0), "psnr_per_channel": psnr + 0.5}
            row |= {"psnr_posterior": row["psnr_one_step"] + 0.25, "kl": 3.0}
            rows.append(row | {"repeat_last_past": 16 + 0.5 * walk[k], "mean_frame": 19 + 0.3 * walk[k]})
    write_csv(folder / "per_frame.csv", rows)
    protocol = {"split": "val", "prior": "sample", "samples": samples, "step": int(rng.integers(9**9))}
    summary = {"psnr": level, "frames": len(rows), "protocol": protocol}
    summary["baselines"] = {"repeat_last_past": {"psnr": 16.0}}
    (folder / "metrics.json").write_text(json.dumps(summary), encoding="utf-8")


def request(*folders: Path, split: str | None = None, log: bool | None = None) -> Request:
    return Request(make_runs(folders), split, log)


def draw(kind: str, *folders: Path, log: bool | None = None) -> Any:
    return plots.drawer(kind)(request(*folders, log=log))


def change_info(run: Path, **values: Any) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def change_protocol(run: Path, **values: Any) -> None:
    path = run / "eval" / "val" / "metrics.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["protocol"] |= values
    path.write_text(json.dumps(content), encoding="utf-8")


def title(figure: Any) -> str:
    return str(figure.legends[0].get_title().get_text())


def legend_texts(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", FROM_TRAINING)
def test_one_run_is_drawn_into_its_own_folder_at_page_width(kind: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "pose-001", epochs=6)
    [path] = plots.plot(kind, [run])
    assert path == run / "plots" / f"{kind}.png"
    with Image.open(path) as image:
        assert image.width == pytest.approx(6.3 * 300, abs=1)
        assert image.info["dpi"][0] == pytest.approx(300, abs=1)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no litter"


@pytest.mark.usefixtures("coarse_figures")
@pytest.mark.parametrize("kind", FROM_TRAINING)
def test_several_runs_make_one_figure_beside_them(kind: str, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, epochs=6) for name in SCHEDULES]
    assert plots.plot(kind, runs) == [tmp_path / "plots" / f"{kind}-cyclical-vs-2-others.png"]


@pytest.mark.usefixtures("coarse_figures")
def test_two_runs_are_both_in_the_files_name(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, epochs=2) for name in SCHEDULES[:2]]
    assert plots.plot("lr", runs) == [tmp_path / "plots" / "lr-cyclical-vs-monotonic.png"]


def test_the_suffix_decides_the_format_and_folders_are_made(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=3)
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        [path] = plots.plot("beta", [run], tmp_path / "deep" / "er" / f"x{suffix}")
        assert path.read_bytes().startswith(magic)
    assert plots.plot("beta", [run], tmp_path / "folder") == [tmp_path / "folder" / "beta.png"]
    with pytest.raises(UserError, match=r"x\.jpg.*\.png, \.pdf, \.svg"):
        plots.plot("beta", [run], tmp_path / "x.jpg")


@pytest.mark.usefixtures("coarse_figures")
def test_all_draws_what_the_files_allow(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=3)
    assert [path.stem for path in plots.plot("all", [run])] == FROM_TRAINING
    both = plots.plot("all", [run, make_run(tmp_path / "s", "none", epochs=3)], tmp_path)
    assert {path.name.partition("-")[0] for path in both} == {*FROM_TRAINING, "compare"}
    (run / "eval" / "val" / "per_frame.csv").unlink()
    (run / "steps.csv").unlink()
    assert not {"psnr", "gap"} & {path.stem for path in plots.plot("all", [run])}
    (run / "metrics.csv").unlink()
    (run / "eval" / "val" / "frames.npz").unlink()
    with pytest.raises(UserError, match=r"metrics\.csv"):
        plots.plot("all", [run])
    with pytest.raises(UserError, match="folder"):
        plots.plot("all", [run], tmp_path / "x.png")


def test_a_failed_figure_keeps_the_old_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=3)
    [path] = plots.plot("loss", [run])
    before = path.read_bytes()
    (run / "metrics.csv").write_text("epoch,train/loss\nx,y\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError):
        plots.plot("loss", [run])
    assert path.read_bytes() == before


def test_plots_need_neither_pyplot_nor_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=3)
    code = f"""
import sys
import cvaecli.schedules
print("torch" in sys.modules)
import cvaecli.plots
cvaecli.plots.plot("all", [{str(run)!r}])
print([m for m in ("torch", "matplotlib.pyplot") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "[]"]


# ---------------------------------------------------------------- what is shown


def test_mean_in_the_legend_is_the_mean_over_clips_of_their_means(tmp_path: Path) -> None:
    rows = [{"clip": "a", "frame": f, "psnr": 20.0, "psnr_one_step": ""} for f in (1, 2, 3)]
    rows += [{"clip": "b", "frame": 1, "psnr": 30.0, "psnr_one_step": ""}]
    write_csv(tmp_path / "r" / "eval" / "val" / "per_frame.csv", rows)
    figure = psnr_figure(request(tmp_path / "r"))
    assert legend_texts(figure) == ["rollout (mean 25.00 dB)"], "and no curve without values"
    [axes] = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [25, 20, 20])
    assert len(axes.collections) == 1, "a band over the clips"


def test_best_sample_is_shown_only_where_there_are_several(tmp_path: Path) -> None:
    one = psnr_figure(request(make_run(tmp_path / "one", samples=1)))
    many = psnr_figure(request(make_run(tmp_path / "many", samples=5)))
    assert not any("best" in text or "worst" in text for text in legend_texts(one))
    assert any("best sample" in text for text in legend_texts(many))
    assert any("worst sample" in text for text in legend_texts(many))
    (band,) = many.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    low, high = (many.axes[0].lines[k].get_ydata() for k in (2, 1))  # after the rollout: best, worst
    assert heights.min() == pytest.approx(min(low)) and heights.max() == pytest.approx(max(high))
    assert "mean of 5 samples" in title(many) and "60 predicted frames" in title(many)


def test_a_comparison_says_when_protocols_differ(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", samples=1), make_run(tmp_path / "b", samples=5, seed=1)
    assert "PROTOCOLS DIFFER, these numbers are not comparable: samples 1 / 5" in title(
        psnr_figure(request(a, b))
    )
    b = make_run(tmp_path / "b", samples=1, seed=1)
    assert "DIFFER" not in title(psnr_figure(request(a, b))), "checkpoints may differ"
    (b / "eval" / "val" / "metrics.json").unlink()
    assert "DIFFER" not in title(psnr_figure(request(a, b))), "not known to differ"


def test_trivial_predictors_are_shared_only_on_the_same_frames(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)
    assert any("mean frame" in text for text in legend_texts(psnr_figure(request(a, b))))
    b = make_run(tmp_path / "b", frames=50)
    assert not any("mean frame" in text for text in legend_texts(psnr_figure(request(a, b))))


def test_split_falls_back_to_one_that_all_runs_have(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=3)
    (run / "eval" / "val").rename(run / "eval" / "test")
    assert "\ntest: 60 predicted frames" in title(psnr_figure(request(run)))
    with pytest.raises(UserError, match=r"train.*per_frame\.csv.*cvae validate"):
        plots.plot("psnr", [run], split="train")


def test_points_are_coloured_by_the_coin(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs=30)
    table = read_table(run / "metrics.csv", ["forced"])
    figure = draw("loss", run)
    texts = legend_texts(figure)
    assert texts == ["training", "validation", "teacher-forced epoch", "free-running epoch"]
    drawn = [line for line in figure.axes[0].lines if line.get_color() == style.FORCED]
    assert all(len(line.get_xdata()) == table["forced"].sum() for line in drawn) and drawn
    mixed = legend_texts(draw("loss", make_run(tmp_path / "m", coin="step", epochs=30)))
    assert mixed[2:] == ["epoch more than half forced", "epoch at most half forced"]


@pytest.mark.usefixtures("coarse_figures")
def test_a_model_without_teacher_forcing_has_no_coin_in_its_legend(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=4, settings={"teacher_forcing": None})
    for kind in ("loss", "training"):
        texts = legend_texts(draw(kind, run))
        assert not any("forced" in text or "free" in text or "tfr" in text for text in texts), texts
    with pytest.raises(AbsentError, match="no teacher forcing"):
        plots.plot("tfr", [run])
    assert "tfr" not in [path.stem for path in plots.plot("all", [run])]


def test_losses_of_different_kinds_are_not_shown_as_comparable(tmp_path: Path) -> None:
    train = {"epochs": 3, "steps_per_epoch": 20}
    a = make_run(tmp_path / "a", epochs=3, settings={"train": train | {"recon": "mse"}})
    b = make_run(tmp_path / "b", epochs=3, settings={"train": train | {"recon": "optimal_sigma"}})
    c = make_run(tmp_path / "c", "none", epochs=3)
    assert "DIFFERENT RECONSTRUCTION TERMS" in title(draw("loss", a, b))
    assert "weighted differently" in title(draw("loss", a, c))
    assert "compare" not in title(draw("loss", a, a))
    assert "½ log mean squared error" in title(draw("loss", b))
    assert "reconstruction is not shown" in title(draw("training", a, b))
    labels = [axes.get_ylabel() for axes in draw("training", a, c).axes]
    assert labels == ["training recon", "β", "tfr", "val. PSNR (dB)"], "and no total loss"


def test_validations_of_different_protocols_are_named(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", epochs=3, settings={"eval": {"frames": 40}})
    b = make_run(tmp_path / "b", epochs=3, settings={"eval": {"frames": 60, "clips": 2}})
    assert "the first 40 predicted frames of each clip" in title(draw("epochs", a))
    for kind in ("epochs", "training"):
        text = " ".join(title(draw(kind, a, b)).split())
        assert "PROTOCOLS DIFFER" in text and "the first 60 predicted frames" in text and "2 clips" in text
    assert "DIFFER" not in title(draw("epochs", a, a))
    c = make_run(tmp_path / "c", epochs=3, settings={"eval": {"frames": 40}})
    change_info(a, data={"fingerprint": "0123456789"})
    change_info(c, data={"fingerprint": "abcdefabcd"})
    assert "RESUME" not in title(draw("epochs", a))
    change_info(a, eval_changes=[{"step": 20, "changed": {}}])
    assert "A RESUME CHANGED HOW a VALIDATES" in " ".join(title(draw("epochs", a)).split())
    assert "data 01234567 / data abcdefab" in " ".join(title(draw("epochs", a, c)).split())


# ---------------------------------------------------------------- schedules


def test_a_schedule_is_computed_for_every_step(tmp_path: Path) -> None:
    # The last step of each of these epochs has beta 1: joined by lines they look like no annealing.
    run = make_run(tmp_path / "r", epochs=4, steps_per_epoch=12, per_step=True)
    assert set(read_table(run / "metrics.csv", ["beta"])["beta"]) == {1.0}
    kl = KLConfig(schedule="cyclical")
    due = [schedules.beta(kl, step, step // 12, total_steps=48, epochs=4) for step in range(48)]
    for kind in ("beta", "epochs", "training"):
        chosen = next(axes for axes in draw(kind, run).axes if "β" in axes.get_ylabel())
        line = next(line for line in chosen.lines if len(line.get_xdata()) == 49)
        assert line.get_drawstyle() == "steps-post", "drops are vertical"
        np.testing.assert_allclose(line.get_ydata()[:-1], due)
        np.testing.assert_allclose(line.get_xdata(), np.arange(49) / 12)
    compared = draw("epochs", run, run).axes[1].lines[0]
    assert list(compared.get_ydata()).count(0.0) == 4, "one for each cycle"


@pytest.mark.parametrize("kind", ["beta", "tfr", "lr"])
def test_a_schedule_is_drawn_as_far_as_it_was_trained(kind: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=8, steps_per_epoch=10, per_step=True)
    for name in ("metrics.csv", "steps.csv"):
        with (run / name).open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= 35]
        write_csv(run / name, rows)
    curve = curve_of(make_runs([run])[0], kind)
    assert curve.epochs[-1] == pytest.approx(3.5) and not curve.logged
    assert curve.value[-2] == schedules_at(run, kind, 34)


def schedules_at(run: Path, kind: str, step: int) -> float:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    steps = [config["train"]["steps_per_epoch"]] * config["train"]["epochs"]
    forcing = TeacherForcingConfig(**config["teacher_forcing"])
    plan = Plan(KLConfig(**config["kl"]), forcing, OptimConfig(**config["optim"]), steps)
    return plan.value(kind, step, step // steps[0])


def test_epochs_of_unknown_length_are_measured_in_the_log(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=4, steps_per_epoch=10, settings={"train": {"epochs": 4}})
    assert list(curve_of(make_runs([run])[0], "tfr").epochs[::10]) == [0, 1, 2, 3, 4]


def test_a_schedule_that_the_log_contradicts_is_drawn_as_logged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=4, steps_per_epoch=10)
    table = list(csv.DictReader((run / "steps.csv").open(encoding="utf-8")))
    write_csv(run / "steps.csv", [row | {"beta": 0.125} for row in table])
    figure = draw("beta", run)
    assert set(figure.axes[0].lines[0].get_ydata()) == {0.125} and "as logged" in title(figure)
    assert "as logged" not in title(draw("lr", run))


def test_no_drop_is_lost_where_there_are_more_steps_than_points() -> None:
    kl = KLConfig(schedule="cyclical", cycles=4, ratio=1.0)
    curve = Plan(kl, None, OptimConfig(), [10_000] * 8).curve("beta")
    assert len(curve.value) < 9000
    drops = np.flatnonzero(np.diff(curve.value) < -0.5)
    np.testing.assert_allclose(curve.epochs[drops + 1], [2, 4, 6], atol=1e-9)


def test_a_config_is_drawn_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cvae("plot", "beta", "--config", "cyclical", "kl.cycles=2").good()
    assert (tmp_path / "runs" / "plots" / "beta-cyclical.png").is_file()
    configs = {name: loading.load(name, ["train.epochs=8"]) for name in ("cyclical", "none")}
    assert plots.plot_planned("lr", configs, tmp_path / "x.svg") == [tmp_path / "x.svg"]
    with pytest.raises(UserError, match="needs a run"):
        plots.plot_planned("psnr", configs)
    with pytest.raises(UserError, match="no teacher forcing"):
        plots.plot_planned("tfr", {"reference": loading.load("reference", [])}, tmp_path)
    for arguments, message in (
        (["beta", "x", "--config", "cyclical"], "without a run"),
        (["beta", "kl.cycles=2"], "overrides need --config"),
    ):
        cvae("plot", *arguments).wrong(message)


@pytest.mark.parametrize(
    ("info", "expected"),
    [({"epoch_steps": [40, 100]}, [40, 40, 100]), ({"epoch_steps": "?"}, [5, 5, 5]), ({}, [5, 5, 5])],
)
def test_an_epoch_that_was_cut_short_has_its_planned_steps(
    tmp_path: Path, info: dict[str, Any], expected: list[int]
) -> None:
    train = {"epochs": 3, "steps_per_epoch": None, "fast_epochs": 2}
    run = make_run(tmp_path / "a", epochs=1, steps_per_epoch=5, settings={"train": train}, info=info)
    assert steps_of_epochs(make_runs([run])[0]) == expected


def test_kl_is_drawn_within_epochs_where_beta_moves_within_them(tmp_path: Path) -> None:
    slow, fast = make_run(tmp_path / "slow", epochs=5), make_run(tmp_path / "fast", per_step=True, epochs=5)
    assert [moves_within_epochs(run) for run in make_runs([slow, fast])] == [False, True]
    assert len(draw("kl", slow).axes[0].lines[0].get_xdata()) == 5
    assert len(draw("kl", fast).axes[0].lines[0].get_xdata()) == 20
    assert len(draw("kl", slow, fast).axes[0].lines[0].get_xdata()) == 20
    (slow / "steps.csv").unlink()
    assert len(draw("kl", slow, fast).axes[0].lines[1].get_xdata()) == 5


def test_the_weighted_kl_is_drawn_where_it_was_logged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=4)
    assert len(draw("kl", run).axes) == 1, "runs of earlier versions have no such column"
    rows = list(csv.DictReader((run / "metrics.csv").open(encoding="utf-8")))
    write_csv(run / "metrics.csv", [row | {"train/kl_weighted": 0.5, "val/kl_weighted": ""} for row in rows])
    lower = draw("kl", run).axes[1]
    assert set(lower.lines[0].get_ydata()) == {0.5} and "weighted KL" in lower.get_ylabel()


# ---------------------------------------------------------------- looks


def test_log_axis_when_wide_or_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=3)
    write_csv(run / "metrics.csv", [{"epoch": e, "train/loss": 100 / 10**e, "forced": ""} for e in range(4)])
    assert draw("loss", run).axes[0].get_yscale() == "log"
    assert draw("loss", run, log=False).axes[0].get_yscale() == "linear"
    write_csv(run / "metrics.csv", [{"epoch": e, "train/loss": 1 + e, "forced": ""} for e in range(4)])
    assert draw("loss", run).axes[0].get_yscale() == "linear"
    assert draw("loss", run, log=True).axes[0].get_yscale() == "log"


def test_labels_say_how_the_runs_differ(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "x" / "pose-1", "none"), make_run(tmp_path / "y" / "pose-1", "cyclical")
    labels = [run.label for run in make_runs([a, b])]
    assert labels == [f"{a} (no annealing (β = 1))", f"{b} (cyclical β (4 cycles))"]
    c = make_run(tmp_path / "cyclical-7")
    assert make_runs([b, c])[1].label == "cyclical-7", "equal but for the seed"
    (tmp_path / "latest").symlink_to(a)
    assert make_runs([tmp_path / "latest"])[0].label == "pose-1"
    assert [run.label for run in make_runs([a, b], ["A", "B"])] == ["A", "B"]
    with pytest.raises(UserError, match="2 runs, but 1 labels"):
        plots.plot("beta", [a, b], labels=["A"])


def test_a_title_says_what_the_run_is(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", epochs=30, settings={"data": {"kind": "dance", "root": "/x/dancers"}})
    due = "a: anchored model, cyclical β (4 cycles), teacher forcing 1 to 0, data dancers"
    for kind in FROM_TRAINING:
        figure = draw(kind, a)
        shown = figure.get_suptitle() if kind == "grid" else title(figure)
        assert " ".join(shown.split()).startswith(due), kind
    b = make_run(tmp_path / "b", epochs=3, info={"status": "interrupted"}, settings={"teacher_forcing": {}})
    assert "free-running, built-in data; interrupted at step 60" in " ".join(title(draw("loss", b)).split())
    change_info(b, status="finished", schedule_changes=[{"step": 20}])
    assert "schedule changed by a resume" in " ".join(title(draw("loss", b)).split())


def test_titles_and_legends_stay_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / ("a-very-long-name-" * 6), epochs=3)
    for kind in FROM_TRAINING:
        figure = draw(kind, run)
        lines = (figure.get_suptitle() if kind == "grid" else title(figure)).splitlines()
        assert max(map(len, lines)) <= 94, kind


def test_runs_differ_in_colour_and_in_line(tmp_path: Path) -> None:
    runs = make_runs([make_run(tmp_path / f"r{i}", epochs=1) for i in range(5)])
    assert len({run.colour for run in runs}) == len({str(run.style["linestyle"]) for run in runs}) == 5


def test_a_line_under_another_is_wider(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=3)
    table = list(csv.DictReader((run / "eval" / "val" / "per_frame.csv").open(encoding="utf-8")))
    apart = {line.get_label(): line for line in psnr_figure(request(run)).axes[0].lines}
    write_csv(run / "eval" / "val" / "per_frame.csv", [row | {"psnr_one_step": row["psnr"]} for row in table])
    over = {line.get_label(): line for line in psnr_figure(request(run)).axes[0].lines}
    one_step = [next(line for label, line in lines.items() if "one step" in label) for lines in (apart, over)]
    rollout = next(line for label, line in over.items() if "rollout" in label)
    assert one_step[1].get_linewidth() > rollout.get_linewidth() > one_step[0].get_linewidth()


def test_robot_data_have_both_kinds_of_psnr(tmp_path: Path) -> None:
    robot = make_run(tmp_path / "a", epochs=2, settings={"data": {"kind": "robot"}})
    dance = make_run(tmp_path / "b", epochs=2)
    assert any("mean of the channels' PSNRs" in text for text in legend_texts(psnr_figure(request(robot))))
    assert "over all channels" in psnr_figure(request(robot)).axes[0].get_ylabel()
    assert not any("channels" in text for text in legend_texts(psnr_figure(request(dance))))
    mean = np.mean(
        read_table(robot / "eval" / "val" / "per_frame.csv", ["psnr_per_channel"])["psnr_per_channel"]
    )
    assert f"per channel {mean:.2f}" in legend_texts(psnr_figure(request(robot, robot)))[0]


def test_a_rollout_that_is_not_finite_has_no_mean(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=2)
    table = list(csv.DictReader((run / "eval" / "val" / "per_frame.csv").open(encoding="utf-8")))
    lost = [row | {"psnr": "" if n >= 50 else row["psnr"]} for n, row in enumerate(table)]
    write_csv(run / "eval" / "val" / "per_frame.csv", lost)
    assert legend_texts(psnr_figure(request(run)))[0] == "rollout (not finite in 10 of 60 frames)"


def test_gap_is_the_posteriors_psnr_less_the_priors(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", epochs=2), make_run(tmp_path / "b", epochs=2)
    assert "mean +0.25 dB" in title(draw("gap", a))
    upper, lower = draw("gap", a, b).axes
    lines = [line for line in upper.lines if len(line.get_xdata()) == 60]
    assert len(lines) == 2
    np.testing.assert_allclose(lines[0].get_ydata(), 0.25)
    np.testing.assert_allclose(lower.lines[0].get_ydata(), 3.0)
    write_csv(a / "eval" / "val" / "per_frame.csv", [{"clip": "a", "frame": 1, "psnr": 20.0}])
    with pytest.raises(AbsentError, match="psnr_posterior"):
        plots.plot("gap", [a])


def test_training_shows_reconstruction_alone_and_both_schedules(tmp_path: Path) -> None:
    upper, lower, right = draw("training", make_run(tmp_path / "r", epochs=9)).axes
    assert {"training loss", "training reconstruction"} <= {line.get_label() for line in upper.lines}
    assert {"β (right)", "tfr (right)"} == {line.get_label() for line in right.lines}
    assert {style.FORCED, style.FREE} <= {line.get_color() for line in upper.lines}
    assert "PSNR" in lower.get_ylabel()
    unvalidated = make_run(tmp_path / "s", epochs=2)
    write_csv(
        unvalidated / "metrics.csv",
        [
            {
                "epoch": 0,
                "step": 20,
                "train/loss": 1,
                "train/recon": 1,
                **dict.fromkeys(("beta", "tfr", "lr"), 0),
            }
        ],
    )
    assert len(draw("training", unvalidated).axes) == 2, "no panel of PSNR"


def test_grid_has_a_block_for_each_clip_or_run(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", epochs=2, clips=2), make_run(tmp_path / "b", epochs=2)
    one, both = draw("grid", a), draw("grid", a, b)
    assert [axes.get_title(loc="left").partition(":")[0] for axes in one.axes] == ["val/0", "val/1"]
    assert [axes.get_title(loc="left").partition(":")[0] for axes in both.axes] == ["a", "b"]
    rows = [tick.get_text() for tick in one.axes[0].get_yticklabels()]
    assert rows == ["truth", "posterior", "rollout", "condition"]
    assert [tick.get_text() for tick in one.axes[0].get_xticklabels()] == ["1", "21", "41", "60"]
    page = one.axes[0].images[0].get_array()
    assert page[0, 0, 0] == 0 and page[2 * (6 + 2), 3 * (10 + 2), 0] == 83, "the rollout's last frame"


def test_grid_as_a_gif(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", epochs=2, clips=2)
    [path] = plots.plot("grid", [run], tmp_path / "x.gif")
    with Image.open(path) as film:
        assert film.format == "GIF" and film.n_frames == 4
    with pytest.raises(UserError, match="unknown suffix"):
        plots.plot("psnr", [run], tmp_path / "x.gif")
    larger = make_run(tmp_path / "b", epochs=2, clips=2)
    clips = read_frames(larger)
    rows = [{name: part.repeat(2, -3).repeat(2, -2) for name, part in clip.rows.items()} for clip in clips]
    write_frames(larger, "val", [clip._replace(rows=row) for clip, row in zip(clips, rows, strict=True)])
    with pytest.raises(UserError, match="different sizes"):
        plots.plot("grid", [run, larger], tmp_path / "both.gif")
    assert plots.plot("grid", [run, larger], tmp_path / "both.png")


# ---------------------------------------------------------------- what is missing or damaged


@pytest.mark.parametrize(
    ("kind", "file", "remedy"),
    [("psnr", "eval/val/per_frame.csv", "cvae validate"), ("loss", "metrics.csv", "cvae train")],
)
def test_a_missing_file_is_named_with_its_remedy(kind: str, file: str, remedy: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=2)
    (run / file).unlink()
    with pytest.raises(UserError) as caught:
        plots.plot(kind, [run])
    assert str(run / file) in caught.value.message and remedy in caught.value.hint
    good, told = make_run(tmp_path / "good", epochs=2), []
    assert plots.plot(kind, [run, good], tmp_path / "x.png", warn=told.append)
    assert len(told) == 1 and told[0].startswith("r is left out") and str(run / file) in told[0]
    with pytest.raises(UserError):
        plots.plot(kind, [run, run])


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown plot 'los'"):
        plots.plot("los", [tmp_path])
    with pytest.raises(UserError, match="no run folder"):
        plots.plot("loss", [tmp_path / "none"])
    with pytest.raises(UserError, match="no run"):
        plots.plot("loss", [])


def test_epochs_without_a_validation_are_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=4)
    write_csv(run / "metrics.csv", [{"epoch": 0, "beta": 1, "tfr": 0, "val/psnr": ""}])
    with pytest.raises(UserError, match="no validation PSNR"):
        plots.plot("epochs", [run])


@pytest.mark.parametrize("tail", ["2,0.", "2,0.125", "2", "2,\x00\x00\n", "2,0.5,7\n", '"2,0.5\n', "2,ab\n"])
def test_a_damaged_last_line_is_left_out(tail: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("epoch,loss\r\n0,0.5\r\n1,0.25\r\n" + tail, encoding="utf-8", newline="")
    np.testing.assert_array_equal(read_table(path, ["epoch", "loss"])["loss"], [0.5, 0.25])


def test_a_damaged_line_before_the_last_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("epoch,loss\n0,0.5\n1,0.\n\n2,oops\n3,1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"t\.csv, line 5: .*oops"):
        read_table(path, ["epoch", "loss"])
    path.write_text("epoch,loss\n0\n3,1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2: 1 fields where the header has 2"):
        read_table(path, ["epoch"])


def test_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,who\n1,,x\n2,inf,y\n3,4,x\n", encoding="utf-8")
    table = read_table(path, ["a", "b"], ["c"], text="who")
    np.testing.assert_array_equal(table["b"], [np.nan, np.nan, 4])
    np.testing.assert_array_equal(table["c"], [np.nan] * 3)
    np.testing.assert_array_equal(table["who"], [0, 1, 0])
    with pytest.raises(UserError, match="no column 'd'"):
        read_table(path, ["d"])
    path.write_text("a,b\n", encoding="utf-8")
    with pytest.raises(AbsentError, match="no complete line"):
        read_table(path, ["a"])
