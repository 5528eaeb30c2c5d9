"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cvaecli.errors import UserError
from cvaecli.files import remove_leftovers, replacing, write_csv, write_text


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x.txt"
    with replacing(target) as part:
        part.write_text("one")
        assert not target.exists() and part.parent == target.parent and part.name.startswith(".")
    assert target.read_text() == "one" and names(target.parent) == {"x.txt"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(error), replacing(target) as part:
        part.write_text("half")
        raise error
    assert target.read_text() == "old" and names(tmp_path) == {"x.txt"}


def test_a_folder_replaces_an_empty_one_only(tmp_path: Path) -> None:
    target = tmp_path / "frames"
    for _ in range(2):
        with replacing(target, folder=True) as part:
            (part / "0.png").write_text("x")
        assert names(target) == {"0.png"} and names(tmp_path) == {"frames"}
        (target / "0.png").unlink()
    (target / "mine").touch()
    with pytest.raises(OSError), replacing(target, folder=True):
        pass
    assert names(target) == {"mine"} and names(tmp_path) == {"frames"}


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="x: it is a folder"), replacing(tmp_path / "x"):
        raise AssertionError("the work is not done first")
    assert names(tmp_path) == {"x"}


def test_the_content_is_on_the_disk_before_the_move_and_the_move_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def moved(part: Path, target: Path) -> Path:
        order.append("move")
        return replace(part, target)

    def flushed(descriptor: int) -> None:
        order.append("flush folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "flush file")  # noqa: PTH112
        fsync(descriptor)

    monkeypatch.setattr(Path, "replace", moved)
    monkeypatch.setattr(os, "fsync", flushed)
    write_text(tmp_path / "x.txt", "one")
    if Path("/proc/self/fd").exists():
        assert order == ["flush file", "move", "flush folder"]


def test_a_place_that_cannot_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "x.txt", "one")


def test_csv_cells_are_short_and_empty_where_there_is_nothing(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", ["a", "b"], [{"a": 1 / 3, "b": None, "c": 1}, {"a": 7}])
    assert (tmp_path / "x.csv").read_text().splitlines() == ["a,b", "0.33333333,", "7,"]


def test_leftovers_of_a_killed_process_can_be_removed(tmp_path: Path) -> None:
    for name in (".last.pt.12345678.part", "kept.pt", ".hidden"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {"kept.pt", ".hidden"}
