"""A step that is not finite changes nothing, is counted, and ends the training if there are too many."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import QUICK, make_config, make_trainer, write_set

from cvaecli import api, checkpoint
from cvaecli.engine import fit
from cvaecli.engine.batches import Batch
from cvaecli.engine.events import EpochEvent, StepEvent
from cvaecli.engine.fit import Trainer
from cvaecli.engine.loss import TermRecord
from cvaecli.engine.skipping import NoFiniteStepError, NotFiniteError
from cvaecli.run import Run, read_rows
from cvaecli.terms import TRAIN_TERMS

EVERY_STEP = {"log_every": 1, "epochs": 1, "batch_size": 1}


def poisoned(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the pictures of these steps NaN, so that every loss, gradient and batch statistic is."""
    whole = trainer._batches

    def some() -> Iterator[Batch]:
        for batch in whole():
            bad = trainer.step in steps
            yield batch._replace(frames=batch.frames * math.nan) if bad else batch

    monkeypatch.setattr(trainer, "_batches", some)


def state(trainer: Trainer) -> dict[str, Any]:
    """A copy of weights, statistics and moments."""
    moments = trainer.optimizer.state_dict()["state"]
    return copy.deepcopy({**trainer.model.state_dict(), "moments": moments})


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b)


@pytest.mark.usefixtures("small_matrices")
@pytest.mark.parametrize("name", ["adam", "adamw", "muon", "sgd"])
def test_a_step_that_is_not_finite_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step too, for which an optimiser has no moments yet. This model has batch norm."""
    trainer = make_trainer(make_config(optim={"name": name}, train=EVERY_STEP))
    poisoned(trainer, monkeypatch, 0, 2)
    states = [state(trainer)]
    lines: list[str] = []
    for event in trainer.events():
        if isinstance(event, StepEvent):
            states.append(state(trainer))
            lines += event.skips
            assert (event.terms is None) == bool(event.skips) == (event.step in (1, 3))
        else:
            assert all(math.isfinite(event.row[f"train/{term}"] or 0) for term in ("loss", "grad_norm"))
    weights = [{key: value for key, value in each.items() if key != "moments"} for each in states]
    assert equal(weights[0], weights[1]) and equal(states[2], states[3])
    assert not equal(weights[1], weights[2]) and not equal(states[3], states[4])
    assert all(value.isfinite().all() for value in weights[-1].values())
    assert trainer.skipped == 2 and len(lines) == 2
    assert lines[0].startswith("step 1 (epoch 0): recon is nan; the step was skipped (1 of at most 10)")


def test_without_the_skipped_step_the_means_are_those_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(make_config(train={**EVERY_STEP, "log_every": 3}))
    poisoned(trainer, monkeypatch, 1, 3)
    events = list(trainer.events())
    (row,) = (event.row for event in events if isinstance(event, EpochEvent))
    reports = [event.terms for event in events if isinstance(event, StepEvent) and event.terms]
    counts = [1, 1, 0]  # finite steps behind the reports of steps 1, 3 and 4
    assert len(reports) == 2 and trainer.step == 4
    mean = sum(n * terms["recon"] for n, terms in zip(counts, reports, strict=False)) / 2
    assert row["train/recon"] == pytest.approx(mean)


def test_an_epoch_without_a_finite_step_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(make_config(train=EVERY_STEP))
    poisoned(trainer, monkeypatch, *range(9))
    with pytest.raises(NoFiniteStepError, match="no step of epoch 0 was finite: recon is nan"):
        list(trainer.events())
    assert trainer.skipped == 4


def test_too_many_skips_stop_the_training_at_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        *(f"data.root={write_set(tmp_path / 'set')}", "train.max_skips=2", "train.log_every=1"),
        *("train.sampling=windows", "train.batch_size=1"),
        model=QUICK,
    )
    usual = fit.kl_factor
    run = Run(tmp_path / "a")
    monkeypatch.setattr(
        fit,
        "kl_factor",
        lambda *given: math.inf if len(read_rows(run.path / "steps.csv")) >= 3 else usual(*given),
    )
    with pytest.raises(NotFiniteError) as caught:
        api.train(config, name="a", runs=tmp_path)
    assert "training stopped at step 6 (epoch 1): loss is" in caught.value.message
    assert "train.init=" in caught.value.hint and caught.value.exit_code == 1
    assert run.info()["status"] == "failed" and run.info()["skipped_steps"] == 2
    last = checkpoint.load(run.checkpoint_path("last"))
    assert last["step"] >= 5 and all(value.isfinite().all() for value in last["model"].values())
    monkeypatch.setattr(fit, "kl_factor", usual)
    api.resume("a", ["train.max_skips=5"], runs=tmp_path)
    assert run.info()["status"] == "finished"
    assert len(read_rows(run.path / "metrics.csv")) == 2


def test_steps_that_stopped_a_training_are_counted_once_when_it_goes_on() -> None:
    good, bad = torch.ones(len(TRAIN_TERMS)), torch.full((len(TRAIN_TERMS),), math.nan)
    record = TermRecord(torch.device("cpu"), max_skips=2)
    for values in (good, bad, bad, bad, good):
        record.add(values)
    with pytest.raises(NotFiniteError, match=r"stopped at step 4 .* more than 2 steps"):
        record.report(5, 0)
    resumed = TermRecord(torch.device("cpu"), max_skips=5)
    resumed.load_state_dict(record.state_dict())
    for _ in range(5):
        resumed.add(good)
    assert resumed.report(10, 0) == dict.fromkeys(TRAIN_TERMS, 1.0)
    assert resumed.skipped == 3 and resumed.new_skips()[-1].startswith("step 4 (epoch 0)")
    assert resumed.means(10, 0) == dict.fromkeys(TRAIN_TERMS, 1.0)


def test_a_weight_that_overflows_is_not_saved() -> None:
    trainer = make_trainer(make_config(train=EVERY_STEP))
    next(trainer.events())
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.inf)
    with pytest.raises(NotFiniteError, match="a weight is not finite"):
        trainer.state_dict()
