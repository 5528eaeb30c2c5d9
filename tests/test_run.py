"""Run folders and checkpoints: names, files that are never half there, files that run no code."""

from __future__ import annotations

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_config, make_trainer

from cvaecli import checkpoint as checkpoints
from cvaecli.errors import CvaeError, UserError
from cvaecli.files import write_text
from cvaecli.run import METRIC_COLUMNS, Run, describe_environment, find, read_rows


def saved(run: Run, name: str = "last", **values: Any) -> Path:
    """A small checkpoint."""
    content = {
        "format": 1,
        "config": make_config().to_yaml(),
        "model": {"w": torch.ones(2)},
        "condition_shape": [3, 8, 8],
        "epoch": 1,
        "step": 2,
        **values,
    }
    checkpoints.save(run, name, content)
    return run.checkpoint_path(name)


def made(root: Path, name: str, *kept: str) -> Run:
    run = Run.create(root, "x", name)
    run.write_config(make_config())
    for one in kept:
        saved(run, one)
    return run


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- making -------------------------------------------------------------------------------------------


def test_numbers_go_on_after_the_highest(tmp_path: Path) -> None:
    names = [Run.create(tmp_path / "runs", "pose").name for _ in range(2)]
    (tmp_path / "runs" / "pose-041").mkdir()
    (tmp_path / "runs" / "pose-extra-099").mkdir()
    names += [Run.create(tmp_path / "runs", stem).name for stem in ("pose", "pose-extra", "other")]
    assert names == ["pose-001", "pose-002", "pose-042", "pose-extra-100", "other-001"]


def test_runs_made_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made_runs = list(pool.map(lambda _: Run.create(tmp_path, "pose"), range(24)))
    assert len({run.path for run in made_runs}) == 24


def test_a_name_can_be_used_once(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x", "exp1")
    assert run.path == tmp_path / "exp1" and run.name == "exp1"
    with pytest.raises(UserError, match="exists") as caught:
        Run.create(tmp_path, "x", "exp1")
    assert "--resume exp1" in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "..", "latest", "a/b", "../a", "/tmp/a"])
def test_a_name_is_a_plain_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="plain folder name"):
        Run.create(tmp_path / "runs", "x", name)
    assert not list((tmp_path / "runs").iterdir())


def test_latest_points_at_the_newest(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made(tmp_path, name).make_latest()
        assert (tmp_path / "latest").resolve() == (tmp_path / name).resolve()
    assert (tmp_path / "latest").readlink() == Path("b"), "relative: the folder can be moved"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "latest"}


def test_a_folder_named_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    made(tmp_path, "a").make_latest()
    assert not (tmp_path / "latest").is_symlink() and (tmp_path / "latest").is_dir()


# --- finding ------------------------------------------------------------------------------------------


def test_run_means_a_folder_a_name_or_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "runs", "a", "last", "best", "epoch-0003")
    best, numbered = run.checkpoint_path("best"), run.checkpoint_path("epoch-0003")
    assert find(run.path) == (run, best)
    assert find("a", tmp_path / "runs") == (run, best)
    assert find(numbered) == (Run(run.path.resolve()), numbered)
    monkeypatch.chdir(tmp_path)
    found, path = find("a")
    assert found.path.resolve() == run.path and path.resolve() == best
    assert find("runs/a")[0].path == Path("runs/a")


def test_nothing_and_latest_mean_the_newest_with_a_checkpoint(tmp_path: Path) -> None:
    runs = [made(tmp_path, name, "last") for name in ("b", "a")]
    os.utime(runs[0].checkpoint_path("last"), (time.time() + 9,) * 2)
    made(tmp_path, "without").make_latest()
    for spec in (None, "latest"):
        assert find(spec, tmp_path) == (runs[0], runs[0].checkpoint_path("last"))


def test_the_link_is_the_run_that_latest_means(tmp_path: Path) -> None:
    runs = [made(tmp_path, name) for name in ("b", "a")]
    for second, (run, name) in enumerate(zip((*runs, *runs), ("last", "last", "best", "best"), strict=True)):
        os.utime(saved(run, name), (1e9 + second,) * 2)  # the clock of some file systems is coarse
        assert (tmp_path / "latest").resolve() == find("latest", tmp_path)[0].path == run.path


