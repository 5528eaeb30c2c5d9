"""Every reader refuses changed files with one line, and killed trainings lose nothing; few examples each.

Long runs: fuzz/README.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
import crash
import readers


@pytest.mark.parametrize("name", readers.readers())
def test_a_good_file_is_read(name: str, tmp_path: Path) -> None:
    reader = readers.readers()[name]
    path = tmp_path / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    accepted = readers.Tally()
    for seed in reader.seeds:
        accepted.one(reader, path, seed)
    assert accepted.refused == (1 if name == "picture" else 0), "only the animated picture"


@pytest.mark.parametrize("name", readers.readers())
def test_changed_files_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    tally = readers.fuzz(name, 40, tmp_path)
    assert tally.examples >= 40


def test_trainings_that_are_killed_end_like_one_that_is_not() -> None:
    done = subprocess.run(
        [sys.executable, crash.__file__, "--kills", "2"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2  kills\n" in done.stdout
