"""Kill trainings at random moments and inside checkpoint writes, resume them, and compare the results.

    python fuzz/crash.py --kills 100 --seed 0

Each run is killed several times and then finishes. Its checkpoints, metrics and evaluation must equal those
of an uninterrupted run bit for bit; clocks are left out. Prints a tally; the exit status is 1 if a run
differs, cannot be resumed, or starts again from step 0.

Trainings run in forked processes, so that PyTorch is imported once. A kill counts as inside a checkpoint
write if the write's hidden file is left behind.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: children are forked

import torch

from cvaecli import api, checkpoint
from cvaecli.config import loading
from cvaecli.config.schema import RunConfig
from cvaecli.run import Run, read_rows
from cvaecli.synthetic import dancer, robot

KILLS_A_RUN = 5
SMALL = [
    *("train.epochs=3", "train.steps_per_epoch=6", "train.window=4", "train.batch_size=2"),
    *("train.log_every=2", "train.save_minutes=1e-9", "data.height=16", "data.width=16"),
    *("eval.clips=1", "eval.frames=3", "eval.batch_size=1", "runtime.device=cpu", "runtime.threads=1"),
]
FAMILIES = {
    "pose": [
        "quickstart",
        *("model.widths=[16,16]", "model.encoder_blocks=[0,1]", "model.decoder_blocks=[0]", *SMALL),
    ],
    "robot": [
        "robot-futures",
        *("model.width=4", "model.g_dim=8", "model.z_dim=4", "model.rnn_size=8", *SMALL),
    ],
}
CLOCKS = {"seconds", "time", "frames_per_s", "config"}
"""What may differ; the config says how long a run may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dice, tally = random.Random(arguments.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CVAE_CACHE"] = f"{folder}/cache"
        configs = small_configs(Path(folder))
        whole = {}
        for name, config in configs.items():
            # In this process, so that children inherit what it imports; then in a child, to time it.
            run = api.train(config, name=name, runs=Path(folder))
            began = time.monotonic()
            assert (
                ended(start(lambda c=config, n=name: api.train(c, name=f"{n}-again", runs=Path(folder)))) == 0
            )
            whole[name] = run, time.monotonic() - began
            again = difference(content(Run(Path(folder) / f"{name}-again")), content(run))
            tally["FAILED"] += bool(again)
            print(
                f"{name}: {whole[name][1]:.1f} s without a kill; a second time: {again or 'equal'}",
                flush=True,
            )
        number = 0
        while tally["kills"] < arguments.kills:
            name = list(configs)[number % len(configs)]
            run = Run(Path(folder) / f"{name}-{number}")
            wanted = min(KILLS_A_RUN, arguments.kills - tally["kills"])
            one_run(run, configs[name], whole[name], wanted, dice, tally)
            number += 1
    print(f"seed {arguments.seed}: {number} runs of {len(configs)} families")
    for what, count in tally.items():
        print(f"{count:5}  {what}")
    return 1 if tally["FAILED"] else 0


def small_configs(folder: Path) -> dict[str, RunConfig]:
    """A config of each family, on a small data set that is written to ``folder``."""
    sizes = {"height": 16, "width": 16, "frames": 12, "train": 3, "test": 1}
    dancer.write(folder / "pose-data", **sizes)
    robot.write(folder / "robot-data", **sizes, layout="processed", val=1)
    return {
        name: loading.load(words[0], [*words[1:], f"data.root={folder / name}-data"])
        for name, words in FAMILIES.items()
    }


def one_run(
    run: Run,
    config: RunConfig,
    whole: tuple[Run, float],
    kills: int,
    dice: random.Random,
    tally: Counter[str],
) -> None:
    """Train ``run``, kill it ``kills`` times, let it finish, and compare it with ``whole``: a run that was
    never interrupted, and the seconds it took."""
    reference, seconds = whole
    for _ in range(kills):
        inside = dice.random() < 0.4
        child = start(lambda: go_on(run, config))
        if killed(child, run, inside, dice.uniform(0, seconds)):
            tally["kills"] += 1
            tally["kills inside a checkpoint write"] += bool(parts(run))
        else:
            break  # it was faster
    if ended(start(lambda: go_on(run, config))) != 0:
        tally["FAILED"] += 1
        print(f"{run.name}: cannot be resumed")
        return
    tally["runs finished"] += 1
    print(f"{run.name}: finished after {tally['kills']} kills in all", flush=True)
    tally["runs that resumed from a step above zero"] += run.info().get("resumed_at_step", 0) > 0
    found = difference(content(run), content(reference))
    tally["FAILED" if found or parts(run) else "runs equal to an uninterrupted one, bit for bit"] += 1
    if found:
        print(f"{run.name}: differs from an uninterrupted run in {found}")


def go_on(run: Run, config: RunConfig) -> None:
    """Start the run, or resume it."""
    if run.path.exists():
        api.resume(run.path)
    else:
        api.train(config, name=run.name, runs=run.path.parent)


def start(work: Callable[[], object]) -> int:
    """Do ``work`` in a forked process; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(child: int, run: Run, inside: bool, delay: float) -> bool:
    """Kill a process once the run has a checkpoint: after ``delay`` seconds, or inside a checkpoint write.
    False if it ended before."""
    due: float | None = None
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if due is None and saved(run):
            due = time.monotonic() + delay
        if due is not None and (parts(run) if inside else time.monotonic() >= due):
            os.kill(child, signal.SIGKILL)
            return ended(child) == -signal.SIGKILL
        time.sleep(0.0003)
    return False


def saved(run: Run) -> bool:
    return any(run.checkpoint_path(name).is_file() for name in ("last", "previous"))


def parts(run: Run) -> list[Path]:
    """Hidden files of unfinished checkpoint writes."""
    return list((run.path / "checkpoints").glob(".*.part"))


# --- comparing ----------------------------------------------------------------------------------------


def content(run: Run) -> dict[str, Any]:
    """Everything of a run that must be equal."""
    return {
        **{name: checkpoint.load(run.checkpoint_path(name)) for name in ("last", "best")},
        **{name: read_rows(run.path / f"{name}.csv") for name in ("metrics", "steps")},
        "evaluation": api.evaluation(run)["psnr"],
        "status": run.info()["status"],
    }


def difference(a: Any, b: Any, where: str = "") -> str:
    """The first place in which two nested values differ; empty if there is none."""
    if isinstance(a, torch.Tensor):
        return "" if torch.equal(a, b) else where
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return where
        inner = [(key, a[key], b[key]) for key in a if key not in CLOCKS]
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            return where
        inner = [(str(n), *pair) for n, pair in enumerate(zip(a, b, strict=True))]
    else:
        return "" if a == b else where
    return next((found for key, x, y in inner if (found := difference(x, y, f"{where}/{key}"))), "")


if __name__ == "__main__":
    sys.exit(main())
