"""Figures are drawn from files alone; what is missing or damaged is named."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvaecli import plots
from cvaecli.errors import UserError
from cvaecli.plots import figures
from cvaecli.plots.psnr import psnr_figure
from cvaecli.plots.tables import AbsentError, read_table

BETAS: dict[str, Callable[[float], float]] = {  # of the epoch
    "cyclical": lambda e: min((e % 10) / 5, 1.0),
    "monotonic": lambda e: min(e / 20, 1.0),
    "none": lambda e: 1.0,
}


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
) -> Path:
    """A run folder with plausible numbers."""
    rng = np.random.default_rng(seed)
    beta = BETAS[schedule]
    metrics, steps = [], []
    for e in range(epochs):
        tfr = max(1.0 - 0.05 * max(e - 5, 0), 0.0)
        forced = (
            float(rng.random() < tfr) if coin == "epoch" else float(np.clip(tfr + rng.normal(0, 0.02), 0, 1))
        )
        noise = np.exp(rng.normal(0, 0.06))
        recon = noise * (0.02 + 0.3 * np.exp(-e / 6)) * (0.7 if forced > 0.5 else 1.0)
        kl = 4.0 / (beta(e) + 0.05) * (0.4 + np.exp(-e / 10))
        row: dict[str, Any] = {"epoch": e, "step": (e + 1) * steps_per_epoch, "time": 3.0 * e, "lr": 1e-3}
        row |= {"train/loss": recon + 1e-3 * kl, "train/recon": recon, "train/kl": kl}
        row |= {"beta": beta(e), "tfr": tfr, "forced": forced, "gpu/celsius": "warm"}
        psnr = level - 9 * np.exp(-e / 8) + rng.normal(0, 0.3)
        val = {"val/loss": 1.2 * recon + 1e-3 * kl, "val/recon": 1.2 * recon, "val/kl": 1.1 * kl}
        val |= {"val/psnr": psnr, "val/psnr_one_step": psnr + 5, "val/ssim": 0.9}
        metrics.append(row | (val if e % every == 0 else dict.fromkeys(val, "")))
        for s in range(0, steps_per_epoch, 5):
            b = beta(e + s / steps_per_epoch) if per_step else beta(e)
            step = {"step": e * steps_per_epoch + s, "epoch": e, "loss": recon, "recon": recon}
            step["kl"] = 4.0 / (b + 0.05) * (0.4 + np.exp(-e / 10)) * np.exp(rng.normal(0, 0.1))
            steps.append(step | {"beta": b, "tfr": tfr, "forced": forced, "lr": 1e-3, "frames_per_s": 900})
    write_csv(folder / "metrics.csv", metrics)
    write_csv(folder / "steps.csv", steps)
    (folder / "config.yaml").write_text(f"kl:\n  schedule: {schedule}\n", encoding="utf-8")
    make_evaluation(folder / "eval" / "val", clips, frames, samples, level, rng)
    return folder


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
            row |= {"psnr_worst": psnr - (0.4 if samples > 1 else 0.0)}
            rows.append(row | {"repeat_last_past": 16 + 0.5 * walk[k], "mean_frame": 19 + 0.3 * walk[k]})
    write_csv(folder / "per_frame.csv", rows)
    protocol = {"split": "val", "prior": "sample", "samples": samples, "step": int(rng.integers(9**9))}
    summary = {"psnr": level, "frames": len(rows), "protocol": protocol}
    (folder / "metrics.json").write_text(json.dumps(summary), encoding="utf-8")


def request(*folders: Path, split: str | None = None, log: bool | None = None) -> figures.Request:
    return figures.Request(plots._runs(folders, None), split, log)


def title(figure: Any) -> str:
    return str(figure.legends[0].get_title().get_text())


def legend_texts(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", plots.KINDS)
def test_one_run_is_drawn_into_its_own_folder_at_page_width(kind: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "pose-001", epochs=6)
    [path] = plots.plot(kind, [run])
    assert path == run / "plots" / f"{kind}.png"
    with Image.open(path) as image:
        assert image.width == pytest.approx(6.3 * 300, abs=1)
        assert image.info["dpi"][0] == pytest.approx(300, abs=1)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no litter"


@pytest.mark.parametrize("kind", plots.KINDS)
def test_several_runs_make_one_figure_beside_them(kind: str, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, epochs=6) for name in BETAS]
    assert plots.plot(kind, runs) == [tmp_path / "plots" / f"{kind}-cyclical-vs-2-others.png"]
    assert plots.plot(kind, runs[:2]) == [tmp_path / "plots" / f"{kind}-cyclical-vs-monotonic.png"]


def test_the_suffix_decides_the_format_and_folders_are_made(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=3)
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        [path] = plots.plot("beta", [run], tmp_path / "deep" / "er" / f"x{suffix}")
        assert path.read_bytes().startswith(magic)
    assert plots.plot("beta", [run], tmp_path / "folder") == [tmp_path / "folder" / "beta.png"]
    with pytest.raises(UserError, match=r"x\.jpg.*\.png, \.pdf, \.svg"):
        plots.plot("beta", [run], tmp_path / "x.jpg")


def test_all_draws_what_the_files_allow(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=3)
    assert [path.stem for path in plots.plot("all", [run])] == list(plots.KINDS)
    (run / "eval" / "val" / "per_frame.csv").unlink()
    (run / "steps.csv").unlink()
    assert "psnr" not in [path.stem for path in plots.plot("all", [run])]
    (run / "metrics.csv").unlink()
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


def test_plots_need_neither_pyplot_nor_torch() -> None:
    code = "import sys, cvaecli.plots; print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
    assert "n = 5" in title(many) and "60 predicted frames" in title(many)


def test_a_comparison_says_when_protocols_differ(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", samples=1), make_run(tmp_path / "b", samples=5, seed=1)
    assert "PROTOCOLS DIFFER: samples" in title(psnr_figure(request(a, b)))
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
    assert title(psnr_figure(request(run))).startswith("r: test, ")
    with pytest.raises(UserError, match=r"train.*per_frame\.csv.*cvae validate"):
        plots.plot("psnr", [run], split="train")


def test_points_are_coloured_by_the_coin(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=30)
    table = read_table(run / "metrics.csv", ["forced"])
    figure = plots._loss(request(run))
    texts = legend_texts(figure)
    assert texts == ["training", "validation", "teacher-forced epoch", "free-running epoch"]
    drawn = {c: [line for line in figure.axes[0].lines if line.get_color() == c] for c in (figures.FORCED,)}
    assert all(len(line.get_xdata()) == table["forced"].sum() for line in drawn[figures.FORCED])
    mixed = legend_texts(plots._loss(request(make_run(tmp_path / "m", coin="step", epochs=30))))
    assert mixed[2:] == ["epoch more than half forced", "epoch at most half forced"]


def test_step_axis_where_beta_moves_within_an_epoch(tmp_path: Path) -> None:
    slow, fast = make_run(tmp_path / "slow", epochs=5), make_run(tmp_path / "fast", per_step=True, epochs=5)
    for kind in ("beta", "kl"):
        draw = plots._DRAWERS[kind]
        assert draw(request(slow)).axes[-1].get_xlabel() == "epoch"
        assert draw(request(fast)).axes[-1].get_xlabel() == "training step"
        assert draw(request(slow, fast)).axes[-1].get_xlabel() == "training step"
    (slow / "steps.csv").unlink()
    assert plots._DRAWERS["beta"](request(slow, fast)).axes[-1].get_xlabel() == "epoch"


def test_log_axis_when_wide_or_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", epochs=3)
    write_csv(run / "metrics.csv", [{"epoch": e, "train/loss": 100 / 10**e, "forced": ""} for e in range(4)])
    assert plots._loss(request(run)).axes[0].get_yscale() == "log"
    assert plots._loss(request(run, log=False)).axes[0].get_yscale() == "linear"
    write_csv(run / "metrics.csv", [{"epoch": e, "train/loss": 1 + e, "forced": ""} for e in range(4)])
    assert plots._loss(request(run)).axes[0].get_yscale() == "linear"
    assert plots._loss(request(run, log=True)).axes[0].get_yscale() == "log"


def test_labels(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "x" / "pose-1", "none"), make_run(tmp_path / "y" / "pose-1", "cyclical")
    assert [run.label for run in plots._runs([a, b], None)] == [f"{a} (none)", f"{b} (cyclical)"]
    (tmp_path / "latest").symlink_to(a)
    assert plots._runs([tmp_path / "latest"], None)[0].label == "pose-1"
    assert [run.label for run in plots._runs([a, b], ["A", "B"])] == ["A", "B"]
    with pytest.raises(UserError, match="2 runs, but 1 labels"):
        plots.plot("beta", [a, b], labels=["A"])


def test_runs_differ_in_colour_and_in_line(tmp_path: Path) -> None:
    runs = plots._runs([make_run(tmp_path / f"r{i}", epochs=1) for i in range(5)], None)
    assert len({run.colour for run in runs}) == len({str(run.style["linestyle"]) for run in runs}) == 5


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


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown plot 'los'"):
        plots.plot("los", [tmp_path])
    with pytest.raises(UserError, match="no run folder"):
        plots.plot("loss", [tmp_path / "none"])
    with pytest.raises(UserError, match="no run"):
        plots.plot("loss", [])


def test_epochs_without_validation_is_told(tmp_path: Path) -> None:
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
