"""The pages of `cvae compare` and `cvae report`: read from files alone, escaped, self-contained."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import cvae

from cvaecli.api import sampling
from cvaecli.errors import UserError
from cvaecli.pages import compare, diagnosis, figures, folders, paired, pictures, render, report, settings

EVIL = "<script>alert('x')</script> $\\frac & | \"q\" -->"
PROTOCOL = {
    **{"split": "val", "n_past": 1, "n_future": "all", "samples": 1, "prior": "sample"},
    **{"conditions": "the clip's own", "frame_size": [8, 16], "psnr": "mean over frames", "ssim": "11x11"},
    **{"data": "made up", "data_fingerprint": "abc", "checkpoint": "best.pt", "device": "cpu"},
}


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def make_run(
    folder: Path,
    *,
    level: float = 25.0,
    seed: int = 0,
    schedule: str = "cyclical",
    ratio: float = 1.0,
    frames: int = 60,
    status: str = "finished",
    evaluated: bool = True,
    with_video: bool = False,
    protocol: dict[str, Any] | None = None,
    **info: Any,
) -> Path:
    """A finished run's folder with made-up numbers: PSNR ``level``, no drift."""
    folder.mkdir(parents=True)
    config = {"seed": seed, "model": {"name": "anchored"}, "kl": {"schedule": schedule}}
    config |= {"teacher_forcing": {"ratio": ratio}, "train": {"epochs": 8, "log_every": seed + 1}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    info = {"status": status, "command": "cvae train", "train_seconds": 60, "seed": seed, **info}
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    epochs = [
        {
            **{"epoch": e, "step": 10 * e, "lr": 1e-3, "train/loss": 2 / (e + 1), "train/recon": 1 / (e + 1)},
            **{"train/kl": 3.0, "beta": 1.0, "tfr": ratio, "forced": 1.0},
            **{"val/loss": 2 / (e + 1), "val/kl": 3.0, "val/psnr": level - 8 * math.exp(-e / 2)},
            "val/psnr_one_step": level + 1,
        }
        for e in range(8)
    ]
    write_csv(folder / "metrics.csv", epochs)
    if evaluated:
        evaluate(folder, level, frames, PROTOCOL | (protocol or {}))
    if with_video:
        make_video(folder, frames)
    return folder


def evaluate(folder: Path, level: float, frames: int, protocol: dict[str, Any]) -> None:
    wave = 2 * np.sin(np.arange(frames) / 5)
    rows = [
        {"clip": "val/0", "frame": k + 1, "psnr": level + wave[k], "psnr_one_step": level + 1 + wave[k]}
        | {"repeat_last_past": 15, "mean_frame": 19}
        for k in range(frames)
    ]
    write_csv(folder / "eval" / "val" / "per_frame.csv", rows)
    summary = {"psnr": level, "psnr_one_step": level + 1, "psnr_posterior": level + 2, "ssim": 0.9, "kl": 3.0}
    summary |= {"posterior_prior_gap": 1.0, "frames": frames, "protocol": protocol}
    summary |= {"baselines": {"repeat_last_past": {"psnr": 15.0}, "mean_frame": {"psnr": 19.0}}}
    (folder / "eval" / "val" / "metrics.json").write_text(json.dumps(summary), encoding="utf-8")


def make_video(folder: Path, frames: int, height: int = 32, width: int = 64) -> None:
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (height // 4, width // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    video = np.repeat(background[None], frames, 0)
    label = np.full_like(video, 255)
    for k in range(frames):
        label[k, 4:-4, k % (width - 8) : k % (width - 8) + 6] = (200, 30, 30)
        video[k, 4:-4, k % (width - 8) : k % (width - 8) + 6] = 20
    (folder / "predictions").mkdir()
    np.savez_compressed(
        folder / "predictions" / "val-0-frames.npz",
        **{"truth": video, "samples": video[None, 1:] // 2, "first": np.array(1), "condition": label},
    )


def make_sweep(root: Path, seeds: int = 3, **options: Any) -> Path:
    """Three KL schedules by three teacher-forcing ratios; 0.8 dB between schedules, noise of 0.1 dB."""
    rng = np.random.default_rng(1)
    for (i, schedule), ratio, seed in itertools.product(
        enumerate(("none", "monotonic", "cyclical")), (0.0, 0.5, 1.0), range(seeds)
    ):
        level = 25 + 0.8 * i + rng.normal(0, 0.1)
        name = f"{schedule}-{ratio}-{seed}"
        make_run(root / name, level=level, seed=seed, schedule=schedule, ratio=ratio, **options)
    return root


class Page(HTMLParser):
    """What a browser would make of a page: its tags, its scripts, the addresses in it, its ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has {name}"
            if name in ("src", "href", "srcset", "data", "action", "xlink:href"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(path: Path) -> Page:
    """One script, unique ids, and no address but those within the page."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 1 and not {"link", "iframe", "object", "base"} & set(page.tags)
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert "default-src 'none'" in text
    return page


# ---------------------------------------------------------------- groups and settings


def test_runs_that_differ_only_in_the_seed_are_one_setting(tmp_path: Path) -> None:
    found = compare.compare([make_sweep(tmp_path / "sweep")])
    (group,) = found.groups
    assert group.keys == ["kl.schedule", "teacher forcing"]
    assert [len(setting.counted) for setting in group.settings] == [3] * 9
    assert found.question == (
        "What do KL annealing (cyclical, monotonic or none) and teacher forcing (never, 0.5 or always) "
        "change?"
    )
    means = [setting.mean("psnr") for setting in group.settings]
    assert means == sorted(means, reverse=True)
    assert group.settings[0].values["kl.schedule"] == "cyclical"


def test_folders_names_and_links_give_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = make_sweep(tmp_path / "runs" / "sweep", seeds=1)
    (sweep / "latest").symlink_to("none-0.0-0", target_is_directory=True)
    (sweep / "storage").mkdir()
    names = [path.name for path in folders.find_runs(["sweep", sweep / "none-0.5-0"])]
    assert len(names) == 9 and "latest" not in names


@pytest.mark.parametrize(
    "difference",
    [
        {"samples": 8},
        {"prior": "mean"},
        {"split": "test"},
        {"data_fingerprint": "other"},
        {"n_future": 10},
        {"n_future_min": 3},
        {"checkpoint": "last.pt"},
        {"conditions": "the next clip's"},
    ],
)
def test_other_protocols_are_never_ranked_together(tmp_path: Path, difference: dict[str, Any]) -> None:
    make_run(tmp_path / "a", level=20, schedule="none")
    make_run(tmp_path / "b", level=30, protocol=difference)
    found = compare.compare([tmp_path])
    assert [[s.label for s in group.settings] for group in found.groups] == [["a"], ["b"]]
    assert next(iter(difference)) in compare.protocol_differences(found.groups)
    assert all("Against the next best" not in compare.answer(group, []) for group in found.groups)


@pytest.mark.parametrize(
    ("checkpoint", "words", "chosen"),
    [("best.pt", "the best by validation", True), ("last.pt", "after the last epoch", False)],
)
def test_a_page_says_which_checkpoint_was_scored(
    tmp_path: Path, checkpoint: str, words: str, chosen: bool
) -> None:
    make_run(tmp_path / "a", protocol={"checkpoint": checkpoint})
    (group,) = compare.compare([tmp_path]).groups
    found = compare.measures(group)
    assert found["checkpoint"] == f"{checkpoint}, {words}"
    assert ("split" in found) == chosen, "only a chosen checkpoint is too good on val"


def test_curves_over_training_count_epochs_from_one_as_the_plots_do(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (group,) = compare.compare([tmp_path]).groups
    at, _ = figures.epoch_curve(group.settings[0].runs[0])
    np.testing.assert_array_equal(at, np.arange(1, 9))


def test_another_number_of_frames_is_another_protocol(tmp_path: Path) -> None:
    make_run(tmp_path / "a", frames=60)
    make_run(tmp_path / "b", frames=50)
    assert len(compare.compare([tmp_path]).groups) == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"status": "interrupted"}, "not finished (interrupted)"),
        ({"status": "running"}, "not finished (running)"),
        ({"status": "failed", "error": "loss is nan"}, "failed: loss is nan"),
        ({"schedule_changes": [{"key": "train.epochs", "step": 5}]}, "schedules were changed"),
        ({"evaluated": False}, "not evaluated on val"),
        ({"level": math.nan}, "PSNR is not finite"),
    ],
)
def test_incomplete_runs_are_marked_and_not_averaged(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    make_run(tmp_path / "good", level=20, seed=0)
    make_run(tmp_path / "bad", **{"level": 40, "seed": 1, **options})
    found = compare.compare([tmp_path])
    (setting,) = found.groups[0].settings
    assert setting.mean("psnr") == 20 and len(setting.runs) == 2
    assert why in compare.left_out(found.groups[0])[0].flaw
    assert "(1 not counted)" in compare.table(found.groups[0])[1][0][1]
    (table,) = compare.write(found, tmp_path / "out" / "r.csv")
    assert why in table.read_text(encoding="utf-8")


@pytest.mark.usefixtures("coarse_figures")
def test_a_run_that_is_left_out_is_named_in_every_form(tmp_path: Path) -> None:
    make_run(tmp_path / "good", seed=0)
    make_run(tmp_path / "bad", seed=1, status="failed", error="loss is nan")
    found = compare.compare([tmp_path])
    for suffix in compare.SUFFIXES:
        written = compare.write(found, tmp_path / "out" / f"r{suffix}")
        assert "failed: loss is nan" in written[0].read_text(encoding="utf-8")


def test_runs_without_any_evaluation_make_a_page(tmp_path: Path) -> None:
    make_run(tmp_path / "a", evaluated=False)
    found = compare.compare([tmp_path / "a"])
    (path,) = compare.write(found, tmp_path / "r.html")
    assert "No run of this group has finished and been evaluated." in check_page(path).text


# ---------------------------------------------------------------- paired differences


def difference(*values: float) -> paired.Difference:
    return paired.Difference("A", "B", list(range(len(values))), np.array(values))


@pytest.mark.parametrize(
    ("values", "verdict", "words"),
    [
        ((1.0, 1.1, 0.9), "settled", "A is better than B (+1.00 dB"),
        ((-1.0, -1.1, -0.9), "settled", "A is worse than B"),
        ((0.01, -0.01, 0.0), "equal", "equal to within 0.1 dB"),
        ((0.1, 1.5, 0.6), "leaning", "A was above B in every seed, but 3 seeds do not settle it"),
        ((0.5, -0.4, 0.3), "noise", "cannot be told apart with 3 seeds"),
        ((1.0, 1.0), "open", "over 2 equal seeds, too few to tell"),
        ((1.0,), "open", "over one equal seed, too few"),
        ((), "open", "no seed in common"),
    ],
)
def test_a_difference_is_judged_by_the_rule(values: tuple[float, ...], verdict: str, words: str) -> None:
    assert difference(*values).verdict == verdict
    assert words in difference(*values).sentence


@pytest.mark.parametrize("n", [2, 3, 5, 10, 21])
def test_the_interval_is_the_paired_t_interval(n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(n).normal(0.3, 1, n)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    each = difference(*values)
    assert each.mean - each.margin == pytest.approx(low, abs=2e-3)
    assert each.mean + each.margin == pytest.approx(high, abs=2e-3)


def test_pairs_are_over_equal_seeds_only(tmp_path: Path) -> None:
    for seed, level in ((0, 20.0), (1, 21.0), (2, 22.0)):
        make_run(tmp_path / f"a{seed}", seed=seed, level=level + 1, schedule="cyclical")
    for seed, level in ((1, 21.0), (2, 22.0), (3, 50.0)):
        make_run(tmp_path / f"b{seed}", seed=seed, level=level, schedule="none")
    (each,) = paired.between_settings(compare.compare([tmp_path]).groups[0])
    assert sorted(each.seeds) == [1, 2] and abs(each.mean) == pytest.approx(1)


def test_one_key_is_compared_with_all_others_equal(tmp_path: Path) -> None:
    (group,) = compare.compare([make_sweep(tmp_path / "whole")]).groups
    found = {(d.left, d.right): d for d in paired.one_key_at_a_time(group)}
    gained = found["schedule cyclical", "schedule none"]
    assert gained.mean == pytest.approx(1.6, abs=0.15) and gained.verdict == "settled"
    assert gained.seeds == [0, 1, 2], "the seed is the unit, not the cell"
    ratios = [d for pair, d in found.items() if pair[0].startswith("teacher forcing")]
    assert len(ratios) == 3 and all(d.verdict != "settled" for d in ratios)
    assert len(paired.between_settings(group)) == 8, "of many settings the best with each of the others"


def test_a_missing_cell_leaves_its_seed_in_the_average_of_a_key(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    for lost in ("cyclical-0.5-0", "none-1.0-1"):
        (tmp_path / lost / "run.json").write_text("{}")
    (group,) = compare.compare([tmp_path]).groups
    (gained,) = [
        d for d in paired.one_key_at_a_time(group) if d.left == "schedule cyclical" and "none" in d.right
    ]
    assert gained.seeds == [0, 1, 2] and gained.verdict == "settled"


# ---------------------------------------------------------------- the diagnosis, on made-up curves


FRAMES = np.arange(1.0, 201)
FLAT = np.full(200, 30.0)


@pytest.mark.parametrize(
    ("kl", "gap", "words"),
    [
        (0.006, 0.0, "collapsed"),
        (
            20.0,
            0.8,
            "The latent is used: it carries 20 nats per frame, and z from the posterior is worth +0.80",
        ),
        (80.0, 0.02, "of little use"),
        (math.nan, 0.1, "not known"),
    ],
)
def test_whether_the_latent_is_used(kl: float, gap: float, words: str) -> None:
    assert words in diagnosis.latent(kl, gap)


@pytest.mark.parametrize(
    ("rollout", "one_step", "words"),
    [
        (FLAT, FLAT, "no drift"),
        (FLAT - 0.3, FLAT, "little drift: the rollout lies 0.30 dB"),
        (FLAT - np.where(FRAMES > 100, 5.0, 0.0), FLAT, "from about frame 101"),
        (FLAT - 4, FLAT, "within the first frames, but goes no further"),
        (FLAT - 1.1 - np.linspace(0, 8, 200), FLAT, "The rollout drifts: from about frame 1 on"),
        (FLAT - np.linspace(0, 8, 200) - 0.1, FLAT - np.linspace(0, 8, 200), "those frames are harder"),
    ],
)
def test_whether_there_is_drift_and_from_where(rollout: np.ndarray, one_step: np.ndarray, words: str) -> None:
    assert words in diagnosis.drift(FRAMES, rollout, one_step)


def test_drift_in_a_clip_of_one_frame() -> None:
    assert "too short" in diagnosis.drift(np.array([1.0]), np.array([20.0]), np.array([25.0]))


def test_which_stretch_is_worst() -> None:
    psnr = FLAT.copy()
    psnr[80:105] = 20
    assert diagnosis.worst_stretch(FRAMES, psnr) == (81, 105, 20.0)
    assert "Frames 81 to 105 are predicted worst: 20.00 dB" in diagnosis.worst(FRAMES, psnr)


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (0.0, "10 of its 10 label images are blank"),
        (0.04, "less than usual"),
        (0.2, "more than"),
        (0.1, "as much"),
    ],
)
def test_what_the_labels_of_a_stretch_look_like(here: float, words: str) -> None:
    ink = np.full(100, 0.1)
    ink[20:30] = here
    assert words in diagnosis.labels(ink, 20, 29)


def test_ink_is_the_share_of_pixels_that_move() -> None:
    labels = np.full((9, 10, 10, 3), 255, np.uint8)
    labels[4, :5] = 0
    np.testing.assert_allclose(pictures.ink(labels), [0, 0, 0, 0, 0.5, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("psnr", "recon", "words"),
    [
        ([20, 24, 26, 25, 24, 23, 22, 22], range(8, 0, -1), "peaked after 3 epochs with 26.00 dB"),
        ([20, 24, 26, 25, 24, 23, 22, 22], range(8, 0, -1), "over-fits"),
        ([20, 24, 26, 25, 24, 23, 22, 22], range(8), "unstable"),
        ([20, 21, 22, 23, 24, 25, 26, 27], range(8, 0, -1), "still rising"),
        ([20, 24, 26, 26.1, 26.1, 26.1, 26.2, 26.2], range(8, 0, -1), "levelled off"),
        ([20, 24, 26, 26.1, 26.1, 26.1, 26.2, 26.2], range(8, 0, -1), "it ends at its best"),
        ([20, 24, 26, 26.1, 26.4, 26.4, 26.3, 26.2], range(8, 0, -1), "it ends 0.20 dB below its best"),
        ([20, 24], range(2), "too few validations"),
    ],
)
def test_whether_training_over_fits(psnr: list[float], recon: Sequence[int], words: str) -> None:
    arrays = (np.arange(1, len(psnr) + 1, dtype=float), np.array(psnr, float), np.array(recon, float))
    assert words in diagnosis.over_fitting(*arrays)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((28.0, 15.0, 19.0), "28.00 dB: +13.00 dB against repeating the last given frame"),
        ((17.0, 15.0, 19.0), "The mean frame is better"),
        ((14.0, 15.0, 13.0), "Repeating a frame is better"),
        ((14.0, math.nan, 13.0), "not known"),
    ],
)
def test_whether_the_model_beats_the_trivial(numbers: tuple[float, float, float], words: str) -> None:
    assert words in diagnosis.against_trivial(*numbers)


