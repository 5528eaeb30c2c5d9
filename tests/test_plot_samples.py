"""Sampled futures and settings over seeds: what is drawn and written, from files alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cvaecli import plots
from cvaecli.errors import UserError
from cvaecli.plots import figures
from cvaecli.plots.compare import compare_figure
from cvaecli.plots.samples import Futures, samples_figure
from cvaecli.plots.tables import AbsentError

T, FIRST, N, H, W = 8, 2, 5, 6, 10


def request(*folders: Path, split: str | None = None) -> figures.Request:
    return figures.Request(plots._runs(folders, None), split, None)


# ---------------------------------------------------------------- samples


def make_futures(folder: Path, name: str = "test-0", apart: float = 0.0, seed: int = 0) -> Path:
    """A run whose samples go apart by so much more with every frame."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(60, 200, (T, H, W, 3))
    ramp = np.arange(1, T - FIRST + 1)[:, None, None, None]
    error = rng.normal(size=(N, 1, 1, 1, 1)) * apart * ramp
    path = folder / "predictions" / f"{name}-futures.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = (truth[FIRST:] + error).clip(0, 255).astype(np.uint8)
    np.savez(path, truth=truth.astype(np.uint8), samples=drawn, first=FIRST)
    return folder


def test_spread_is_the_deviation_over_the_samples() -> None:
    drawn = np.zeros((2, 3, H, W, 3), np.uint8)
    drawn[1, 2] = 51  # two samples that are 0.2 apart: deviation 0.2 / sqrt(2)
    futures = Futures(np.zeros((5, H, W, 3), np.uint8), drawn, 2)
    np.testing.assert_allclose(futures.spread.mean((1, 2)), [0, 0, 0.2 / np.sqrt(2)])


def test_a_block_a_run_and_a_line_a_run(tmp_path: Path) -> None:
    runs = [make_futures(tmp_path / name, apart=apart) for name, apart in (("random", 8), ("certain", 0))]
    figure = samples_figure(request(*runs))
    *blocks, bar, below = figure.axes
    assert [axes.get_title(loc="left") for axes in blocks] == ["random", "certain"]
    rows = [tick.get_text() for tick in blocks[0].get_yticklabels()]
    assert rows == ["truth", "sample 1", "sample 2", "sample 3", "sample 4", "spread"]
    random, certain = (line.get_ydata() for line in below.lines)
    assert list(below.lines[0].get_xdata()) == list(range(FIRST, T))
    assert (np.diff(random) > 0).all() and (certain < 1e-12).all()
    assert "standard deviation" in bar.get_xlabel()


def test_pictures_stand_where_their_labels_say(tmp_path: Path) -> None:
    run = make_futures(tmp_path / "r", apart=3)
    page = samples_figure(request(run)).axes[0].images[0].get_array()
    with np.load(run / "predictions" / "test-0-futures.npz") as file:
        truth, drawn = file["truth"], file["samples"]
    row, column = H + 2, W + 2
    np.testing.assert_array_equal(page[:H, :W], truth[FIRST])
    np.testing.assert_array_equal(page[2 * row :, 5 * column :][:H, :W], drawn[1, 5])


def test_the_last_validations_numbers_stand_above_their_block(tmp_path: Path) -> None:
    run = make_futures(tmp_path / "r")
    summary: dict[str, Any] = {"psnr": 21.0, "psnr_best_of_samples": 22.5, "psnr_worst_of_samples": 19.25}
    summary |= {"diversity": 0.0123, "kl": 4.0, "protocol": {"samples": 16}}
    path = run / "eval" / "test" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(summary), encoding="utf-8")
    title = samples_figure(request(run)).axes[0].get_title(loc="left")
    assert title.splitlines() == [
        "r",
        "test: best of 16 22.50, mean 21.00, worst 19.25 dB",
        "diversity 0.0123, KL 4.00 nats",
    ]
    path.write_text(json.dumps(summary | {"protocol": {"samples": 1}}), encoding="utf-8")
    assert samples_figure(request(run)).axes[0].get_title(loc="left") == "r"


def test_the_clip_is_one_that_all_runs_have(tmp_path: Path) -> None:
    a = make_futures(make_futures(tmp_path / "a", "val-3"), "test-0")
    b = make_futures(tmp_path / "b", "val-3")
    assert plots.plot("samples", [a, b]) == [tmp_path / "plots" / "samples-a-vs-b.png"]
    with pytest.raises(AbsentError, match="no futures of one clip"):
        plots.plot("samples", [a, b], split="test")
    (b / "predictions" / "val-3-futures.npz").write_bytes(b"PK no more")
    with pytest.raises(UserError, match="is damaged"):
        plots.plot("samples", [a, b])


