"""The loss of a training step, its KL weight, and the record of its terms.

``Loss`` is one module, so that DistributedDataParallel and a CUDA graph can wrap it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config.schema import RunConfig
from ..errors import UserError
from ..models.base import Step, VideoCVAE
from ..objective import reconstruction, total_kl
from ..seeding import stream
from ..terms import TRAIN_TERMS
from .batches import Batch
from .device import Device, compiled
from .skipping import NoFiniteStepError, NotFiniteError
from .split import Split
from .teacher_forcing import Feed, noisy_inputs
from .unroll import DrawnNoise, draw_noise, unroll


class Group(NamedTuple):
    """Rows of a batch that are predicted together.

    Attributes:
        noise: for their z, and for the frames fed to their steps.
        posterior_rows: how many rows, from the first on, have z from the posterior; the others have it from
            the prior.
    """

    batch: Batch
    noise: DrawnNoise
    posterior_rows: int


class Loss(nn.Module):
    """The loss of a micro-batch, such that the losses of all micro-batches add up to the global batch's.

    Args:
        model: on the device.
        split: how the global batch is divided; sums over rows are divided by its numbers of rows.
        total_steps: steps of the whole run.
    """

    def __init__(
        self, model: VideoCVAE, config: RunConfig, device: Device, split: Split, total_steps: int
    ) -> None:
        super().__init__()
        self.model = model  # a submodule, so that its parameters are this module's
        # Not a submodule: it has the same parameters.
        self._unroll = functools.partial(unroll, compiled(model, config.runtime, device, total_steps))
        self._config, self._device, self._split = config, device, split

    def forward(
        self,
        groups: Sequence[Group],
        forced: Sequence[bool],
        ratio: float | Tensor,
        factor: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss of the rows and its terms; the host does not wait for the device.

        Args:
            groups: the rows; those with z from the posterior are in the first group.
            forced, ratio: see ``teacher_forcing.Feed``.
            factor: of the KL term, see ``kl_factor``.

        Returns:
            The loss to be differentiated, whose gradient is this micro-batch's share of the global batch's
            (with several processes, before DistributedDataParallel takes the mean), and ``[4]``: this
            micro-batch's share of the first four ``TRAIN_TERMS``, detached.
        """
        train = self._config.train
        with self._device.autocast():
            steps = [self.predict(group, forced, ratio) for group in groups]
        errors = [
            # The last frames: those to predict, preceded by past ones if the model predicts these too.
            reconstruction(some.x_hat, group.batch.frames[:, -some.x_hat.shape[1] :], train.recon).sum(0)
            for some, group in zip(steps, groups, strict=True)
        ]
        recon = torch.stack(errors).sum(0) / self._split.batch_size  # (K,)
        kl = total_kl(steps[0])  # (posterior rows, K) nats
        K = kl.shape[1]
        # Divided by the number of all rows, like the reconstruction: for a row with a KL term the ratio of
        # the two does not depend on the share of rows without one (hybrid objective, Sohn et al. 2015).
        penalised = kl.clamp(min=self._config.kl.free_bits).sum(0) / self._split.batch_size
        weighted = factor * penalised
        per_step = recon + weighted  # (K,)
        loss = per_step.sum() if train.time_reduction == "sum" else per_step.mean()
        nats = kl.sum() / (self._split.posterior_rows * K)
        terms = torch.stack([per_step.mean(), recon.mean(), nats, weighted.mean()])
        return loss * self._split.size, terms.detach()

    def groups(self, batch: Batch, n: int, step: int, forced: Sequence[bool]) -> list[Group]:
        """Micro-batch ``n`` of this process's rows of a step's batch, as ``forward`` wants it.

        Args:
            batch: this process's rows, ``Split.mine``.
        """
        split, noisy = self._split, noisy_inputs(self._config.teacher_forcing, forced)
        rows, local = split.micro_batch(n), split.local_micro_batch(n)

        def group(where: range, numbers: range, count: int, purpose: str, posterior_rows: int) -> Group:
            cut = batch.rows(slice(where.start, where.stop))
            generator = stream(self._config.seed, purpose, step, device=self._device.torch)
            noise = draw_noise(self.model, cut.frames, noisy, generator, numbers, count)
            return Group(cut, noise, posterior_rows)

        first = group(local.posterior, rows.posterior, split.posterior_rows, "z", len(local.posterior))
        if not rows.prior:
            return [first]
        # The noise of the prior rows is drawn separately, with row numbers that begin at 0.
        numbers = range(rows.prior.start - split.posterior_rows, rows.prior.stop - split.posterior_rows)
        second = group(local.prior, numbers, split.prior_rows, "z from the prior", 0)
        return [_concatenated(first, second)] if self.model.mixes else [first, second]

    def predict(self, group: Group, forced: Sequence[bool], ratio: float | Tensor) -> Step:
        """The predictions of a group's rows."""
        feed = Feed(self._config.teacher_forcing, forced, ratio)
        n_past, kept_steps = self._config.data.n_past, self._config.train.kept_steps
        return self._unroll(group.batch, n_past, feed, group.noise, group.posterior_rows, kept_steps)


