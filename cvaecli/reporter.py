"""How a long task reports its progress: to a ``Reporter``, which is ``Silent`` by default."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .engine.events import EpochEvent, StepEvent


class Advance(Protocol):
    """``advance(done, total)``: how much of a task is done."""

    def __call__(self, done: int, total: int) -> None: ...


class Reporter(Protocol):
    """What the functions of ``api`` call while they work."""

    def note(self, text: str) -> None:
        """A line worth knowing."""

    def warn(self, text: str) -> None:
        """A line worth acting on."""

    def data_source(self, source: str) -> None:
        """Name the data set, before anything is computed from it."""

    def task(self, description: str) -> AbstractContextManager[Advance]:
        """A progress bar for the duration of the context."""

    def training(self, epochs: int) -> AbstractContextManager[Any]:
        """The bars of a training for the duration of the context."""

    def step(self, event: StepEvent) -> None:
        """A training step is done."""

    def validating(self, done: int, total: int) -> None:
        """Progress of a validation during training."""

    def epoch(self, event: EpochEvent) -> None:
        """A training epoch is done."""


class Silent:
    """A reporter that does nothing; also a base class for reporters that need only a few methods."""

    def note(self, text: str) -> None:
        """See ``Reporter``."""

    def warn(self, text: str) -> None:
        """See ``Reporter``."""

    def data_source(self, source: str) -> None:
        """See ``Reporter``."""

    def task(self, description: str) -> AbstractContextManager[Advance]:
        """See ``Reporter``."""
        return nullcontext(lambda done, total: None)

    def training(self, epochs: int) -> AbstractContextManager[Any]:
        """See ``Reporter``."""
        return nullcontext()

    def step(self, event: StepEvent) -> None:
        """See ``Reporter``."""

    def validating(self, done: int, total: int) -> None:
        """See ``Reporter``."""

    def epoch(self, event: EpochEvent) -> None:
        """See ``Reporter``."""