def test_which_clip_is_worst() -> None:
    assert "Of 2 clips b is predicted worst (20.00 dB)" in diagnosis.worst_clip({"a": 25.0, "b": 20.0})


# ---------------------------------------------------------------- pages


def test_the_page_of_27_runs_is_small_and_asks_for_nothing(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep", with_video=True, frames=300)
    found = compare.compare([sweep])
    (path,) = compare.write(found, tmp_path / "r.html")
    page = check_page(path)
    assert path.stat().st_size < 10_000_000
    assert page.tags.count("canvas") == 11, "truth, one video a setting, label"
    assert page.tags.count("details") == 27
    assert "Settled." in page.text and "no correction for the number of comparisons" in page.text
    for kind in ("seeds", "by_key", "between", "epochs", "frames"):
        assert any(each.startswith(f"g1-{kind}-") for each in page.ids)
    for number in range(9):
        assert f"g1-frames-series-{number}-mean" in page.ids


def hostile(folder: Path) -> Path:
    make_run(folder / EVIL.replace("/", "∕"), schedule=EVIL, command=EVIL, device=EVIL, git=EVIL)
    make_run(folder / "plain")
    make_run(folder / "failed", status="failed", error=EVIL, protocol={"data": EVIL, "ssim": EVIL})
    make_run(folder / "three", schedule="x", protocol={"data": EVIL, "prior": EVIL})
    return folder


def test_what_a_file_says_is_escaped_in_a_comparison(tmp_path: Path) -> None:
    found = compare.compare([hostile(tmp_path / "runs")])
    (path,) = compare.write(found, tmp_path / "r.html")
    page = check_page(path)
    assert EVIL in page.text and "alert('x')" in page.text
    markdown = compare.write(found, tmp_path / "r.md")[0].read_text(encoding="utf-8")
    outside_code = re.sub(r"^    .*$", "", markdown, flags=re.MULTILINE)
    assert "<script" not in outside_code and "&lt;script>" in outside_code
    tables = [line for line in outside_code.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables}) <= 2  # one number a group
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        assert EVIL in {row["kl.schedule"] for row in csv.DictReader(file)}


