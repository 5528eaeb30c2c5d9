"""The training loop: a generator of events. Whoever runs it logs, draws and saves."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config.schema import RunConfig
from ..data.clip import Clip
from ..models.base import VideoCVAE
from ..terms import VAL_TERMS
from .augment import check_augmentation
from .averaging import WeightAverage, interpolate
from .batches import Batch, Frames, Sampler, batches
from .device import Device
from .distributed import ALONE, World
from .evaluate import Progress, evaluate, share, together
from .graph import Replayed
from .loss import Loss, Part, kl_factor, kl_scale
from .optimizer import load_state, make_optimizer, set_lr
from .plan import Plan
from .scores import Evaluation
from .split import Split
from .terms import NotFiniteError, Terms

PACE = 1.0
"""Seconds between two agreements of several processes within an epoch."""


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
        world: the processes that share the training. All hold the same weights and go through the same
            events at the same steps; the others' clocks, validations and ``best_psnr`` do not count.

    Raises:
        UserError: the batches cannot be drawn from these clips, augmented, or divided as the config says.
    """

    def __init__(
        self,
        model: VideoCVAE,
        config: RunConfig,
        device: Device,
        train: Sequence[Clip],
        val: Sequence[Clip],
        world: World = ALONE,
    ) -> None:
        self.config, self.device, self._val = config, device, list(val)[: config.eval.clips]
        self.world, self._split = world, Split.of(config.train, world.rank, world.size)
        self.model = device.place(model)
        self.initial = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
        self.average = WeightAverage(self.model, config.train.ema) if config.train.ema else None
        check_augmentation(config.train.augment, train)
        self.sampler = Sampler(
            [clip.n_frames for clip in train],
            config.train,
            config.train.sampling or model.sampling,
            config.seed,
            config.data.partial,
            config.data.n_past,
        )
        self.frames = Frames(train, device)
        self.step = self.epoch = self.step_in_epoch = 0
        self.best_psnr: float | None = None
        self.on_validation: Progress | None = None  # whom to tell how far a validation has come
        # Asked between steps and in validations: anything but 0 breaks the training off.
        self.asked: Callable[[], int] = lambda: 0
        self.interrupted = 0  # what the one who broke it off answered
        self._agreed_seconds, self._lap = 0.0, 0.0  # of training: known to all, and since then
        self._agree_at, self._agreed = 0, (0, time.perf_counter())  # the next step to agree after; the last
        self._terms = Terms(device.torch)
        self._forced_sum = 0.0
        self._blended = False  # this epoch's weights are interpolated already
        self._kl_scale = kl_scale(config, model, train[0].frames.shape[1:])
        self._loss = Loss(self.model, config, device, self._split, self.total_steps)
        self._shared_loss = world.wrap(self._loss)
        self._graphs = config.runtime.graphs and device.torch.type == "cuda" and world.size == 1
        self.optimizer = make_optimizer(self.model, config, self._graphs)
        self._replayed = Replayed(self._update)

    @functools.cached_property
    def total_steps(self) -> int:
        """Steps of all epochs, the length that schedules refer to; stops do not change it."""
        return sum(self.sampler.steps(epoch) for epoch in range(self.config.train.epochs))

    @property
    def prior_share(self) -> float:
        """The share of each batch that draws z from the prior: ``train.prior_share`` in whole rows."""
        return self._split.prior_share

    @property
    def trained(self) -> VideoCVAE:
        """The model that is evaluated and kept: the weight average where there is one."""
        return self.average.model if self.average else self.model

    @property
    def finished(self) -> bool:
        """All epochs are done, or a configured stop is reached."""
        return self.epoch >= self.config.train.epochs or self._stopped()

    @property
    def seconds(self) -> float:
        """Of training, all sessions of the run together."""
        return self._agreed_seconds + self._lap

    def _stopped(self) -> bool:
        train = self.config.train
        out_of_steps = train.max_steps is not None and self.step >= train.max_steps
        late = train.max_minutes is not None and self._agreed_seconds >= 60 * train.max_minutes
        return out_of_steps or late

    # --- the loop ---------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Train until finished or ``interrupted``. Between two events the state is whole:
        ``state_dict`` may be taken.

        Raises:
            CvaeError: the loss is not finite; nothing of the broken steps was reported.
        """
        try:
            while not (self.finished or self.interrupted):
                yield from self._epoch_steps()
                event = None if self.interrupted else self._end_epoch()
                if event is not None:
                    yield event
                    self._agree()
        except NotFiniteError as error:
            raise self.world.told_once(error) from None

    def _agree(self) -> None:
        """What no process may decide by itself: the time that counts, and whether to break off."""
        (step, when), now = self._agreed, time.perf_counter()
        pace = (self.step - step) * PACE / max(now - when, 1e-9)  # steps
        lap, asked, slowest = self.world.greatest(self._lap, self.asked(), -pace)
        self._agreed_seconds, self._lap = self._agreed_seconds + lap, 0.0
        self._agree_at, self._agreed = self.step + max(1, int(-slowest)), (self.step, now)
        if not self.finished:
            self.interrupted = int(asked)

    def _epoch_steps(self) -> Iterator[StepEvent]:
        self.model.train()
        train, steps = self.config.train, self.sampler.steps(self.epoch)
        last_report, clock = self.step, time.perf_counter()
        source = batches(
            self.frames,
            self.sampler,
            train,
            self.config.seed,
            self.epoch,
            self.step_in_epoch,
            self._split.mine.numbers if self.world.size > 1 else None,
        )
        for batch in source:
            began = time.perf_counter()
            plan = self._plan()
            self._terms.add(self._train_step(batch, plan))
            self.step += 1
            self.step_in_epoch += 1
            self._forced_sum += plan.share
            terms = rate = None
            if self.step % train.log_every == 0 or self.step_in_epoch == steps or self.step == 1:
                terms = self._terms.report(self.step, self.epoch)
                now = time.perf_counter()
                frames = (self.step - last_report) * train.batch_size * len(plan.forced)
                rate, last_report, clock = frames / (now - clock), self.step, now
            self._lap += time.perf_counter() - began
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
            if self.world.size == 1 or self.step >= self._agree_at:
                self._agree()
            if self._stopped() or self.interrupted:
                return

    def _end_epoch(self) -> EpochEvent | None:
        """The end of an epoch, None where its validation was broken off: then it is still to come."""
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
            if self.interrupted:
                return None
            best = evaluation is not None and self._add_validation(row, evaluation)
        if complete:
            self.epoch, self.step_in_epoch, self._forced_sum = epoch + 1, 0, 0.0
            self._terms.clear()
            self._blended = False
        return EpochEvent(epoch, complete, row, evaluation, best)

    def _row(self) -> dict[str, float | int | None]:
        plan = self._plan_at(self.step - 1)
        means = self._terms.means(self.step, self.epoch, self.step_in_epoch)
        row: dict[str, float | int | None] = {
            "epoch": self.epoch,
            "step": self.step,
            "time": round(self.seconds, 2),
        }
        row["lr"] = plan.lr
        row |= {f"train/{name}": value for name, value in means.items()}
        row |= {"beta": plan.beta, "tfr": plan.tfr, "forced": self._forced_sum / max(self.step_in_epoch, 1)}
        return row

    def evaluate(self) -> Evaluation | None:
        """Free-running validation of the weights that are kept, as ``config.eval`` says.

        Returns:
            None where it was broken off (then all are ``interrupted``), and in all processes but the first.
        """
        config, mine = self.config, Evaluation([])
        limits = [n for n in (config.data.n_future, config.eval.frames) if n is not None]
        with contextlib.suppress(_BrokenOffError):
            mine = evaluate(
                self.trained,
                share(self._val, config.data.n_past, self.world),
                self.device,
                config.eval,
                n_past=config.data.n_past,
                n_future=min(limits) if limits else None,
                seed=config.seed,
                recon=config.train.recon,
                progress=self._validating,
            )
        self.interrupted = int(self.world.greatest(self.asked())[0])
        return None if self.interrupted else together(mine, self.world)

    def _protocol(self) -> dict[str, int | str | None]:
        """The settings that a validation's PSNR depends on and that a resumed run may change."""
        return self.config.eval.model_dump(include={"frames", "clips", "samples", "prior"})

    def _validating(self, done: int, total: int) -> None:
        if self.on_validation is not None:
            self.on_validation(done, total)
        if self.asked():
            raise _BrokenOffError

    def _add_validation(self, row: dict[str, float | int | None], evaluation: Evaluation) -> bool:
        """Put a validation's numbers into an epoch's row; True where it is the best so far."""
        summary = evaluation.summary()
        factor = kl_factor(self.config, self._kl_scale, row["beta"] or 0.0)
        weighted = factor * evaluation.penalised_kl(self.config.kl.free_bits)
        values = {**summary, "loss": summary["recon"] + weighted, "kl_weighted": weighted}
        row |= {f"val/{name}": values[name] for name in VAL_TERMS}
        # A rollout with NaN frames, which are scored as black, has a finite PSNR, and is never the best.
        better = self.best_psnr is None or summary["psnr"] > self.best_psnr
        best = better and not summary["nan_frames"]
        if best:
            self.best_psnr = summary["psnr"]
        return best

    # --- one step ---------------------------------------------------------------------------------

    def _plan_at(self, step: int) -> Plan:
        return Plan.at(self.config, step, self.epoch, self.total_steps)

    def _plan(self) -> Plan:
        plan = self._plan_at(self.step)
        set_lr(self.optimizer, plan.lr)
        return plan

    def _train_step(self, batch: Batch, plan: Plan) -> Tensor:
        """One optimiser step on this process's rows; returns its ``TRAIN_TERMS``, still on the device."""
        parts = [self._loss.parts(batch, n, self.step, plan.forced) for n in range(self._split.accumulate)]
        numbers = (plan.tfr, kl_factor(self.config, self._kl_scale, plan.beta))
        if self._graphs:  # what changes from step to step has to be read from the device
            place = self.device.torch
            terms, norm = self._replayed(
                parts, plan.forced, *(torch.full((), n, device=place) for n in numbers)
            )
        else:
            terms, norm = self._update(parts, plan.forced, *numbers)
        if self.average:
            self.average.update(self.step)
        return torch.cat((self.world.add(terms), norm))

    def _update(
        self,
        parts: Sequence[Sequence[Part]],
        forced: Sequence[bool],
        ratio: float | Tensor,
        weight: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The gradient of all parts and the optimiser's step: tensors in, tensors out, no waiting in between.

        Returns:
            This process's share of the loss terms ``[4]``; the gradient's norm ``[1]``.
        """
        self.optimizer.zero_grad(set_to_none=True)
        shares = []
        for n, rows in enumerate(parts, start=1):
            with self.world.unsynchronised(self._shared_loss, n < len(parts)):
                loss, terms = self._shared_loss(rows, forced, ratio, weight)
                loss.backward()
            shares.append(terms)
        limit = self.config.train.grad_clip
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        # A CPU knows the norm here, and small gradients need no factor of 1; elsewhere asking is waiting.
        if limit is not None and (norm.device.type != "cpu" or norm > limit):
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, norm, foreach=True)
        self.optimizer.step()
        total = shares[0] if len(shares) == 1 else torch.stack(shares).sum(0)
        return total, norm.detach()[None]

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on bit for bit: tensors and numbers only. The number of
        processes is none of it. To be taken in the first process, and needs no other."""
        state: dict[str, Any] = {
            **self._terms.state_dict(self.step, self.epoch),
            "step": self.step,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "seconds": self.seconds,
            "best_psnr": self.best_psnr,
            "protocol": self._protocol(),
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
        load_state(self.optimizer, state["optimizer"])
        self.step, self.epoch, self.step_in_epoch = state["step"], state["epoch"], state["step_in_epoch"]
        self._agreed_seconds, self._lap = state["seconds"], 0.0
        self._agree_at, self._agreed = self.step, (self.step, time.perf_counter())
        self._forced_sum = state["forced_sum"]
        # A value of another protocol is not comparable: the next validation is the best so far.
        self.best_psnr = state["best_psnr"] if state["protocol"] == self._protocol() else None
        self._blended = state["blended"]
        self._terms.load_state_dict(state)
        self.initial = state.get("initial", self.initial)


class _BrokenOffError(Exception):
    """Ends a validation that somebody asked to stop."""
