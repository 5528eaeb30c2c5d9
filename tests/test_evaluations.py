"""A run's evaluations, read without torch and without data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvaecli import evaluations
from cvaecli.errors import UserError
from cvaecli.tables import AbsentError

SUMMARY: dict[str, Any] = {
    "psnr": 20.0,
    "baselines": {"repeat_last_past": {"psnr": 18.0}},
    "protocol": {"split": "val", "average_flips": True},
}
ROWS = [{"clip": name, "frame": k, "psnr": 20.0 + k, "kl": None} for name in ("b", "a") for k in (1, 2)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert evaluations.write(tmp_path, "val", SUMMARY, ROWS) == tmp_path / "eval" / "val"
    assert evaluations.read_summary(tmp_path, "val") == SUMMARY
    older = {**SUMMARY, "protocol": {"split": "val"}}
    evaluations.write(tmp_path, "test", older, ROWS)
    assert evaluations.read_summary(tmp_path, "test")["protocol"] == {"split": "val", "average_flips": False}
    table = evaluations.read_per_frame(tmp_path)
    assert table["clip"].tolist() == [0, 0, 1, 1] and table["psnr"].tolist() == [21, 22, 21, 22]
    assert np.isnan(table["kl"]).all() and np.isnan(table["mean_frame"]).all()


@pytest.mark.parametrize(
    ("split", "command"),
    [("test", "--split test"), ("val-swapped-actions", "--split val --swap actions")],
)
def test_a_missing_evaluation_names_the_command_that_makes_it(
    tmp_path: Path, split: str, command: str
) -> None:
    for read in (evaluations.read_summary, evaluations.read_per_frame):
        with pytest.raises(AbsentError) as caught:
            read(tmp_path, split)
        assert caught.value.hint == f"run: cvae validate {tmp_path} {command}"


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({**SUMMARY, "psnr": "high"})])
def test_a_damaged_summary_is_one_line(tmp_path: Path, content: str) -> None:
    evaluations.write(tmp_path, "val", SUMMARY, ROWS)
    (tmp_path / "eval/val/metrics.json").write_text(content)
    with pytest.raises(UserError, match="damaged"):
        evaluations.read_summary(tmp_path)


def test_a_prediction_that_is_not_finite_has_no_number(tmp_path: Path) -> None:
    evaluations.write(tmp_path, "val", {**SUMMARY, "psnr": None}, ROWS)
    assert evaluations.read_summary(tmp_path)["psnr"] is None


def test_frames_are_read_as_they_were_written(tmp_path: Path) -> None:
    pictures = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    rows = {"truth": pictures, "best sample": pictures + 1}
    clips = [evaluations.ClipFrames(f"val/{n}", np.array([1, 5 + n]), rows) for n in range(11)]
    path = evaluations.write_frames(tmp_path, "val", clips)
    read = evaluations.read_frames(tmp_path)
    assert [clip.name for clip in read] == [clip.name for clip in clips]
    assert read[10].numbers.tolist() == [1, 15] and list(read[1].rows) == list(rows)
    np.testing.assert_array_equal(read[1].rows["best sample"], pictures + 1)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="damaged"):
        evaluations.read_frames(tmp_path)
    with pytest.raises(AbsentError, match="not there"):
        evaluations.read_frames(tmp_path, "test")


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, cvaecli.evaluations; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
