"""What a training reports: its steps and epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .scores import Evaluation


@dataclass(frozen=True)
class StepEvent:
    """One optimiser step is done.

    ``terms`` holds the means over the steps since the last report, None between two reports. ``skips`` has a
    line for each of these steps that was skipped because a term was not finite.
    """

    step: int  # steps done since training began
    epoch: int
    step_in_epoch: int  # steps done in this epoch
    steps_in_epoch: int
    beta: float
    tfr: float
    forced: float  # share of this step's inputs that were teacher-forced
    lr: float
    terms: dict[str, float] | None
    frames_per_s: float | None  # predicted frames per second of training since the last report
    skips: Sequence[str] = ()

    @property
    def row(self) -> dict[str, float | int | None] | None:
        """The row of ``steps.csv``; None between two reports."""
        if self.terms is None:
            return None
        names = ("beta", "tfr", "forced", "lr", "frames_per_s")
        return {"step": self.step, "epoch": self.epoch, **self.terms, **{n: getattr(self, n) for n in names}}


@dataclass(frozen=True)
class EpochEvent:
    """An epoch is over (or cut short by a stop): the row of ``metrics.csv`` and its validation."""

    epoch: int
    complete: bool
    row: dict[str, float | int | None]
    evaluation: Evaluation | None
    best: bool  # the best validation so far
    last: bool  # nothing is left to train


Event = StepEvent | EpochEvent
