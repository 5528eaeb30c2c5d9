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
from cvaecli.plots.compare import compare_figure
from cvaecli.plots.groups import sections
from cvaecli.plots.runs import Request, make_runs
from cvaecli.plots.samples import Futures, samples_figure
from cvaecli.tables import AbsentError

T, FIRST, N, H, W = 8, 2, 5, 6, 10


def request(*folders: Path, split: str | None = None) -> Request:
    return Request(make_runs(folders), split)


# ---------------------------------------------------------------- samples


def make_futures(folder: Path, name: str = "test-0", apart: float = 0.0, seed: int = 0) -> Path:
    """A run whose samples differ by ``apart`` grey levels more with every frame."""
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
    summary["baselines"] = {"repeat_last_past": {"psnr": 16.0}}
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


@pytest.mark.usefixtures("coarse_figures")
def test_the_clip_is_the_one_that_most_runs_have(tmp_path: Path) -> None:
    a = make_futures(make_futures(tmp_path / "a", "val-3"), "test-0")
    b, c = make_futures(tmp_path / "b", "val-3"), make_futures(tmp_path / "c", "test-7")
    told: list[str] = []
    assert plots.plot("samples", [a, b, c], warn=told.append) == [
        tmp_path / "plots" / "samples-a-vs-2-others.png"
    ]
    assert len(told) == 1 and told[0].startswith("c is left out")
    with pytest.raises(AbsentError, match="no sampled futures"):
        plots.plot("samples", [b], split="test")
    (b / "predictions" / "val-3-futures.npz").write_bytes(b"PK no more")
    with pytest.raises(UserError, match="is damaged"):
        plots.plot("samples", [a, b])


def test_a_long_title_stays_on_the_page(tmp_path: Path) -> None:
    run = make_futures(tmp_path / ("a-long-name-" * 12))
    axes = samples_figure(request(run)).axes[0]
    assert max(map(len, axes.get_title(loc="left").splitlines())) <= 96
    assert axes._left_title.get_position()[0] == 0, "it begins where the pictures begin"


def test_a_single_runs_figure_is_a_page_wide(tmp_path: Path) -> None:
    [path] = plots.plot("samples", [make_futures(tmp_path / "r", apart=2)])
    with Image.open(path) as image:
        assert image.width == pytest.approx(6.3 * 300, abs=1)


# ---------------------------------------------------------------- compare


def make_run(
    folder: Path,
    psnr: float,
    *,
    seed: int,
    frames: int = 3,
    repeat: float = 18.0,
    protocol: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    folder.mkdir(parents=True)
    config = {"seed": seed, "model": settings, "train": {"epochs": 3}, "runtime": {"threads": seed}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    status = {"status": "finished", "steps": 60, "data": {"fingerprint": "f00d"}} | (info or {})
    (folder / "run.json").write_text(json.dumps(status), encoding="utf-8")
    home = folder / "eval" / "test"
    home.mkdir(parents=True)
    with (home / "per_frame.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "frame", "psnr", "repeat_last_past"])
        writer.writerows(["test/0", k + 2, psnr - k, repeat] for k in range(frames))
    summary: dict[str, Any] = {
        "psnr": psnr - 1,
        "psnr_one_step": psnr,
        "kl": None,
        "baselines": {"repeat_last_past": {"psnr": repeat}},
        "frames": frames,
        "clips": [{}],
    }
    own = {"split": "test", "samples": 1, "prior": "sample", "data_fingerprint": "f00d", "precision": "fp32"}
    summary["protocol"] = own | {"step": 60} | (protocol or {})
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
        "prior learned: 24.00 ± 1.00",
        "prior fixed: 21.67 ± 0.76",
    ]
    assert len(lines.lines) == 2 and len(lines.collections) == 2
    np.testing.assert_allclose(lines.lines[0].get_ydata(), [25, 24, 23])
    band = lines.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (22, 26)
    np.testing.assert_allclose(dots.lines[0].get_xdata(), [23, 24, 25])


@pytest.mark.usefixtures("coarse_figures")
def test_the_tables_hold_the_figures_numbers(tmp_path: Path) -> None:
    figure, markdown, table = plots.plot("compare", make_comparison(tmp_path), tmp_path / "out" / "x.png")
    assert figure.suffix == ".png" and (markdown.name, table.name) == ("x.md", "x.csv")
    first, _, head, _, learned, _, trivial = markdown.read_text(encoding="utf-8").splitlines()
    assert first == "test: 3 predicted frames, z sampled from the prior, 1 sample (f00d), precision fp32."
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        *("model.prior", "seeds", "status", "steps", "scored at step", "PSNR (dB)", "one step (dB)")
    ], "no column without numbers"
    assert learned == "| prior learned | 0, 1, 2 | finished | 60 | 60 | 24.00 ± 1.00 | 25.00 ± 1.00 |"
    assert trivial.startswith("| repeating the last given frame |") and "| 18.00 |" in trivial
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert len(rows) == 6 and rows[4] | {"psnr": float(rows[4]["psnr"])} == rows[4] | {
        "setting": "prior fixed",
        "seed": "1",
        "psnr": 22.5,
        "status": "finished",
        "steps": "60",
        "data_fingerprint": "f00d",
        "precision": "fp32",
    }


@pytest.mark.usefixtures("coarse_figures")
def test_other_frames_have_no_common_baseline(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 25.0, seed=0, z_dim=1), make_run(tmp_path / "b", 24.0, seed=0, z_dim=2)]
    assert "repeat" in plots.plot("compare", runs)[1].read_text(encoding="utf-8")
    runs.append(make_run(tmp_path / "c", 24.0, seed=0, z_dim=3, repeat=20.0))
    assert "repeat" not in plots.plot("compare", runs)[1].read_text(encoding="utf-8")