def test_best_then_last_then_previous(tmp_path: Path) -> None:
    run = made(tmp_path, "a", "previous")
    for name in ("previous", "last", "best"):
        saved(run, name)
        assert find("a", tmp_path)[1] == run.checkpoint_path(name)


def test_an_unknown_run_names_those_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nope: no such run") as caught:
        find("nope", tmp_path)
    assert "no runs" in caught.value.hint
    with pytest.raises(UserError, match="no run with a checkpoint") as caught:
        find(None, tmp_path)
    assert "cvae train" in caught.value.hint
    made(tmp_path, "a").make_latest()
    with pytest.raises(UserError, match="nope: no such run") as caught:
        find("nope", tmp_path)
    assert caught.value.hint == "runs here: a"
    with pytest.raises(UserError, match="holds no checkpoint"):
        find("a", tmp_path)


# --- tables -------------------------------------------------------------------------------------------


def step(number: int, epoch: int = 0) -> dict[str, Any]:
    return {"step": number, "epoch": epoch, "loss": 0.1 * number, "recon": 1 / 3, "frames_per_s": None}


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    run = made(tmp_path, "a")
    run.add_step(step(1))
    run.add_metrics({"epoch": 0, "step": 1, "time": 2.5, "train/loss": 1e-9, "val/psnr": None, "strange": 1})
    (row,) = read_rows(run.path / "steps.csv")
    assert float(row["recon"]) == pytest.approx(1 / 3, rel=1e-7) and row["frames_per_s"] == ""
    (row,) = read_rows(run.path / "metrics.csv")
    assert list(row) == METRIC_COLUMNS and float(row["train/loss"]) == 1e-9 and row["val/psnr"] == ""


def test_an_epoch_has_one_row(tmp_path: Path) -> None:
    run = made(tmp_path, "a")
    for epoch, number in ((0, 5), (1, 8), (1, 10)):
        run.add_metrics({"epoch": epoch, "step": number})
    assert [row["step"] for row in read_rows(run.path / "metrics.csv")] == ["5", "10"]


@pytest.mark.parametrize("cut", [1, 5, 13, 21, 25, 29, 30])
def test_a_line_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    run = made(tmp_path, "a")
    for number in (1, 2, 3):
        run.add_step(step(number))
    path = run.path / "steps.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    whole = [row["step"] for row in read_rows(path)]
    # One byte is half of the line's end, its row is whole; 30 are that row and the end of the one before.
    assert whole == {1: ["1", "2", "3"], 30: ["1"]}.get(cut, ["1", "2"])
    run.forget_after(99)
    run.add_step(step(4))
    assert [row["step"] for row in read_rows(path)] == [*whole, "4"]


