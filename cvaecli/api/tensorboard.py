"""TensorBoard files in ``RUN/tensorboard``, from the events that also make metrics.csv and steps.csv."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from ..config.schema import RunConfig
from ..engine.events import Event, StepEvent
from ..engine.fit import Trainer
from ..errors import UserError
from ..run import Run


def require(config: RunConfig) -> None:
    """Refuse ``train.tensorboard`` if the package is not installed, before anything is trained.

    Raises:
        UserError: it is requested and not installed.
    """
    if config.train.tensorboard and find_spec("tensorboard") is None:
        raise UserError("train.tensorboard: tensorboard is not installed", 'pip install -e ".[tensorboard]"')


@contextmanager
def opened(run: Run, trainer: Trainer) -> Iterator[Callable[[Event], None]]:
    """A function that writes an event; it does nothing if ``train.tensorboard`` is false.

    A resumed run hides the old points of the steps that it repeats.
    """
    if not (trainer.config.train.tensorboard and trainer.world.leads):
        yield lambda event: None
        return
    from torch.utils.tensorboard import SummaryWriter

    purge = trainer.step + 1 if trainer.step else None
    with SummaryWriter(str(run.path / "tensorboard"), purge_step=purge) as writer:

        def write(event: Event) -> None:
            for name, value in _points(event):
                writer.add_scalar(name, value, event_step(event))
            writer.flush()  # before the checkpoint that a resumed run starts from

        yield write


def event_step(event: Event) -> int:
    """Optimiser steps done at the event: TensorBoard's x axis."""
    return event.step if isinstance(event, StepEvent) else int(event.row["step"] or 0)


def _points(event: Event) -> Iterator[tuple[str, float]]:
    """(name, value): columns of steps.csv as ``step/...``, those of metrics.csv under their own names."""
    kind = "step" if isinstance(event, StepEvent) else "epoch"
    for name, value in (event.row or {}).items():
        if value is not None and name not in ("epoch", "step", "time"):
            yield name if "/" in name else f"{kind}/{name}", value
