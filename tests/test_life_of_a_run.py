"""Training, dying, resuming, validating and deleting in any order end like an undisturbed training."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import pytest
from helpers import QUICK, make_config, write_set
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cvaecli import api, checkpoint
from cvaecli.config.schema import RunConfig
from cvaecli.engine.events import StepEvent
from cvaecli.errors import UserError
from cvaecli.reporter import Silent
from cvaecli.run import Run, read_rows

STEPS = 6


class DiedError(BaseException):
    """The process ends here."""


class Dies(Silent):
    """Ends the training at a step, with a half-written checkpoint beside the good ones."""

    def __init__(self, run: Run, step: int) -> None:
        self._run, self._step = run, step

    def step(self, event: StepEvent) -> None:
        if event.step == self._step:
            (self._run.path / "checkpoints/.last.pt.01234567.part").write_bytes(b"half")
            raise DiedError


@functools.cache
def data() -> Path:
    return write_set(Path(tempfile.mkdtemp()) / "set")


def config() -> RunConfig:
    small = ("train.sampling=windows", "train.save_minutes=1e-9", "eval.sample_strips=false", "eval.frames=2")
    return make_config(f"data.root={data()}", *small, "runtime.threads=1", model=QUICK)


@functools.cache
def whole() -> Run:
    return api.train(config(), name="whole", runs=data().parent)


def rows(run: Run) -> list[dict[str, str]]:
    found = read_rows(run.path / "metrics.csv") + read_rows(run.path / "steps.csv")
    return [{key: row[key] for key in row if key not in ("time", "frames_per_s")} for row in found]


class Life(RuleBasedStateMachine):
    """The life of one run folder."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.run = Run(self.home / "a")

    @property
    def begun(self) -> bool:
        return self.run.path.exists()

    @property
    def resumable(self) -> bool:
        return any(self.run.checkpoint_path(name).exists() for name in ("last", "previous"))

    @rule(step=st.integers(2, STEPS + 1))
    def train(self, step: int) -> None:
        """Start or go on; die at a step, or reach the end if that step is past."""
        dies = Dies(self.run, step)
        if self.begun and not self.resumable:
            with pytest.raises(UserError, match="no checkpoint"):
                api.resume(self.run.path)
            return
        try:
            if self.begun:
                api.resume(self.run.path, reporter=dies)
            else:
                api.train(config(), name="a", runs=self.home, reporter=dies)
        except DiedError:
            assert self.run.info()["status"] == "failed"
        else:
            assert self.run.info()["status"] == "finished"

    @precondition(lambda self: self.begun)
    @rule()
    def validate(self) -> None:
        if self.resumable or self.run.checkpoint_path("best").exists():
            assert api.validate(self.run.path)["psnr"] > 0

    @precondition(lambda self: self.begun)
    @rule(name=st.sampled_from(["last", "best"]), damaged=st.booleans())
    def delete(self, name: str, damaged: bool) -> None:
        """Delete or damage a checkpoint, if another one is there to go on from."""
        path = self.run.checkpoint_path(name)
        if path.exists() and self.run.checkpoint_path("previous").exists():
            path.write_bytes(b"damaged") if damaged and name == "last" else path.unlink()

    @invariant()
    def no_row_is_doubled(self) -> None:
        steps = [int(row["step"]) for row in read_rows(self.run.path / "steps.csv")]
        assert steps == sorted(set(steps))

    def teardown(self) -> None:
        if self.resumable:
            api.resume(self.run.path)
            ends = [checkpoint.load(run.checkpoint_path("last")) for run in (self.run, whole())]
            assert checkpoint.fingerprint(ends[0]) == checkpoint.fingerprint(ends[1])
            assert rows(self.run) == rows(whole())
            assert not list(self.run.path.rglob("*.part"))
        shutil.rmtree(self.home)


def test_any_life_of_a_run() -> None:
    bounds = settings(
        max_examples=6,
        stateful_step_count=6,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Life, settings=bounds)
