"""What the schedules say for one training step."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.schema import RunConfig
from ..schedules import beta, forced, learning_rate, tfr


@dataclass(frozen=True)
class Plan:
    """What the schedules say for one step."""

    beta: float
    tfr: float
    forced: list[bool]  # for each time step, whether its input is teacher-forced
    lr: float

    @classmethod
    def at(cls, config: RunConfig, step: int, epoch: int, total_steps: int) -> Plan:
        """The plan of a step of an epoch; the same in every process."""
        K = config.train.window - config.data.n_past
        forcing = config.teacher_forcing
        return cls(
            beta=beta(config.kl, step, epoch, total_steps=total_steps, epochs=config.train.epochs),
            tfr=tfr(forcing, epoch) if forcing else 0.0,
            forced=forced(forcing, config.seed, step, epoch, time_steps=K) if forcing else [False] * K,
            lr=learning_rate(config.optim, step, epoch, total_steps=total_steps),
        )

    @property
    def share(self) -> float:
        """The share of the inputs that are teacher-forced."""
        return sum(self.forced) / len(self.forced)