def _concatenated(first: Group, second: Group) -> Group:
    """One group with the rows of both."""

    def join(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.cat((a, b))

    a, b = first.batch, second.batch
    batch = Batch(
        torch.cat((a.frames, b.frames)),
        torch.cat((a.condition, b.condition)),
        join(a.first_input, b.first_input),
    )
    one, two = first.noise, second.noise
    z = [torch.cat(levels) for levels in zip(one.z, two.z, strict=True)]
    return Group(batch, DrawnNoise(z, list(map(join, one.feedback, two.feedback))), first.posterior_rows)


# --- the weight of the KL term ------------------------------------------------------------------------


def kl_scale(config: RunConfig, model: VideoCVAE, frame_shape: Sequence[int]) -> float:
    """The factor by which ``kl.reduction`` scales the KL of a frame in nats.

    Args:
        frame_shape: ``(C, H, W)``.
    """
    if config.kl.reduction == "sum":
        return 1.0
    if config.kl.reduction == "pixel":
        return 1.0 / math.prod(frame_shape)
    shapes = model.noise_shapes((frame_shape[-2], frame_shape[-1]))
    return 1.0 / sum(math.prod(shape) for shape in shapes)


def kl_factor(config: RunConfig, scale: float, beta: float) -> float:
    """The factor of the KL, in nats per frame, in the loss: beta times ``kl.weight`` times its scale.

    Args:
        scale: from ``kl_scale``.
        beta: the scheduled weight at this step.
    """
    return beta * config.kl.weight * scale


# --- the record of the terms --------------------------------------------------------------------------


class TermRecord:
    """The ``TRAIN_TERMS`` of an epoch's steps. They stay on the device until they are reported.

    A step with a term that is not finite was skipped by the optimiser. It counts in no mean.

    Args:
        max_skips: skipped steps of the whole run that are allowed.

    Attributes:
        skipped: skipped steps of the whole run that are reported.
    """

    def __init__(self, device: torch.device, max_skips: int) -> None:
        self._device, self._max_skips = device, max_skips
        self._sums = torch.zeros(len(TRAIN_TERMS), dtype=torch.float64)  # over this epoch's reported steps
        self._pending: list[Tensor] = []
        self._skipped_in_epoch = 0  # among the reported steps
        self._new_skips: list[str] = []
        self._last_fault = ("the loss is not finite", "lower optim.lr")  # and what to do about it
        self.skipped = 0

    def add(self, values: Tensor) -> None:
        """Take a step's terms, a tensor ``[len(TRAIN_TERMS)]``; the host does not wait for it."""
        self._pending.append(values)

    def clear(self) -> None:
        """Begin a new epoch, after everything was reported."""
        self._sums.zero_()
        self._skipped_in_epoch = 0

    def report(self, step: int, epoch: int) -> dict[str, float] | None:
        """The means since the last report, which also go into the epoch's sums; None if there was no step,
        or all were skipped.

        Args:
            step, epoch: steps done so far and the current epoch, for the messages.

        Raises:
            NotFiniteError: too many steps were skipped; names the last one and its term.
        """
        values = self._fetch()
        finite = values.isfinite().all(1)
        skipped, lines = self.skipped, []
        for row in (~finite).nonzero()[:, 0].tolist():
            skipped += 1
            where = f"step {step - len(values) + row + 1} (epoch {epoch})"
            fault, hint = self._last_fault = _not_finite(values[row])
            if skipped > self._max_skips:  # nothing is counted yet: a resumed run reports these steps again
                raise NotFiniteError(
                    f"training stopped at {where}: {fault}; more than {self._max_skips} steps "
                    "(train.max_skips) were not finite",
                    hint,
                )
            count = f"{skipped} of at most {self._max_skips}"
            lines.append(f"{where}: {fault}; the step was skipped ({count}); {hint}")
        self._skipped_in_epoch += len(lines)
        self._new_skips += lines
        self.skipped = skipped
        self._pending.clear()
        self._sums += values[finite].sum(0)
        return dict(zip(TRAIN_TERMS, values[finite].mean(0).tolist(), strict=True)) if finite.any() else None

    def new_skips(self) -> list[str]:
        """A line for each skipped step that ``report`` found since the last call."""
        found, self._new_skips = self._new_skips, []
        return found

    def means(self, count: int, epoch: int) -> dict[str, float]:
        """The means over the ``count`` steps of the epoch so far.

        Raises:
            NoFiniteStepError: all were skipped.
        """
        values = self._fetch()
        finite = values.isfinite().all(1)
        counted = count - self._skipped_in_epoch - int((~finite).sum())
        if not counted:
            fault, hint = _not_finite(values[-1]) if len(values) else self._last_fault
            raise NoFiniteStepError(
                f"training stopped: no step of epoch {epoch} was finite: {fault}",
                f"{hint}; the last checkpoint, if there is one, is intact",
            )
        means = (self._sums + values[finite].sum(0)) / counted
        return dict(zip(TRAIN_TERMS, means.tolist(), strict=True))

    def _fetch(self) -> Tensor:
        """The terms that are not reported yet, ``[n, len(TRAIN_TERMS)]``; they stay pending."""
        if not self._pending:
            return torch.zeros(0, len(TRAIN_TERMS), dtype=torch.float64)
        return torch.stack(self._pending).cpu().double()  # in this order: MPS has no float64

    def state_dict(self) -> dict[str, Any]:
        """State for ``load_state_dict``. Pending terms stay pending: saving must not change the next
        report."""
        return {
            "pending": self._fetch(),
            "sums": self._sums.clone(),
            "skipped": self.skipped,
            "skipped_in_epoch": self._skipped_in_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``.

        Raises:
            UserError: it was written by another version of this tool, which measured other terms.
        """
        if len(state["sums"]) != len(TRAIN_TERMS):
            raise UserError(
                "the checkpoint was written by another version of this tool and cannot be resumed",
                "start a new run from its weights: train.init=FILE",
            )
        self._sums = state["sums"].clone()
        self._pending = list(state["pending"].to(self._device, torch.float32))
        # Not in checkpoints of versions that stopped at the first such step.
        self.skipped, self._skipped_in_epoch = state.get("skipped", 0), state.get("skipped_in_epoch", 0)


def _not_finite(values: Tensor) -> tuple[str, str]:
    """The first term that is not finite as ``NAME is VALUE``, and what to do about it."""
    hints = {
        "recon": "the prediction blew up: lower optim.lr or train.grad_clip, or use a sigmoid output",
        "kl": "the posterior's variance blew up: set model.logvar_clamp, lower optim.lr or kl.weight",
        "loss": "lower kl.weight or optim.lr",
        "kl_weighted": "lower kl.weight",
        "grad_norm": "the gradient blew up: lower optim.lr, or set teacher_forcing.detach=on",
    }
    term = next(name for name in hints if not values[TRAIN_TERMS.index(name)].isfinite())
    return f"{term} is {float(values[TRAIN_TERMS.index(term)])}", hints[term]
