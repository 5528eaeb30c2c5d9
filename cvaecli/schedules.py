"""Schedules over a training: beta, the teacher-forcing ratio, the learning rate.

All are pure functions of the step and the epoch (both counted from 0), so that a resumed run, a plot and a
test see the same numbers as the training loop. Nothing here needs PyTorch.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from .config.schema import KLConfig, OptimConfig, RunConfig, TeacherForcingConfig


@dataclass(frozen=True)
class Scheduled:
    """The scheduled values of one step.

    Attributes:
        beta: KL weight, without the constant ``kl.weight``.
        tfr: teacher-forcing ratio; 0 for a model without teacher forcing.
        lr: learning rate.
    """

    beta: float
    tfr: float
    lr: float

    @classmethod
    def at(cls, config: RunConfig, step: int, epoch: int, total_steps: int) -> Scheduled:
        """The values at this step and epoch of a training of ``total_steps`` steps."""
        return cls(
            beta=beta(config.kl, step, epoch, total_steps=total_steps, epochs=config.train.epochs),
            tfr=tfr(config.teacher_forcing, epoch) if config.teacher_forcing else 0.0,
            lr=learning_rate(config.optim, step, epoch, total_steps=total_steps),
        )


def beta(kl: KLConfig, step: int, epoch: int, *, total_steps: int, epochs: int) -> float:
    """KL weight at a step of an epoch, without the constant ``kl.weight`` (Fu et al. 2019, section 3).

    With T units (steps or epochs) in total and M cycles of length P = T / M, tau = (t mod P) / P:
    ``start + (stop - start) * ramp(min(tau / ratio, 1))``. Monotonic is one cycle that never restarts.
    tau stays below 1, so at ratio 1 the last unit of a cycle is one short of ``stop``.
    """
    if kl.values is not None:
        return _listed(kl.values, kl.repeat_from, epoch)
    if kl.schedule == "none":
        return kl.stop
    t, total = (float(epoch), epochs) if kl.unit == "epoch" else (float(step), total_steps)
    cyclical = kl.schedule == "cyclical"
    period = kl.period or total / (kl.cycles if cyclical else 1)
    if cyclical:
        # fmod of whole units is exact where the period is whole; (t / P) mod 1 would round the first unit of
        # some cycles to 0.999...
        t = math.fmod(t, period)
        t = 0.0 if math.isclose(t, period) else t
    r = _ramp(kl.ramp, min(t / period / kl.ratio, 1.0))
    return (1 - r) * kl.start + r * kl.stop  # exact at both ends


def _listed(values: list[float], repeat_from: int | None, epoch: int) -> float:
    if epoch < len(values):
        return values[epoch]
    if repeat_from is None:
        return values[-1]
    return values[repeat_from + (epoch - len(values)) % (len(values) - repeat_from)]


def _ramp(shape: str, x: float) -> float:
    """A ramp from exactly 0 at x = 0 to exactly 1 at x = 1."""
    if shape == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * x))
    if shape == "sigmoid":
        # Logistic over [-6, 6], stretched so that both ends are reached.
        low, high = 1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6))
        return (1 / (1 + math.exp(-12 * (x - 0.5))) - low) / (high - low)
    return x


def tfr(forcing: TeacherForcingConfig, epoch: int) -> float:
    """Teacher-forcing ratio of an epoch.

    From ``decay_start`` on the ratio falls by ``decay`` at every epoch that is a multiple of ``every``,
    never below ``floor``; a ratio that starts below the floor does not change. Epoch 0 always has the
    initial ratio.
    """
    falls, first = 0, max(forcing.decay_start, 1)
    if epoch >= first:
        falls = epoch // forcing.every - math.ceil(first / forcing.every) + 1
    lowest = min(forcing.floor, forcing.ratio)
    # Rounded, so that 1.0 - 10 * 0.1 is 0 and not 1e-16.
    return max(round(forcing.ratio - falls * forcing.decay, 10), lowest)


def learning_rate(optim: OptimConfig, step: int, epoch: int, *, total_steps: int) -> float:
    """Learning rate of a step: linear warm-up times constant, MultiStep, cosine or polynomial decay.

    Cosine (Loshchilov & Hutter 2017, without restarts) and polynomial, ``(1 - t) ** power``, run from ``lr``
    after the warm-up to ``min_lr`` at the last step.
    """
    warm = min((step + 1) / (optim.warmup_steps + 1), 1.0)
    if optim.schedule == "multistep":
        falls = bisect.bisect_right(sorted(optim.milestones), epoch)
        return warm * optim.lr * optim.gamma**falls
    if optim.schedule in ("cosine", "polynomial"):
        span = max(total_steps - 1 - optim.warmup_steps, 1)
        progress = min(max(step - optim.warmup_steps, 0) / span, 1.0)
        cosine = optim.schedule == "cosine"
        height = 1.0 - _ramp("cosine", progress) if cosine else (1.0 - progress) ** optim.power
        return warm * (optim.min_lr + (optim.lr - optim.min_lr) * height)
    return warm * optim.lr