def test_a_single_runs_figure_is_a_page_wide(tmp_path: Path) -> None:
    [path] = plots.plot("samples", [make_futures(tmp_path / "r", apart=2)])
    with Image.open(path) as image:
        assert image.width == pytest.approx(6.3 * 300, abs=1)


# ---------------------------------------------------------------- compare


def make_run(
    folder: Path, psnr: float, *, seed: int, frames: int = 3, repeat: float = 18.0, **settings: Any
) -> Path:
    folder.mkdir(parents=True)
    config = {"seed": seed, "model": settings, "train": {"epochs": 3}, "runtime": {"threads": seed}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    home = folder / "eval" / "test"
    home.mkdir(parents=True)
    with (home / "per_frame.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "frame", "psnr", "repeat_last_past"])
        writer.writerows(["test/0", k + 2, psnr - k, repeat] for k in range(frames))
    summary = {
        "psnr": psnr - 1,
        "psnr_one_step": psnr,
        "kl": None,
        "baselines": {"repeat_last_past": {"psnr": repeat}},
    }
    summary["protocol"] = {"split": "test", "samples": 1, "prior": "sample"}
    (home / "metrics.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def make_comparison(root: Path) -> list[Path]:
    levels = {("learned", 1): (24.0, 25.0, 26.0), ("fixed", 1): (22.0, 23.5, 22.5)}
    return [
        make_run(root / f"{prior}-{seed}", value, seed=seed, prior=prior, z_dim=z)
        for (prior, z), values in levels.items()
        for seed, value in enumerate(values)
    ]


def test_runs_that_differ_in_seed_are_one_line_with_its_spread(tmp_path: Path) -> None:
    figure = compare_figure(request(*make_comparison(tmp_path)))
    dots, lines = figure.axes
    assert [tick.get_text() for tick in dots.get_yticklabels()] == [
        "prior learned: 24.00",
        "prior fixed: 21.67",
    ]
    assert len(lines.lines) == 2 and len(lines.collections) == 2
    np.testing.assert_allclose(lines.lines[0].get_ydata(), [25, 24, 23])
    band = lines.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (22, 26)
    np.testing.assert_allclose(dots.lines[0].get_xdata(), [23, 24, 25])


def test_the_tables_hold_the_figures_numbers(tmp_path: Path) -> None:
    figure, markdown, table = plots.plot("compare", make_comparison(tmp_path), tmp_path / "out" / "x.png")
    assert figure.suffix == ".png" and (markdown.name, table.name) == ("x.md", "x.csv")
    lines = markdown.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| model.prior | seeds | PSNR (dB) | one step (dB) |", "no column without numbers"
    assert lines[2] == "| prior learned | 0, 1, 2 | 24.00 ± 1.00 | 25.00 ± 1.00 |"
    assert lines[4] == "| repeat the last given frame | | 18.00 | |"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert len(rows) == 6 and rows[4] | {"psnr": float(rows[4]["psnr"])} == rows[4] | {
        "setting": "prior fixed",
        "seed": "1",
        "psnr": 22.5,
    }


def test_other_frames_have_no_common_baseline_and_are_told(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 25.0, seed=0, z_dim=1), make_run(tmp_path / "b", 24.0, seed=0, z_dim=2)]
    assert "repeat" in plots.plot("compare", runs)[1].read_text(encoding="utf-8")
    runs.append(make_run(tmp_path / "c", 24.0, seed=0, z_dim=3, repeat=20.0))
    assert "repeat" not in plots.plot("compare", runs)[1].read_text(encoding="utf-8")
    with pytest.raises(UserError, match="a, d: evaluated on frames of different number"):
        plots.plot("compare", [*runs, make_run(tmp_path / "d", 24.0, seed=1, z_dim=1, frames=2)])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, "there is no"),
        ("config.yaml", "- 1\n", "holds no settings"),
        ("eval/test/metrics.json", None, "there is no"),
        ("eval/test/metrics.json", '{"psnr": null}', "is damaged"),
        ("eval/test/metrics.json", "{", "is damaged|line 1"),
    ],
)
def test_a_missing_or_damaged_file_is_named(
    file: str, content: str | None, message: str, tmp_path: Path
) -> None:
    runs = make_comparison(tmp_path)
    (runs[1] / file).unlink()
    if content is not None:
        (runs[1] / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        plots.plot("compare", runs)
    assert Path(file).name in caught.value.message