@pytest.mark.usefixtures("coarse_figures")
@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        ({"samples": 16}, "samples 16"),
        ({"prior": "mean"}, "prior mean"),
        ({"n_future": 5}, "n future 5"),
        ({"data_fingerprint": "beef"}, "data beef"),
        ({"conditions": "the next clip's actions"}, "conditions the next clip's actions"),
        ({"checkpoint": "last.pt"}, "checkpoint last.pt"),
    ],
)
def test_runs_of_different_protocols_are_never_ranked_together(
    protocol: dict[str, Any], told: str, tmp_path: Path
) -> None:
    runs = make_comparison(tmp_path)[:3]
    other = make_run(tmp_path / "other", 29.0, seed=7, protocol=protocol, prior="learned", z_dim=1)
    parts = sections(request(*runs, other))
    assert [[len(group.runs) for group in part.groups] for part in parts] == [[3], [1]]
    assert parts[1].heading == told
    markdown = plots.plot("compare", [*runs, other])[1].read_text(encoding="utf-8")
    assert markdown.count("### Protocol: ") == 2 and f"### Protocol: {told}" in markdown
    assert "24.00 ± 1.00" in markdown and "28.00 |" in markdown
    rows = list(
        csv.DictReader((tmp_path / "plots" / "compare-learned-0-vs-3-others.csv").open(encoding="utf-8"))
    )
    assert [row["protocol"] for row in rows] == ["1", "1", "1", "2"]
    assert len(compare_figure(request(*runs, other)).axes) == 4


def test_clips_of_another_number_or_length_are_another_protocol(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{n}", 25.0, seed=n, frames=n, z_dim=1) for n in (2, 3)]
    assert len(sections(request(*runs))) == 2


def test_precision_may_differ_and_is_named(tmp_path: Path) -> None:
    runs = make_comparison(tmp_path)[:3]
    other = make_run(tmp_path / "o", 25.0, seed=7, protocol={"precision": "bf16"}, prior="learned", z_dim=1)
    [part] = sections(request(*runs, other))
    assert len(part.groups[0].runs) == 4 and part.protocol.endswith("precision fp32 and bf16")


@pytest.mark.usefixtures("coarse_figures")
@pytest.mark.parametrize(
    ("info", "told"),
    [
        ({"status": "interrupted"}, "interrupted"),
        ({"status": "running"}, "running"),
        ({"status": "failed"}, "failed"),
        ({"schedule_changes": [{"step": 20}]}, "schedule changed by a resume"),
    ],
)
def test_a_run_unlike_a_finished_one_is_no_seed_of_its_setting(
    info: dict[str, Any], told: str, tmp_path: Path
) -> None:
    runs = make_comparison(tmp_path)[:3]
    odd = [make_run(tmp_path / f"odd{n}", 29.0, seed=n, info=info, prior="learned", z_dim=1) for n in (7, 8)]
    [part] = sections(request(*runs, *odd))
    assert [len(group.runs) for group in part.groups] == [3, 1, 1], "nor of each other"
    assert f"[odd7: {told}" in part.groups[1].label
    markdown, table = plots.plot("compare", [*runs, *odd])[1:]
    assert "24.00 ± 1.00" in markdown.read_text(encoding="utf-8") and told in markdown.read_text(
        encoding="utf-8"
    )
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [bool(row["remark"]) for row in rows] == [False] * 3 + [True] * 2


def test_other_training_data_or_another_length_make_another_setting(tmp_path: Path) -> None:
    runs = make_comparison(tmp_path)[:3]
    for name, info in (("data", {"data": {"fingerprint": "beef"}}), ("length", {"steps": 20})):
        other = make_run(tmp_path / name, 29.0, seed=7, info=info, prior="learned", z_dim=1)
        [part] = sections(request(*runs, other))
        assert [len(group.runs) for group in part.groups] == [3, 1], name


@pytest.mark.usefixtures("coarse_figures")
@pytest.mark.parametrize("file", ["eval/test/metrics.json", "eval/test/per_frame.csv", "config.yaml"])
def test_a_run_without_a_file_that_it_takes_is_left_out(file: str, tmp_path: Path) -> None:
    runs = make_comparison(tmp_path)
    (runs[1] / file).unlink()
    told: list[str] = []
    markdown = plots.plot("compare", runs, warn=told.append)[1].read_text(encoding="utf-8")
    assert "| prior learned | 0, 2 |" in markdown
    assert len(told) == 1 and Path(file).name in told[0]
    for run in runs:
        (run / file).unlink(missing_ok=True)
    with pytest.raises(AbsentError):
        plots.plot("compare", runs)


@pytest.mark.usefixtures("coarse_figures")
def test_a_psnr_that_is_not_finite_counts_for_no_mean(tmp_path: Path) -> None:
    runs = make_comparison(tmp_path)[:3]
    path = runs[2] / "eval" / "test" / "metrics.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"psnr": None}), encoding="utf-8"
    )
    markdown = plots.plot("compare", runs)[1].read_text(encoding="utf-8")
    assert "23.50 ± 0.71 (1 of 3 not finite)" in markdown


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "- 1\n", "holds no settings"),
        ("run.json", "{", "not readable as JSON"),
        ("eval/test/metrics.json", '{"psnr": 1}', "damaged"),
        ("eval/test/metrics.json", "{", "damaged"),
    ],
)
def test_a_damaged_file_is_named(file: str, content: str, message: str, tmp_path: Path) -> None:
    runs = make_comparison(tmp_path)
    (runs[1] / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        plots.plot("compare", runs)
    assert Path(file).name in caught.value.message