def test_what_a_file_says_is_escaped_in_a_report(tmp_path: Path) -> None:
    for folder in hostile(tmp_path / "runs").iterdir():
        if folder.name != "plain":
            page = check_page(report.write(folder, tmp_path / "r.html"))
            assert "<script>alert" in page.text


def test_the_page_allows_no_script_but_its_own(tmp_path: Path) -> None:
    import base64
    import hashlib

    text = report.write(make_run(tmp_path / "a"), tmp_path / "r.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in text or f"script-src 'sha256-{digest}'" in text


def test_the_report_of_a_whole_run(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "whole", with_video=True, parameters=1234, data={"source": "s", "fingerprint": "f"}
    )
    page = check_page(report.write(run, tmp_path / "r.html"))
    for words in ("The latent is used", "+10.00 dB against repeating", "are predicted worst", "still rising"):
        assert words in page.text
    assert "1,234 parameters" in page.text and "cvae validate" in page.text
    assert page.tags.count("canvas") == 3 and "label images" in page.text
    assert sum(tag == "svg" for tag in page.tags) >= 4


@pytest.mark.parametrize("lost", ["run.json", "metrics.csv", "eval", "everything"])
def test_the_report_of_a_run_that_lacks_files(tmp_path: Path, lost: str) -> None:
    run = make_run(tmp_path / "part", evaluated=lost not in ("eval", "everything"))
    for name in ("run.json", "metrics.csv") if lost == "everything" else (lost,):
        (run / name).unlink(missing_ok=True) if name != "eval" else None
    page = check_page(report.write(run, tmp_path / "r.html"))
    assert "part" in page.text


def test_neither_torch_nor_the_data_is_needed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", with_video=True)
    code = (
        "import sys; from pathlib import Path; from cvaecli.pages import compare, report\n"
        f"compare.write(compare.compare([{str(run)!r}]), Path({str(tmp_path / 'c.html')!r}))\n"
        f"report.write(Path({str(run)!r}), Path({str(tmp_path / 'r.html')!r}))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_table_needs_no_figures(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep")
    code = (
        "import sys, time; from cvaecli.pages import compare\n"
        f"found = compare.compare([{str(sweep)!r}]); compare.table(found.groups[0])\n"
        "assert 'matplotlib' not in sys.modules; assert time.process_time() < 2"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("coarse_figures")
def test_curves_in_markdown_have_their_names_within_the_figure(tmp_path: Path) -> None:
    found = compare.compare([make_sweep(tmp_path / "sweep")])
    compare.write(found, tmp_path / "r.md")
    drawn = (tmp_path / "r-frames.svg").read_text()
    assert all(setting.label in drawn for setting in found.groups[0].ranked)


def test_markdown_has_its_figures_and_numbers_beside_it(tmp_path: Path) -> None:
    found = compare.compare([make_sweep(tmp_path / "sweep")])
    written = compare.write(found, tmp_path / "thesis" / "r.md")
    assert all(path.is_file() for path in written)
    assert {path.suffix for path in written} == {".md", ".csv", ".png", ".svg"}
    text = written[0].read_text(encoding="utf-8")
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / "thesis" / name).is_file()
    with (tmp_path / "thesis" / "r.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 27 and {row["counted"] for row in rows} == {"yes"}
    assert float(rows[0]["psnr"]) == pytest.approx(found.groups[0].settings[0].runs[0].number("psnr"))


# ---------------------------------------------------------------- pictures


def test_all_videos_of_a_player_show_the_same_frames(tmp_path: Path) -> None:
    videos = []
    for name, frames in (("a", 50), ("b", 40)):
        make_run(tmp_path / name, frames=frames, with_video=True)
        video = pictures.video_of(tmp_path / name, "val")
        assert video is not None
        videos.append((name, video))
    sheets = pictures.sprites(videos)
    assert [sheet.caption for sheet in sheets] == ["truth", "label", "a", "b"]
    assert all(sheet.frames == list(range(40)) for sheet in sheets)


def test_large_videos_are_made_small(tmp_path: Path) -> None:
    frames = np.zeros((400, 300, 400, 3), np.uint8)
    (sheet, _) = pictures.sprites([("a", pictures.Video(frames, frames, None, 1))])
    assert min(sheet.width, sheet.height) == pictures.LARGEST_SIDE
    assert len(sheet.frames) * sheet.width * sheet.height <= pictures.PIXELS
    assert (sheet.frames[0], sheet.frames[-1]) == (0, 399)


def test_a_video_of_another_checkpoint_is_not_shown_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, made = make_run(tmp_path / "a"), []
    metrics = run / "eval" / "val" / "metrics.json"
    summary = json.loads(metrics.read_text())
    metrics.write_text(
        json.dumps(summary | {"protocol": summary["protocol"] | {"checkpoint_fingerprint": "new"}})
    )
    monkeypatch.setattr(sampling, "sample", lambda run, split, *, frames, **_: made.append(frames))
    frames = np.zeros((6, 8, 8, 3), np.uint8)
    for weights, again in (("new", []), ("old", [6])):
        (run / "predictions").mkdir(exist_ok=True)
        given = {"truth": frames, "samples": frames[None, 1:], "first": np.array(1)}
        np.savez(run / "predictions" / "val-0-frames.npz", checkpoint=np.array(weights), **given)
        assert (pictures.video_of(run, "val") is None) == bool(again)
        sampling.add_frames([run], "val", 6)
        assert made == again


def test_an_exported_gif_is_played_where_there_are_no_arrays(tmp_path: Path) -> None:
    from cvaecli import media

    run = make_run(tmp_path / "a")
    frames = [np.full((8, 30, 3), 10 * k, np.uint8) for k in range(12)]
    media.write(iter(frames), run / "predictions" / "val-0-panels.gif")
    video = pictures.video_of(run, "val")
    assert video is not None and video.prediction.shape == (12, 8, 30, 3)
    assert check_page(report.write(run, tmp_path / "r.html")).tags.count("canvas") == 1


# ---------------------------------------------------------------- the command line, and bad input


def test_compare_prints_what_differs_and_what_came_out(tmp_path: Path) -> None:
    out = cvae("compare", make_sweep(tmp_path / "sweep")).good().out
    assert "What do KL annealing" in out and "settled: schedule cyclical" in out
    content = json.loads(cvae("compare", tmp_path / "sweep", "--json").good().out)
    assert len(content["groups"][0]["settings"]) == 9
    assert content["groups"][0]["one_key_at_a_time"][0]["verdict"] == "settled"


def test_a_page_without_pictures_has_figures_and_numbers_only(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{seed}", seed=seed, with_video=True) for seed in (0, 1)]
    page = tmp_path / "page.html"
    cvae("compare", *runs, "--out", page).good()
    assert "data:image" in page.read_text() and "<h2>Pictures</h2>" in page.read_text()
    cvae("compare", *runs, "--out", page, "--no-pictures").good()
    text = page.read_text()
    assert "data:image" not in text and "<h2>Pictures</h2>" not in text and "<svg" in text


def test_report_writes_into_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    cvae("report", run).good()
    assert (run / "report.html").is_file()


def damage(content: str) -> Callable[[Path], None]:
    return lambda run: (run / "eval" / "val" / "metrics.json").write_text(content) and None


@pytest.mark.parametrize("content", ["{", "[]", '{"protocol": 3}'])
def test_a_damaged_evaluation_is_named(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path / "a")
    damage(content)(run)
    for command in ("compare", "report"):
        result = cvae(command, run).wrong("eval/val/metrics.json: damaged", "cvae validate")
        assert len(result.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare"], "no runs to compare"),
        (["compare", "nowhere"], "nowhere: no such run"),
        (["compare", "{empty}"], "holds no runs"),
        (["report", "{empty}"], "holds no runs"),
        (["compare", "{run}", "--out", "r.pdf"], "unknown suffix '.pdf'"),
        (["report", "{run}", "--out", "r.md"], "unknown suffix '.md'"),
        (["compare", "{run}", "--split", "../x"], "not a split"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    run = make_run(tmp_path / "a")
    result = cvae(*(a.format(empty=tmp_path / "empty", run=run) for a in arguments)).wrong(words)
    assert len(result.err.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: not readable as YAML"):
        compare.compare([run])


def test_settings_that_differ_in_many_keys_get_a_table_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = make_run(tmp_path / name)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["more"] = {f"key{k}": name for k in range(9)}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = compare.compare([tmp_path])
    assert found.question == "How do 2 settings compare that differ in 9 keys?"
    assert compare.table(found.groups[0])[0][0] == "setting"
    (path,) = compare.write(found, tmp_path / "r.html")
    assert "The 9 keys that differ" in check_page(path).text


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"ratio": 0.0, "decay_start": 3, "decay": 0.1}, "never"),
        ({"ratio": 1}, "always"),
        ({"ratio": 0.5, "floor": 0.5, "decay": 0.1}, "0.5"),
        ({"ratio": 1.0, "decay_start": 1, "decay": 0.25, "every": 1}, "falls by 0.25 an epoch"),
        (
            {"ratio": 0.9, "decay_start": 5, "decay": 0.1, "every": 3, "floor": 0.2},
            "falls by 0.1 every 3 epochs from 0.9 to 0.2 after epoch 4",
        ),
        ({"ratio": "x", "decay": None}, "x, 0, null, 0, 0"),
    ],
)
def test_the_schedule_of_teacher_forcing_in_words(section: dict[str, Any], words: str) -> None:
    assert settings.forcing_words(section) == words


def test_keys_that_make_one_schedule_are_one_key(tmp_path: Path) -> None:
    for name, ratio in (("a", 0.0), ("b", 1.0)):
        make_run(tmp_path / name, ratio=ratio)
    path = tmp_path / "b" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["teacher_forcing"] |= {"decay_start": 1, "decay": 0.25}
    path.write_text(yaml.safe_dump(config))
    found = compare.compare([tmp_path / "a", tmp_path / "b"])
    assert found.question == "What does teacher forcing (never or falls by 0.25 an epoch) change?"


def test_numbers_are_written_for_readers() -> None:
    assert settings.signed(-1.234) == "−1.23" and settings.signed(-0.001) == "+0.00"
    assert render.fixed(-1.234, 2) == "−1.23" and render.fixed(math.nan, 2) == ""
    assert settings.in_order({"10", "2", "none", "1e-3"}) == ["1e-3", "2", "10", "none"]