def test_rows_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    run = made(tmp_path, "a")
    run.forget_after(0)
    for number in range(1, 7):
        run.add_step(step(number, number // 3))
        run.add_metrics({"epoch": number, "step": number})
    run.forget_after(4)
    for name in ("steps.csv", "metrics.csv"):
        assert [row["step"] for row in read_rows(run.path / name)] == ["1", "2", "3", "4"]


def test_a_table_saved_by_another_program_is_refused_or_its_odd_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("step;epoch\n1;0\n")
    with pytest.raises(UserError, match="no columns step and epoch"):
        read_rows(path)
    path.write_text("step,epoch,loss\n1,0,2\n,0,2\n3,,2\n4\n5,1,2\n")
    assert [row["step"] for row in read_rows(path)] == ["1", "5"]


def test_a_table_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.csv") == []
    (tmp_path / "empty.csv").touch()
    assert read_rows(tmp_path / "empty.csv") == []


def test_info_is_added_to(tmp_path: Path) -> None:
    run = made(tmp_path, "a")
    assert run.info() == {}
    run.update_info(**describe_environment(), status="running")
    run.update_info(status="finished")
    info = run.info()
    assert info["status"] == "finished" and set(info["versions"]) == {"cvae", "python", "torch", "platform"}
    (run.path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json"):
        run.info()


def test_writing_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, "a")
    before = files(run.path)
    write_text(run.path / "x.txt", "one")
    saved(run)
    assert files(run.path) - before == {"x.txt", "checkpoints/last.pt"}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_text(run.path / "x.txt", "two")
    with pytest.raises(CvaeError, match="cannot be written"):
        saved(run)
    assert files(run.path) - before == {"x.txt", "checkpoints/last.pt"}
    assert (run.path / "x.txt").read_text() == "one"


# --- checkpoints --------------------------------------------------------------------------------------


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    run = made(tmp_path, "a")
    for number in (1, 2, 3):
        content = checkpoints.load(saved(run, "x"))
        checkpoints.save_last(run, {**content, "step": number})
    assert [checkpoints.load(run.checkpoint_path(name))["step"] for name in ("last", "previous")] == [3, 2]


def test_a_training_state_loads_without_running_code(tmp_path: Path) -> None:
    trainer = make_trainer(make_config(train={"interpolate_every": 1, "epochs": 1}))
    list(trainer.events())
    run = made(tmp_path, "a")
    path = saved(run, trainer=trainer.state_dict(), model=trainer.trained.state_dict())
    torch.load(path, weights_only=True)
    state = checkpoints.load(path)["trainer"]
    assert set(state) >= {"step", "epoch", "optimizer", "weights", "initial"}


class _Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("was-run",))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_malicious_file_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    if form == "torch":
        torch.save({"format": 1, "model": _Malice()}, path)
    else:
        path.write_bytes(pickle.dumps({"format": 1, "model": _Malice()}))
    with pytest.raises(UserError, match=r"bad\.pt"):
        checkpoints.load(path)
    checkpoints.is_foreign(path)
    assert not (tmp_path / "was-run").exists()


def test_every_damage_is_one_message(tmp_path: Path) -> None:
    whole = saved(made(tmp_path, "a")).read_bytes()
    path = tmp_path / "damaged.pt"
    damaged = [whole[:n] for n in range(0, len(whole), len(whole) // 12)]
    damaged += [
        b"\0" * 500,
        b"hello",
        os.urandom(300),
        pickle.dumps([1, 2]),
        pickle.dumps("x"),
        b"\x80\x02K\x01.",
    ]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged\.pt"):
            checkpoints.load(path)
        refused += 1
    assert refused == len(damaged)
    for error in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(UserError):
            checkpoints.load(error)


def test_a_byte_changed_anywhere_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Never a traceback, and never another weight."""
    run = made(tmp_path, "a")
    whole = saved(run, model={"w": torch.ones(300)}).read_bytes()
    path = tmp_path / "flipped.pt"
    refused = 0
    for at in range(0, len(whole), 23):
        content = bytearray(whole)
        content[at] ^= 0x55
        path.write_bytes(bytes(content))
        try:
            loaded = checkpoints.load(path)
        except UserError:
            refused += 1
        else:
            assert torch.equal(loaded["model"]["w"], torch.ones(300)), at
    assert refused > len(whole) // 23 // 4


def test_foreign_and_newer_checkpoints_are_refused(tmp_path: Path) -> None:
    run = made(tmp_path, "a")
    with pytest.raises(UserError, match="newer version"):
        checkpoints.load(saved(run, format=99))
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not a checkpoint of this tool"):
        checkpoints.load(tmp_path / "other.pt")
    assert checkpoints.is_foreign(tmp_path / "other.pt") and not checkpoints.is_foreign(saved(run))


def test_the_fingerprint_is_of_the_weights(tmp_path: Path) -> None:
    run = made(tmp_path, "a")
    one, same, other = (
        checkpoints.fingerprint(checkpoints.load(saved(run, **values)))
        for values in ({}, {"epoch": 9}, {"model": {"w": torch.tensor([1.0, 1.0001])}})
    )
    assert one == same != other


def test_the_config_is_in_the_checkpoint(tmp_path: Path) -> None:
    content = checkpoints.load(saved(made(tmp_path, "a")))
    assert checkpoints.config_of(content) == make_config()
    assert checkpoints.config_of(content, ["eval.samples=3"]).eval.samples == 3
