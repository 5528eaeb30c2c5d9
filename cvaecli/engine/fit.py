"""The training loop: a generator of events. Whoever runs it logs, draws and saves."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.clip import Clip
from ..errors import CvaeError
from ..models.base import Step, VideoCVAE
from ..objective import reconstruction, total_kl
from ..schedules import beta, forced, learning_rate, tfr
from ..schema import RunConfig
from ..seeding import stream
from .averaging import WeightAverage, interpolate
from .batches import Batch, Frames, Sampler, batches
from .device import Device
from .evaluate import Progress, evaluate
from .scores import Evaluation
from .unroll import unroll

TERMS = ("loss", "recon", "kl", "grad_norm")
"""What is measured at every step. ``loss = recon + beta * weight * kl`` is per frame whatever the
reductions; kl is in nats per frame; grad_norm is before clipping."""


@dataclass(frozen=True)
class StepEvent:
    """One optimiser step is done.

    ``terms`` holds the means over the steps since the last report, None between two reports.
    """

    step: int  # steps done in all
    epoch: int
    step_in_epoch: int  # steps done in this epoch
    steps_in_epoch: int
    beta: float
    tfr: float
    forced: float  # share of this step's inputs that were teacher-forced
    lr: float
    terms: dict[str, float] | None
    frames_per_s: float | None  # predicted frames per second since the last report


@dataclass(frozen=True)
class EpochEvent:
    """An epoch is over (or cut short by a stop): the row of ``metrics.csv`` and its validation."""

    epoch: int
    complete: bool
    row: dict[str, float | int | None]
    evaluation: Evaluation | None
    best: bool  # the best validation so far


Event = StepEvent | EpochEvent


class Trainer:
    """Everything that training changes, and the loop that changes it.

    Args:
        model: freshly built, on the CPU.
        train: training clips; ``val``: clips of the free-running validation.
    """

    def __init__(
        self, model: VideoCVAE, config: RunConfig, device: Device, train: Sequence[Clip], val: Sequence[Clip]
    ) -> None:
        self.config, self.device, self._val = config, device, list(val)[: config.eval.clips]
        self.model = device.place(model)
        self.initial = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
        self.average = WeightAverage(self.model, config.train.ema) if config.train.ema else None
        self.optimizer = _optimizer(self.model, config)
        self.sampler = Sampler(
            [clip.n_frames for clip in train],
            config.train,
            model.sampling,
            config.seed,
            config.data.partial,
            config.data.n_past,
        )
        self.frames = Frames(train, device)
        self.step = self.epoch = self.step_in_epoch = 0
        self.seconds = 0.0  # of training, all sessions of the run together
        self.best_psnr: float | None = None
        # Whom to tell how far a validation has come; it may raise to break it off.
        self.on_validation: Progress | None = None
        self._sums = torch.zeros(len(TERMS), dtype=torch.float64)  # over this epoch's reported steps
        self._forced_sum = 0.0
        self._blended = False  # this epoch's weights are interpolated already
        self._pending: list[Tensor] = []  # terms of the steps not yet reported, on the device
        if config.runtime.compile == "on":
            for name in ("encode", "step", "unroll"):
                setattr(self.model, name, torch.compile(getattr(self.model, name)))

    @functools.cached_property
    def total_steps(self) -> int:
        """Steps of all epochs, the length that schedules refer to; stops do not change it."""
        return sum(self.sampler.steps(epoch) for epoch in range(self.config.train.epochs))

    @property
    def trained(self) -> VideoCVAE:
        """The model that is evaluated and kept: the weight average where there is one."""
        return self.average.model if self.average else self.model

    @property
    def finished(self) -> bool:
        """All epochs are done, or a configured stop is reached."""
        return self.epoch >= self.config.train.epochs or self._stopped()

    def _stopped(self) -> bool:
        train = self.config.train
        out_of_steps = train.max_steps is not None and self.step >= train.max_steps
        return out_of_steps or (train.max_minutes is not None and self.seconds >= 60 * train.max_minutes)

    # --- the loop ---------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Train until finished. Between two events the state is whole: ``state_dict`` may be taken.

        Raises:
            CvaeError: the loss is not finite; nothing of the broken steps was reported.
        """
        while not self.finished:
            yield from self._epoch_steps()
            yield self._end_epoch()

    def _epoch_steps(self) -> Iterator[StepEvent]:
        self.model.train()
        train, steps = self.config.train, self.sampler.steps(self.epoch)
        last_report, clock = self.step, time.perf_counter()
        source = batches(self.frames, self.sampler, train, self.config.seed, self.epoch, self.step_in_epoch)
        for batch in source:
            began = time.perf_counter()
            plan = self._plan()
            self._pending.append(self._train_step(batch, plan))
            self.step += 1
            self.step_in_epoch += 1
            self._forced_sum += plan.share
            terms = rate = None
            if self.step % train.log_every == 0 or self.step_in_epoch == steps or self.step == 1:
                terms = self._report()
                now = time.perf_counter()
                frames = (self.step - last_report) * batch.frames.shape[0] * len(plan.forced)
                rate, last_report, clock = frames / (now - clock), self.step, now
            self.seconds += time.perf_counter() - began
            yield StepEvent(
                self.step,
                self.epoch,
                self.step_in_epoch,
                steps,
                plan.beta,
                plan.tfr,
                plan.share,
                plan.lr,
                terms,
                rate,
            )
            if self._stopped():
                return

    def _end_epoch(self) -> EpochEvent:
        train, epoch = self.config.train, self.epoch
        complete = self.step_in_epoch >= self.sampler.steps(epoch)
        due = complete and train.interpolate_every and (epoch + 1) % train.interpolate_every == 0
        if due and not self._blended:
            interpolate(self.model, self.initial)
            self._blended = True
        row = self._row()
        last = self._stopped() or (complete and epoch + 1 == train.epochs)
        every = self.config.eval.every
        evaluation, best = None, False
        if self._val and (last or (every and (epoch + 1) % every == 0)):
            evaluation = self.evaluate()
            best = self._add_validation(row, evaluation)
        # Only now: whoever breaks a validation off finds the state of an epoch whose end is still to come.
        if complete:
            self.epoch, self.step_in_epoch, self._forced_sum = epoch + 1, 0, 0.0
            self._sums.zero_()
            self._blended = False
        return EpochEvent(epoch, complete, row, evaluation, best)

    def _row(self) -> dict[str, float | int | None]:
        plan = self._plan_at(self.step - 1)
        means = (self._sums + self._fetch().sum(0)) / max(self.step_in_epoch, 1)
        row: dict[str, float | int | None] = {
            "epoch": self.epoch,
            "step": self.step,
            "time": round(self.seconds, 2),
        }
        row["lr"] = plan.lr
        row |= {f"train/{name}": float(value) for name, value in zip(TERMS, means, strict=True)}
        row |= {"beta": plan.beta, "tfr": plan.tfr, "forced": self._forced_sum / max(self.step_in_epoch, 1)}
        return row

    def evaluate(self) -> Evaluation:
        """Free-running validation of the weights that are kept, as ``config.eval`` says."""
        config = self.config
        limits = [n for n in (config.data.n_future, config.eval.frames) if n is not None]
        return evaluate(
            self.trained,
            self._val,
            self.device,
            config.eval,
            n_past=config.data.n_past,
            n_future=min(limits) if limits else None,
            seed=config.seed,
            recon=config.train.recon,
            progress=self.on_validation,
        )

    def _add_validation(self, row: dict[str, float | int | None], evaluation: Evaluation) -> bool:
        """Put a validation's numbers into an epoch's row; True where it is the best so far."""
        summary = evaluation.summary()
        weight = (row["beta"] or 0.0) * self.config.kl.weight * self._kl_scale()
        row["val/loss"] = summary["recon"] + weight * summary["kl"]
        for name in ("recon", "kl", "psnr", "psnr_one_step", "psnr_posterior"):
            row[f"val/{name}"] = summary[name]
        # A rollout that ran off to NaN is never the best: no later one would be greater.
        best = bool(summary["psnr"] > (-math.inf if self.best_psnr is None else self.best_psnr))
        if best:
            self.best_psnr = summary["psnr"]
        return best

    # --- one step ---------------------------------------------------------------------------------

    def _plan_at(self, step: int) -> Plan:
        config = self.config
        K = config.train.window - config.data.n_past
        forcing = config.teacher_forcing
        return Plan(
            beta=beta(config.kl, step, self.epoch, total_steps=self.total_steps, epochs=config.train.epochs),
            tfr=tfr(forcing, self.epoch) if forcing else 0.0,
            forced=forced(forcing, config.seed, step, self.epoch, time_steps=K) if forcing else [False] * K,
            lr=learning_rate(config.optim, step, self.epoch, total_steps=self.total_steps),
        )

    def _plan(self) -> Plan:
        plan = self._plan_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.lr
        return plan

    def _train_step(self, batch: Batch, plan: Plan) -> Tensor:
        """One optimiser step; returns ``TERMS`` on the device, not waited for."""
        B = len(batch.frames)
        told = B - round(B * self.config.train.prior_share)  # rows whose z comes from the posterior
        with self.device.autocast():
            steps = self._predict(Batch(*(part[:told] for part in batch)), plan)
            x_hat = steps.x_hat
            if told < B:
                others = self._predict(Batch(*(part[told:] for part in batch)), plan, posterior=False)
                x_hat = torch.cat((x_hat, others.x_hat))
        # The last frames: those to predict, and past ones where the model predicts these too.
        targets = batch.frames[:, -x_hat.shape[1] :]
        recon = reconstruction(x_hat, targets, self.config.train.recon).mean(0)  # (K,)
        kl = total_kl(steps)  # (told, K) nats
        weight = plan.beta * self.config.kl.weight * self._kl_scale()
        per_step = recon + weight * kl.clamp(min=self.config.kl.free_bits).mean(0)  # (K,)
        loss = per_step.sum() if self.config.train.time_reduction == "sum" else per_step.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        limit = self.config.train.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), float("inf") if limit is None else limit, foreach=True
        )
        self.optimizer.step()
        if self.average:
            self.average.update(self.model, self.step)
        return torch.stack([per_step.mean(), recon.mean(), kl.mean(), norm]).detach()

    def _predict(self, batch: Batch, plan: Plan, posterior: bool = True) -> Step:
        """The predicted frames of a batch; see ``unroll.unroll``."""
        purpose = "z" if posterior else "z from the prior"
        generator = stream(self.config.seed, purpose, self.step, device=self.device.torch)
        P, forcing = self.config.data.n_past, self.config.teacher_forcing
        return unroll(self.model, batch, P, forcing, plan.forced, plan.tfr, generator, posterior)

    def _kl_scale(self) -> float:
        """1 for the sum over latent dimensions, 1 / their number for the mean."""
        if self.config.kl.reduction == "sum":
            return 1.0
        shapes = self.model.noise_shapes((self.config.data.height, self.config.data.width))
        return 1.0 / sum(torch.Size(shape).numel() for shape in shapes)

    # --- reports and state ------------------------------------------------------------------------

    def _report(self) -> dict[str, float] | None:
        """The means of the pending terms, which are added to the epoch's sums."""
        if not self._pending:
            return None
        values = self._fetch()
        self._pending.clear()
        self._sums += values.sum(0)
        return dict(zip(TERMS, values.mean(0).tolist(), strict=True))

    def _fetch(self) -> Tensor:
        """The pending terms ``[n, len(TERMS)]`` from the device; they stay pending.

        Raises:
            CvaeError: a term is not finite; names the step and the term.
        """
        if not self._pending:
            return torch.zeros(0, len(TERMS), dtype=torch.float64)
        values = torch.stack(self._pending).double().cpu()
        if not values.isfinite().all():
            row = int((~values.isfinite()).any(1).nonzero()[0])
            self._raise_not_finite(self.step - len(values) + row, values[row])
        return values

    def _raise_not_finite(self, step: int, values: Tensor) -> None:
        term = next(
            name for name in ("recon", "kl", "loss", "grad_norm") if not values[TERMS.index(name)].isfinite()
        )
        hints = {
            "recon": "the prediction blew up: lower optim.lr or train.grad_clip, or use a sigmoid output",
            "kl": "the posterior's variance blew up: set model.logvar_clamp, lower optim.lr or kl.weight",
            "loss": "lower kl.weight or optim.lr",
            "grad_norm": "the gradient blew up: lower optim.lr, or set teacher_forcing.detach=on",
        }
        raise CvaeError(
            f"training stopped at step {step + 1} (epoch {self.epoch}): "
            f"{term} is {float(values[TERMS.index(term)])}",
            hints[term] + "; the last checkpoint, if there is one, is good",
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on bit for bit: tensors and numbers only."""
        state: dict[str, Any] = {
            # Not summed up yet: saving must not change what the next row of steps.csv is a mean of.
            "pending": self._fetch(),
            "step": self.step,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "seconds": self.seconds,
            "best_psnr": self.best_psnr,
            "sums": self._sums.clone(),
            "forced_sum": self._forced_sum,
            "blended": self._blended,
            "optimizer": self.optimizer.state_dict(),
            "weights": self.model.state_dict(),
        }
        if self.config.train.interpolate_every:
            state["initial"] = self.initial
        return state

    def load_state_dict(self, state: dict[str, Any], averaged: dict[str, Tensor]) -> None:
        """Continue from ``state_dict()``; ``averaged`` are the kept weights of the same moment."""
        self.model.load_state_dict(state["weights"])
        if self.average:
            self.average.model.load_state_dict(averaged)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.epoch, self.step_in_epoch = state["step"], state["epoch"], state["step_in_epoch"]
        self.seconds, self.best_psnr = state["seconds"], state["best_psnr"]
        self._sums, self._forced_sum = state["sums"].clone(), state["forced_sum"]
        self._blended = state["blended"]
        self._pending = list(state["pending"].to(self.device.torch, torch.float32))
        self.initial = state.get("initial", self.initial)


@dataclass(frozen=True)
class Plan:
    """What the schedules say for one step."""

    beta: float
    tfr: float
    forced: list[bool]  # for each time step, whether its input is teacher-forced
    lr: float

    @property
    def share(self) -> float:
        return sum(self.forced) / len(self.forced)


def _optimizer(model: VideoCVAE, config: RunConfig) -> torch.optim.Optimizer:
    optim, parameters = config.optim, model.parameters()
    if optim.name == "sgd":
        return torch.optim.SGD(
            parameters, optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
        )
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(parameters, optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True)
