"""``cvae sweep``: which runs there are, who trains them, and that none is lost or done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from filelock import FileLock
from helpers import Result, cvae, write_set, yaml_config
from optuna.trial import TrialState

from cvaecli import api
from cvaecli.api import sweep as sweeping
from cvaecli.api import sweep_worker
from cvaecli.config.loading import load
from cvaecli.config.schema import RunConfig
from cvaecli.errors import UserError
from cvaecli.run import Run, find
from cvaecli.sweeping import queue
from cvaecli.sweeping import shares as machine
from cvaecli.sweeping.plan import FIXED, LIMIT, Plan
from cvaecli.sweeping.queue import Queue

GRID = ("kl.schedule=cyclical,none", "seed=0,1")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a tiny data set and config."""
    write_set(tmp_path / "set")
    yaml_config(tmp_path, tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def work(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a worker within this process; ``stopped``: as if the sweep had closed its standard input."""

    def run(folder: Path, *overrides: str, stopped: bool = False) -> int:
        read, write = os.pipe()
        with os.fdopen(read) as stdin, os.fdopen(write, "w") as sweep:
            if stopped:
                sweep.close()
            monkeypatch.setattr(sys, "stdin", stdin)
            monkeypatch.setattr(sys, "argv", ["pytest"])
            monkeypatch.setattr(sweep_worker, "_log_to", lambda path: None)
            return sweep_worker.main([str(folder), "120", *overrides])

    return run


def start(*arguments: str, trials: int | None = None, name: str = "s") -> Queue:
    """A sweep's folder with all cells queued, and no worker."""
    plan = Plan.of("tiny.yaml", arguments, trials)
    joined = sweeping._join(Path("runs") / name, plan, None, 120)
    joined.refresh()
    return joined


def states(cells: Queue) -> list[str]:
    return [state.state for state in cells.states()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.pt", weights_only=True)["model"]
    return saved


# --- which runs there are -----------------------------------------------------------------------------


def test_a_grid_has_a_cell_for_each_combination(home: Path) -> None:
    forcing = "teacher_forcing.ratio+decay_start+decay=0+0+0,1+1+0.25"
    plan = Plan.of("tiny.yaml", [*GRID, forcing, "train.epochs=3"])
    assert len(plan.cells) == 8 == len({cell.name for cell in plan.cells})
    cell = plan.cells[-1]
    assert cell.name == "schedule-none_seed-1_ratio-1_decay_start-1_decay-0.25"
    config = plan.config_of(cell.overrides)
    forced = config.teacher_forcing
    assert forced and (forced.ratio, forced.decay_start, forced.decay) == (1, 1, 0.25)
    assert (config.kl.schedule, config.seed, config.train.epochs) == ("none", 1, 3)


def test_names_are_safe_and_distinct(home: Path) -> None:
    def names(*arguments: str) -> list[str]:
        return [cell.name for cell in Plan.of("tiny.yaml", arguments).cells]

    assert names("train.augment.shift=[0,0],[1,2]") == ["shift-0-0", "shift-1-2"]
    # Two keys that end alike are written in full.
    both = names("kl.schedule=none,cyclical", "optim.schedule=constant,cosine")
    assert both[0] == "kl.schedule-none_optim.schedule-constant"
    odd = names("train.init=a/b.pt,a:b.pt")
    assert len(set(odd)) == 2 and all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for name in odd
    )


def test_a_range_is_logarithmic_over_a_decade_and_integers_stay_integers(home: Path) -> None:
    search = ["optim.lr=1e-4..1e-2", "teacher_forcing.ratio=0..1", "train.epochs=2..4", "kl.ratio=0.2..0.5"]
    ranges = {axis.name: axis.range for axis in Plan.of("tiny.yaml", search, trials=3).axes}
    assert ranges["optim.lr"] == (1e-4, 1e-2, True)
    assert ranges["teacher_forcing.ratio"] == (0.0, 1.0, False)
    assert isinstance(
        ranges["teacher_forcing.ratio"].low, float
    )  # typed as integers, but the key takes floats
    assert ranges["train.epochs"] == (2, 4, False) and isinstance(ranges["train.epochs"].low, int)
    assert ranges["kl.ratio"] == (0.2, 0.5, False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train.epochs=2"], "nothing varies"),
        (["optim.rate=1,2"], "optim.rate: unknown key"),
        (["optim.lr=fast,slow"], "optim.lr: 'fast' is not allowed"),
        (["kl.schedule=cyclical,non"], "did you mean none?"),
        (["data.root=a,b"], "data.root: cannot vary within a sweep: runs are compared on the same data"),
        (["data.kind=dance,robot"], "data.kind: cannot vary"),
        (["data.height=8,16"], "data.height: cannot vary"),
        (["data.n_past=1,2"], "data.n_past: cannot vary within a sweep: it is part of the evaluation"),
        (["eval.samples=1,2"], "eval.samples: cannot vary"),
        (["runtime.threads=1,2"], "runtime.threads: cannot vary within a sweep: it describes the machine"),
        (["seed=0,,1"], "seed=0,,1: has an empty value"),
        (["seed=0,1,0"], "0 is given twice"),
        (["seed=0,1", "seed=2"], "seed: is given twice"),
        (["optim.lr=1e-3,0.001"], "are the same run"),
        (["teacher_forcing.ratio+decay=0+0,1"], "1 must have 2 parts joined by +"),
        (["seed=0..9"], "seed: a range needs --search"),
        (["train.epochs=" + ",".join(map(str, range(1, 12))), "seed=" + ",".join(map(str, range(100)))],
         f"a sweep has at most {LIMIT:,}"),
        (["optim.lr=1e-2..1e-4", "--search", "--trials", "2"], "optim.lr=1e-2..1e-4: an empty range"),
        (["optim.lr=1e-2..1e-2", "--search", "--trials", "2"], "an empty range"),
        (["kl.schedule=1..2", "--search", "--trials", "2"], "kl.schedule: 1 is not allowed"),
        (["train.shuffle=0..1", "--search", "--trials", "2"], "train.shuffle"),
        (["train.epochs=1.5..3", "--search", "--trials", "2"], "train.epochs: 1.5 is not allowed"),
        (["seed=0,1", "--name", "a/b"], "--name 'a/b': must be a plain folder name"),
        (["seed=0,1", "--storage", "nonsense"], "--storage nonsense: cannot be used"),
        (["seed=0,1", "data.root=nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(home: Path, arguments: list[str], told: str) -> None:
    cvae("sweep", "-q", "--config", "tiny.yaml", *arguments).wrong(told)
    assert not list(Path("runs").glob("*"))


def test_every_key_that_cannot_vary_exists() -> None:
    config = load("quickstart").to_dict()
    for key in FIXED:
        section, _, rest = key.partition(".")
        assert section in config and (not rest or rest in config[section]), key


def test_without_optuna_one_line_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for module in ("crew", "queue"):
        monkeypatch.delitem(sys.modules, f"cvaecli.sweeping.{module}")
        monkeypatch.delattr(f"cvaecli.sweeping.{module}")
    cvae("sweep", "--config", "tiny.yaml", *GRID).wrong('pip install -e ".[sweep]"')


def test_a_run_of_that_name_is_left_alone(home: Path) -> None:
    config = load("tiny.yaml", ["train.epochs=1"])
    run = api.train(config, name="s")
    cvae("sweep", "--config", "tiny.yaml", *GRID, "--name", "s").wrong("runs/s: is an ordinary run")
    assert run.info()["status"] == "finished"
    (home / "runs/notes").mkdir()
    (home / "runs/notes/text").write_text("mine")
    cvae("sweep", "--config", "tiny.yaml", *GRID, "--name", "notes").wrong("is not a sweep")


def test_another_sweep_of_that_name_is_refused_but_more_values_are_added(home: Path) -> None:
    start(*GRID)
    before = (home / "runs/s/journal.log").read_text()

    def again(*arguments: str) -> Result:
        return cvae("sweep", "--config", "tiny.yaml", "--name", "s", *arguments)

    again("kl.schedule=cyclical,monotonic", "seed=0,1").wrong(
        "kl.schedule was cyclical,none, is now cyclical,mono"
    )
    again("seed=0,1").wrong("what varied was kl.schedule, seed, is now seed")
    again(*GRID, "optim.lr=0.5").wrong("optim.lr was 0.001, is now 0.5")
    again(*GRID, "--storage", "sqlite:///x.db").wrong("storage was journal, is now sqlite:///x.db")
    again(*GRID, "--search", "--trials", "3").wrong("kind was grid, is now search")
    (home / "tiny.yaml").write_text((home / "tiny.yaml").read_text().replace("window: 4", "window: 3"))
    again(*GRID).wrong("train.window was 4, is now 3")
    (home / "tiny.yaml").write_text((home / "tiny.yaml").read_text().replace("window: 3", "window: 4"))
    assert (home / "runs/s/journal.log").read_text() == before

    more = start("kl.schedule=cyclical,none", "seed=0,1,2", "runtime.threads=1")
    assert len(more.study.trials) == len(more.states()) == 6
    assert start("kl.schedule=cyclical,none", "seed=0,1,2").plan.cells == Plan.read(home / "runs/s").cells


# --- who trains which ---------------------------------------------------------------------------------


def test_a_study_of_another_folder_is_not_taken_over(home: Path) -> None:
    (home / "other/locks").mkdir(parents=True)
    Queue(home / "other", Plan.of("tiny.yaml", GRID), "sqlite:///x.db").refresh()
    (home / "runs").mkdir()
    command = (
        "sweep",
        "-q",
        "--config",
        "tiny.yaml",
        *GRID,
        "--name",
        "other",
        "--storage",
        "sqlite:///x.db",
    )
    cvae(*command).wrong("--storage: already holds a study named other")
    assert not list(Path("runs").iterdir())


def test_each_cell_is_taken_once(home: Path) -> None:
    cells = start(*GRID)
    taken = [cells.take() for _ in range(5)]
    names = [found[0].name for found in taken if found]
    assert len(names) == len(set(names)) == 4 and taken[-1] is None
    cells.refresh()  # all four are held
    assert states(cells) == ["running"] * 4 and cells.take() is None


def test_a_cell_whose_lock_is_free_is_queued_again(home: Path) -> None:
    cells = start("seed=0,1")
    found = cells.take()
    assert found
    _, held = found
    held.close()  # as the kernel does at the end of a process
    cells.refresh()
    assert states(cells) == ["waiting", "waiting"]
    assert len(cells.study.trials) == 3


def test_a_worker_on_another_machine_is_dead_after_its_silence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locks may not reach beyond a machine: there the age of a file decides."""
    cells = start("seed=0,1")
    monkeypatch.setattr(queue, "HOST", "elsewhere")
    found = cells.take()
    monkeypatch.undo()
    monkeypatch.chdir(home)
    assert found
    found[1].close()
    cells.refresh()
    assert states(cells) == ["running", "waiting"]
    beat = home / "runs/s/locks" / f"{found[0].name}.beat"
    os.utime(beat, (time.time() - 119, time.time() - 119))
    cells.refresh()
    assert states(cells) == ["running", "waiting"]
    os.utime(beat, (time.time() - 121, time.time() - 121))
    cells.refresh()
    assert states(cells) == ["waiting", "waiting"]


def test_a_worker_renews_its_heartbeat(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    with queue._beating(beat, 0.05):
        first = beat.stat().st_mtime_ns
        patience = time.monotonic() + 5
        while beat.stat().st_mtime_ns == first:
            assert time.monotonic() < patience
            time.sleep(0.02)


def test_a_cell_that_kills_its_process_again_and_again_has_failed(home: Path) -> None:
    cells = start("seed=0,1")
    found, other = cells.take(), cells.take()
    assert found and other
    other[0].trial.set_user_attr("pid", 1)
    for death in range(queue.MAX_DEATHS):
        assert found, death
        assert cells.died(os.getpid(), "was killed by SIGKILL")
        found[1].close()
        cells.refresh()
        found = cells.take()
    assert found is None and not cells.died(os.getpid(), "was killed by SIGKILL")
    state = cells.states()[0]
    assert state.state == "failed" and "was killed by SIGKILL, 3 times" in state.error
    cells.refresh(retry_failed=True)
    assert states(cells)[0] == "waiting"


@pytest.mark.timeout(60)
def test_a_process_that_was_killed_while_it_wrote_to_the_journal_does_not_stop_the_others(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "ABANDONED", 3)
    folder = Path("runs/s")  # relative, as on the command line
    backend = start("seed=0,1").study._storage._backend
    backend._lock.acquire()  # and never released
    held = set(folder.glob("journal.log?*"))
    assert len(held) == 1
    cells = Queue(folder, Plan.read(folder))
    assert cells.take()
    assert states(cells) == ["running", "waiting"] and not held & set(folder.iterdir())


def test_a_damaged_or_locked_storage_is_reported_and_the_runs_are_kept(
    work: Callable[..., int], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("seed=0,1")
    folder, journal = home / "runs/s", home / "runs/s/journal.log"
    assert work(folder) == work(folder) == 0
    whole, run = journal.read_bytes(), (folder / "seed-0/run.json").read_text()
    command = ("sweep", "--config", "tiny.yaml", "--name", "s", "seed=0,1")
    for damage in (whole[:-9], whole + b"garbage\n", b"garbage\n" + whole, b'{"a": 1}\n' + whole):
        journal.write_bytes(damage)
        cvae(*command).wrong("runs/s/journal.log: is damaged", "finished runs are not trained again")
        assert journal.read_bytes() == damage
    journal.write_bytes(whole)
    monkeypatch.setattr(queue, "PATIENCE", 0.1)
    with FileLock(folder / "locks/queue.lock"):
        cvae(*command).wrong("queue.lock: held by another process")
    (folder / "sweep.yaml").write_text("kind: neither\n")
    cvae(*command).wrong("runs/s/sweep.yaml: is damaged at kind")
    assert (folder / "seed-0/run.json").read_text() == run

    # As the message says: without the journal the cells are queued anew, and their runs are found finished.
    (folder / "sweep.yaml").unlink()
    journal.unlink()
    cvae(*command).wrong("is not a sweep")
    Plan.of("tiny.yaml", ["seed=0,1"]).write(folder)
    told = folder / "seed-0/checkpoints/last.pt"
    before = told.stat().st_mtime_ns
    again = start("seed=0,1")
    assert work(folder) == work(folder) == 0
    assert states(again) == ["finished"] * 2 and told.stat().st_mtime_ns == before


def test_the_cores_and_the_gpus_are_shared_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("tiny.yaml", ["runtime.device=auto"])
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.shares(config, 1) == [({}, [])]
    assert machine.shares(config, 3) == [({"OMP_NUM_THREADS": "2"}, ["runtime.threads=2"])] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [e["CUDA_VISIBLE_DEVICES"] for e, _ in machine.shares(config, 3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [e["CUDA_VISIBLE_DEVICES"] for e, _ in machine.shares(config, 2)] == ["5", "7"]
    cpu = load("tiny.yaml", ["runtime.device=cpu", "runtime.threads=3"])
    assert machine.shares(cpu, 2) == [({"OMP_NUM_THREADS": "3"}, ["runtime.threads=3"])] * 2


# --- one cell -----------------------------------------------------------------------------------------


def test_a_cell_is_an_ordinary_run(work: Callable[..., int], home: Path) -> None:
    cells = start("seed=0,1", "train.epochs=1")
    assert work(home / "runs/s") == 0
    run = home / "runs/s/seed-0"
    assert find("runs/s/seed-0")[0].path == Path("runs/s/seed-0")
    assert find("s/seed-0")[0].name == "seed-0"
    assert Run(run).info()["status"] == "finished"
    assert Run(run).info()["command"] == "cvae train --config tiny.yaml train.epochs=1 seed=0"
    state, metrics = cells.states()[0], api.evaluation(Run(run))
    assert (state.state, state.psnr) == ("finished", metrics["psnr"])
    assert state.psnr_one_step == metrics["psnr_one_step"] and state.run == Path("runs/s/seed-0")
    alone = api.train(load("tiny.yaml", ["seed=0", "train.epochs=1"]), name="alone")
    assert all(map(torch.equal, weights(run).values(), weights(alone.path).values()))


def test_an_interrupted_cell_is_saved_and_goes_on(work: Callable[..., int], home: Path) -> None:
    cells = start("seed=0,1")
    assert work(home / "runs/s", stopped=True) == 128 + signal.SIGTERM
    run = Run(home / "runs/s/seed-0")
    assert run.info()["status"] == "interrupted" and states(cells) == ["waiting"] * 2
    cells.refresh()
    assert work(home / "runs/s") == work(home / "runs/s") == 0
    assert states(cells) == ["finished"] * 2 and run.info()["resumed_at_step"] > 0


def test_a_cell_that_was_killed_before_its_first_checkpoint_starts_again(
    work: Callable[..., int], home: Path
) -> None:
    cells = start("seed=0,1")
    (home / "runs/s/seed-0/checkpoints").mkdir(parents=True)
    assert work(home / "runs/s") == 0 and states(cells) == ["finished", "waiting"]


def test_one_failure_does_not_end_the_others(work: Callable[..., int], home: Path) -> None:
    cells = start("optim.lr=1e30,1e-3")
    assert work(home / "runs/s") == work(home / "runs/s") == 0
    failed, finished = cells.states()
    assert failed.state == "failed" and "recon is nan" in failed.error and finished.state == "finished"
    cells.refresh()
    assert states(cells) == ["failed", "finished"]
    result = cvae("sweep", "--config", "tiny.yaml", "--name", "s", "optim.lr=1e30,1e-3")
    assert result.code == 1 and "lr-1e30: " in result.err and "lr-0.001" not in result.err


def test_a_run_of_another_config_is_not_taken_for_the_cell(work: Callable[..., int], home: Path) -> None:
    api.train(load("tiny.yaml", ["seed=0", "train.epochs=1"]), name="seed-0", runs=home / "runs/s")
    (home / "runs/s").rename(home / "runs/old")
    cells = start("seed=0,1")
    (home / "runs/old/seed-0").rename(home / "runs/s/seed-0")
    assert work(home / "runs/s") == 0
    assert "train.epochs was 1, is now 2" in cells.states()[0].error


# --- searching ----------------------------------------------------------------------------------------


def test_a_search_trains_so_many_runs_of_its_ranges(work: Callable[..., int], home: Path) -> None:
    cells = start("optim.lr=1e-4..1e-2", "kl.schedule=none,cyclical", trials=2)
    assert work(home / "runs/s") == work(home / "runs/s") == work(home / "runs/s") == 0
    assert states(cells) == ["finished"] * 2
    for state in cells.states():
        assert state.run
        config = load(state.run / "config.yaml")
        assert 1e-4 <= config.optim.lr <= 1e-2 and f"lr={config.optim.lr!r}" in state.overrides[0]
    assert len(start("optim.lr=1e-4..1e-2", "kl.schedule=none,cyclical", trials=3).states()) == 3
    with pytest.raises(UserError, match="--trials was 3, is now 2"):
        start("optim.lr=1e-4..1e-2", "kl.schedule=none,cyclical", trials=2)


def test_a_search_keeps_the_values_of_a_run_whose_worker_died(work: Callable[..., int], home: Path) -> None:
    cells = start("optim.lr=1e-4..1e-2", trials=1)
    found = cells.take()
    assert found
    found[1].close()
    cells.refresh()
    assert work(home / "runs/s") == 0
    (state,) = cells.states()
    assert state.state == "finished" and state.overrides == found[0].overrides
    assert state.run == Path("runs/s") / found[0].name


def test_a_hopeless_run_stops_early(work: Callable[..., int], home: Path) -> None:
    cells = start("optim.lr=1e-9..1e-8", "train.epochs=8", trials=1)
    good = dict.fromkeys(range(8), 60.0)
    for _ in range(4):
        cells.study.add_trial(
            optuna.create_trial(state=TrialState.COMPLETE, value=60.0, intermediate_values=good)
        )
    assert work(home / "runs/s") == 0
    (state,) = cells.states()
    assert state.state == "pruned" and state.run
    run = Run(state.run)
    assert run.info()["status"] == "pruned" and run.checkpoint_path("last").is_file()
    epochs = len((state.run / "metrics.csv").read_text().splitlines()) - 1
    assert epochs == 3, "a quarter of the epochs is left alone"
    cells.refresh()
    assert states(cells) == ["pruned"]


# --- whole sweeps, with processes ---------------------------------------------------------------------


def test_a_dry_run_lists_the_cells_and_leaves_nothing(home: Path) -> None:
    result = cvae("sweep", "--config", "tiny.yaml", *GRID, "--workers", "2", "--dry-run", "--json").good()
    found = json.loads(result.out)
    assert [cell["cell"] for cell in found["cells"]][:2] == [
        "schedule-cyclical_seed-0",
        "schedule-cyclical_seed-1",
    ]
    assert all(cell["peak_memory_gb"] > 0 for cell in found["cells"])
    assert not Path("runs").exists()


def test_an_estimate_tells_teacher_forced_from_free_running(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def dry_run(config: RunConfig, **_: Any) -> dict[str, float]:
        assert config.teacher_forcing is not None
        tried.append(config.teacher_forcing.ratio)
        return {"estimated_minutes": 1.0 + tried[-1], "peak_memory_gb": 1.0}

    monkeypatch.setattr(sweeping, "dry_run", dry_run)
    for ratios in ("0.0,1.0", "1.0,0.0"):
        found = sweeping.estimate("tiny.yaml", [f"teacher_forcing.ratio={ratios}", "seed=0,1"])
        assert found["estimated_minutes"] == 6.0
    assert tried == [0.0, 1.0, 1.0, 0.0], "one for both seeds"


def test_two_workers_are_killed_and_two_others_finish_as_if_nothing_had_happened(home: Path) -> None:
    long = ["train.epochs=12", "eval.sample_strips=false"]
    command = ["sweep", "--config", "tiny.yaml", "seed=0,1", *long, "--name", "s", "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-m", "cvaecli", *command, "-q"], start_new_session=True)
    pids = _until_under_way(Path("runs/s"), process)
    assert len(pids) == 2
    for pid in (process.pid, *pids):
        os.kill(pid, signal.SIGKILL)
    process.wait()

    result = cvae(*command).good()
    assert result.err.count("finished ") == result.err.count("started ") == 2
    assert all(f"seed-{seed}" in result.out for seed in range(2))
    runs = [path.parent for path in Path("runs/s").glob("*/config.yaml") if not path.parent.is_symlink()]
    assert sorted(run.name for run in runs) == ["seed-0", "seed-1"]
    assert all(Run(run).info()["resumed_at_step"] > 0 for run in runs)
    whole = api.train(load("tiny.yaml", ["seed=1", *long]), name="whole")
    assert all(map(torch.equal, weights(Path("runs/s/seed-1")).values(), weights(whole.path).values()))

    journal = Path("runs/s/journal.log").read_bytes()
    again = json.loads(cvae(*command, "--json").good().out)
    assert Path("runs/s/journal.log").read_bytes() == journal
    assert [cell["state"] for cell in again["cells"]] == ["finished"] * 2
    assert all(cell["psnr"] > 0 and Path(cell["run"]).is_dir() for cell in again["cells"])


def test_ctrl_c_saves_the_running_cells(home: Path) -> None:
    arguments = ["--config", "tiny.yaml", "seed=0,1", "train.epochs=400", "--name", "s"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cvaecli", "sweep", *arguments], stderr=subprocess.PIPE, text=True
    )
    _until_under_way(Path("runs/s"), process, workers=1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130 and "0 of 2 cells are done, the running ones are saved" in told
    assert Run(Path("runs/s/seed-0")).info()["status"] == "interrupted"
    assert states(Queue(Path("runs/s"), Plan.read(Path("runs/s")))) == ["waiting", "waiting"]


def _until_under_way(folder: Path, process: subprocess.Popen[Any], workers: int = 2) -> list[int]:
    """Wait until so many cells have done some epochs; the process ids of their workers."""
    patience = time.monotonic() + 60
    while time.monotonic() < patience and process.poll() is None:
        rows = [len(path.read_text().splitlines()) for path in folder.glob("seed-*/metrics.csv")]
        if len(rows) >= workers and min(rows) > 2:
            running = Queue(folder, Plan.read(folder)).states()
            return [state.pid for state in running if state.pid]
        time.sleep(0.02)
    raise AssertionError("the sweep did not get under way")
