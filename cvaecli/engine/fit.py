"""The training loop: a generator of events. Whoever runs it logs, draws and saves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.schema import EvalConfig, RunConfig
from ..data.clip import Clip
from ..errors import UserError
from ..models.base import VideoCVAE
from ..schedules import Scheduled
from ..terms import VAL_TERMS
from .augmentation import check_augmentation
from .averaging import WeightAverage, interpolate
from .batches import Batch, Frames, Sampler, batches
from .device import Device
from .distributed import ALONE, Agreement, World
from .evaluate import Progress, clips_of_process, evaluate, gathered
from .events import EpochEvent, Event, StepEvent
from .graph import Replayed
from .loss import Loss, TermRecord, kl_factor, kl_scale
from .optimizer import load_state, make_optimizer, set_lr
from .rollout_starts import RolloutStarts
from .scores import Evaluation
from .skipping import NotFiniteError, Skips, require_finite
from .split import Split
from .teacher_forcing import forced
from .update import Update


class Trainer:
    """Everything that training changes, and the loop that changes it.

    Args:
        model: untrained, on the CPU.
        train: training clips.
        val: clips for the free-running validation.
        world: the processes that share the training. All hold the same weights and yield the same events at
            the same steps. Clocks, validations and ``best_psnr`` are those of the first process.

    Attributes:
        step, epoch: steps and complete epochs done so far.
        step_in_epoch: steps done in the current epoch.
        best_psnr: PSNR of the best validation so far.
        stop_requested: called between steps and during validations; a result other than 0 stops the training.
        on_validation: called with the progress of a validation.
        interrupted: the result of ``stop_requested`` that stopped the training, else 0.
        graphs: whether steps are recorded as CUDA graphs.

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
        check_augmentation(config.train.augment, train)
        H, W = train[0].frames.shape[2:]
        model.check_batches((H, W), self._split.fewest)
        self.model = device.place(model)
        self.initial = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
        self.average = WeightAverage(self.model, config.train.ema) if config.train.ema else None
        self.sampler = Sampler.of(config, type(model), train)
        self.frames = Frames(train, device)
        self._starts = RolloutStarts(train, config, device)
        self.step = self.epoch = self.step_in_epoch = 0
        self.best_psnr: float | None = None
        self.stop_requested: Callable[[], int] = lambda: 0
        self.on_validation: Progress | None = None
        self.interrupted = 0
        self._agreement = Agreement(world)
        self._terms = TermRecord(device.torch, config.train.max_skips)
        self._forced_sum = 0.0  # sum of the forced shares of this epoch's steps
        self._interpolated = False  # whether this epoch's weights are already interpolated
        self._ended = True  # whether the last EpochEvent covers all steps done
        self._kl_scale = kl_scale(config, model, train[0].frames.shape[1:])
        self._loss = Loss(self.model, config, device, self._split, self.total_steps)
        self.graphs = config.runtime.graphs and device.torch.type == "cuda" and world.size == 1
        self.optimizer = make_optimizer(self.model, config, self.graphs)
        update = Update(
            world.wrap(self._loss), self.optimizer, config.train, world, Skips(model, self.optimizer)
        )
        self._update = Replayed(update) if self.graphs else update

    @functools.cached_property
    def total_steps(self) -> int:
        """Steps of all epochs: the length that schedules refer to. Early stops do not change it."""
        return sum(self.sampler.steps(epoch) for epoch in range(self.config.train.epochs))

    @property
    def prior_share(self) -> float:
        """The share of each batch that draws z from the prior: ``train.prior_share`` in whole rows."""
        return self._split.prior_share

    @property
    def trained(self) -> VideoCVAE:
        """The model that is evaluated and saved: the weight average if there is one."""
        return self.average.model if self.average else self.model

    @property
    def finished(self) -> bool:
        """All epochs are done, or a configured stop is reached and the steps before it are validated."""
        return self.epoch >= self.config.train.epochs or (self._ended and self._stopped())

    @property
    def skipped(self) -> int:
        """Steps skipped so far because they were not finite, as far as they are reported."""
        return self._terms.skipped

    @property
    def seconds(self) -> float:
        """Seconds of training, including those before a resume."""
        return self._agreement.total_seconds

    def _stopped(self) -> bool:
        train = self.config.train
        out_of_steps = train.max_steps is not None and self.step >= train.max_steps
        out_of_time = train.max_minutes is not None and self._agreement.seconds >= 60 * train.max_minutes
        return out_of_steps or out_of_time

    # --- the loop ---------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Train until finished or ``interrupted``. ``state_dict`` may be called between two events.

        Raises:
            NotFiniteError: more than ``train.max_skips`` steps were not finite. They were skipped, so the
                state is the last good one and may be saved.
            NoFiniteStepError: a whole epoch was not.
        """
        try:
            while not (self.finished or self.interrupted):
                yield from self._epoch_steps()
                event = None if self.interrupted else self._end_epoch()
                if event is not None:
                    yield event
                    self._agree()
        except NotFiniteError as error:
            raise self.world.reported_once(error) from None
        finally:
            if isinstance(self._update, Replayed):
                self.optimizer.zero_grad(set_to_none=True)  # gradients are in the memory of the recordings
                self._update.release()

    def _agree(self) -> None:
        self.interrupted = self._agreement.agree(self.step, self.stop_requested())

    def _epoch_steps(self) -> Iterator[StepEvent]:
        self._renew_starts()
        if self.interrupted:
            return
        self.model.train()
        steps, log_every = self.sampler.steps(self.epoch), self.config.train.log_every
        last_report, clock, batches = self.step, self.seconds, self._batches()
        while self.step_in_epoch < steps and not self._stopped():
            terms = rate = None
            skips: Sequence[str] = ()
            with self._agreement.timing():  # from asking for the batch; a report waits for the device
                batch = next(batches)
                scheduled, coins = self._scheduled(self.step), self._forced(self.step)
                set_lr(self.optimizer, scheduled.lr)
                self._terms.add(self._train_step(batch, scheduled, coins))
                self.step += 1
                self.step_in_epoch += 1
                self._ended = False
                forced_share = sum(coins) / len(coins)
                self._forced_sum += forced_share
                if self.step % log_every == 0 or self.step_in_epoch == steps or self.step == 1:
                    terms = self._terms.report(self.step, self.epoch)
                    skips = self._terms.new_skips()
            if terms is not None:
                frames = (self.step - last_report) * self.config.train.batch_size * len(coins)
                rate, last_report, clock = frames / (self.seconds - clock), self.step, self.seconds
            yield StepEvent(
                step=self.step,
                epoch=self.epoch,
                step_in_epoch=self.step_in_epoch,
                steps_in_epoch=steps,
                beta=scheduled.beta,
                tfr=scheduled.tfr,
                forced=forced_share,
                lr=scheduled.lr,
                terms=terms,
                frames_per_s=rate,
                skips=skips,
            )
            if self._agreement.due(self.step):
                self._agree()
            if self.interrupted:
                return

    def _batches(self) -> Iterator[Batch]:
        """This process's rows of the batches that are left in the epoch."""
        config = self.config
        rows = self._split.mine.all if self.world.size > 1 else None
        first_input = functools.partial(self._starts.first_input, epoch=self.epoch, rows=rows)
        return batches(
            self.frames,
            self.sampler,
            config.train,
            config.seed,
            self.epoch,
            self.step_in_epoch,
            rows,
            first_input if self._starts.wanted else None,
        )

    def _renew_starts(self) -> None:
        """Roll out the training clips anew at the start of an epoch, if windows start from such rollouts."""
        if not self._starts.wanted or self.epoch == 0 or self.step_in_epoch:
            return
        with self._agreement.timing(), contextlib.suppress(_InterruptedError):
            self._starts.renew(self.trained, self.epoch, self._check_stop)
        self.interrupted = int(self.world.greatest(self.stop_requested())[0])

    def _scheduled(self, step: int) -> Scheduled:
        return Scheduled.at(self.config, step, self.epoch, self.total_steps)

    def _forced(self, step: int) -> list[bool]:
        """For each predicted time step, whether its input is teacher-forced."""
        config, K = self.config, self.config.train.window - self.config.data.n_past
        return forced(config.teacher_forcing, config.seed, step, self.epoch, time_steps=K)

    def _end_epoch(self) -> EpochEvent | None:
        """End the epoch; None if its validation was interrupted and must be repeated after a resume."""
        train, epoch = self.config.train, self.epoch
        complete = self.step_in_epoch >= self.sampler.steps(epoch)
        due = complete and train.interpolate_every and (epoch + 1) % train.interpolate_every == 0
        if due and not self._interpolated:
            interpolate(self.model, self.initial)
            self._interpolated = True
        row = self._row()
        last = self._stopped() or (complete and epoch + 1 == train.epochs)
        every = self.config.eval.every
        evaluation, best = None, False
        if self._val and (last or (every and (epoch + 1) % every == 0)):
            evaluation = self.evaluate()
            if self.interrupted:
                return None
            best = evaluation is not None and self._add_validation(row, evaluation)
        self._ended = True
        if complete:
            self.epoch, self.step_in_epoch, self._forced_sum = epoch + 1, 0, 0.0
            self._terms.clear()
            self._interpolated = False
        return EpochEvent(epoch, complete, row, evaluation, best, last)

    def _row(self) -> dict[str, float | int | None]:
        """The epoch's row of ``metrics.csv``, without its validation."""
        scheduled = self._scheduled(self.step - 1)
        with self._agreement.timing():  # waits for the device, after an early stop
            means = self._terms.means(self.step_in_epoch, self.epoch)
        return {
            "epoch": self.epoch,
            "step": self.step,
            "time": round(self.seconds, 2),
            "lr": scheduled.lr,
            **{f"train/{name}": value for name, value in means.items()},
            "beta": scheduled.beta,
            "tfr": scheduled.tfr,
            "forced": self._forced_sum / max(self.step_in_epoch, 1),
        }

    # --- validation -------------------------------------------------------------------------------

    def evaluate(self) -> Evaluation | None:
        """Free-running validation of the ``trained`` model, as ``config.eval`` says.

        Returns:
            The scores in the first process, None in the others. None in all processes if the validation was
            interrupted; all are then ``interrupted``.
        """
        config, mine = self.config, Evaluation([])
        limits = [n for n in (config.data.n_future, config.eval.frames) if n is not None]
        with contextlib.suppress(_InterruptedError):
            mine = evaluate(
                self.trained,
                clips_of_process(self._val, config.data.n_past, self.world),
                self.device,
                config.eval,
                n_past=config.data.n_past,
                n_future=min(limits) if limits else None,
                seed=config.seed,
                recon=config.train.recon,
                progress=self._validating,
            )
        self.interrupted = int(self.world.greatest(self.stop_requested())[0])
        return None if self.interrupted else gathered(mine, self.world)

    def _validating(self, done: int, total: int) -> None:
        if self.on_validation is not None:
            self.on_validation(done, total)
        self._check_stop()

    def _check_stop(self) -> None:
        if self.stop_requested():
            raise _InterruptedError

    def _add_validation(self, row: dict[str, float | int | None], evaluation: Evaluation) -> bool:
        """Put a validation's numbers into an epoch's row; returns whether it is the best so far."""
        summary = evaluation.summary()
        factor = kl_factor(self.config, self._kl_scale, row["beta"] or 0.0)
        weighted = factor * evaluation.penalised_kl(self.config.kl.free_bits)
        values = {**summary, "loss": summary["recon"] + weighted, "kl_weighted": weighted}
        row |= {f"val/{name}": values[name] for name in VAL_TERMS}
        # NaN frames are scored as black, so a rollout with some has a finite PSNR. It is never the best.
        better = self.best_psnr is None or summary["psnr"] > self.best_psnr
        best = better and not summary["nan_frames"]
        if best:
            self.best_psnr = summary["psnr"]
        return best

    # --- one step ---------------------------------------------------------------------------------

    def _train_step(self, batch: Batch, scheduled: Scheduled, coins: Sequence[bool]) -> Tensor:
        """One optimiser step on this process's rows; returns its ``TRAIN_TERMS``, still on the device."""
        micro_batches = [self._loss.groups(batch, n, self.step, coins) for n in range(self._split.accumulate)]
        numbers = (scheduled.tfr, kl_factor(self.config, self._kl_scale, scheduled.beta))
        if self.graphs:  # a CUDA graph reads values that change between steps from the device's memory
            device = self.device.torch
            terms, norm = self._update(
                micro_batches, coins, *(torch.full((), n, device=device) for n in numbers)
            )
        else:
            terms, norm = self._update(micro_batches, coins, *numbers)
        if self.average:
            self.average.update(self.step)
        return torch.cat((terms, norm))

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to continue bit for bit: tensors, numbers and text. It does not
        depend on the number of processes. Call it in the first process; the others need not take part.

        Raises:
            NotFiniteError: a finite gradient was so large that a weight is infinite now.
        """
        require_finite(self.model, self.step)
        state: dict[str, Any] = {
            **self._terms.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "seconds": self.seconds,
            "best_psnr": self.best_psnr,
            "protocol": self.config.eval.scored(),
            "forced_sum": self._forced_sum,
            "blended": self._interpolated,
            "ended": self._ended,
            "optimizer": self.optimizer.state_dict(),
            "weights": self.model.state_dict(),
            **(self._starts.state_dict() if self.step_in_epoch else {}),
        }
        if self.config.train.interpolate_every:
            state["initial"] = self.initial
        return state

    def load_state_dict(self, state: dict[str, Any], averaged: dict[str, Tensor]) -> None:
        """Continue from ``state_dict()``; ``averaged`` are the weights of ``trained`` at that moment.

        Raises:
            UserError: another version of this tool wrote the state, or it lacks the weights to blend with.
        """
        train = self.config.train
        if train.interpolate_every and train.init is not None and "initial" not in state:
            raise UserError(
                "train.interpolate_every: the checkpoint lacks the weights of train.init, to blend with",
                "set train.interpolate_every=0, or start a new run",
            )
        self._terms.load_state_dict(state)
        self.model.load_state_dict(state["weights"])
        if self.average:
            self.average.model.load_state_dict(averaged)
        load_state(self.optimizer, state["optimizer"])
        self.step, self.epoch, self.step_in_epoch = state["step"], state["epoch"], state["step_in_epoch"]
        self._agreement.restart(self.step, state["seconds"])
        self._forced_sum, self._interpolated = state["forced_sum"], state["blended"]
        self._ended = state.get("ended", True)
        self._starts.load_state_dict(state)
        # A PSNR of another protocol is not comparable: the next validation becomes the best so far.
        alike = self.config.eval.scored() == EvalConfig().scored() | state["protocol"]
        self.best_psnr = state["best_psnr"] if alike else None
        self.initial = state.get("initial", self.initial)


class _InterruptedError(Exception):
    """Ends a validation or a rollout that ``Trainer.stop_requested`` stopped."""
