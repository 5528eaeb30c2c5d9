"""Free-running validation: rollout, one-step and posterior curves of every clip, and trivial predictors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..config.schema import EvalConfig
from ..data.clip import Clip
from ..models.base import VideoCVAE
from ..objective import reconstruction, total_kl
from .batches import stacked
from .device import Device
from .distributed import World
from .rollout import Noise, prior_noise, rollout
from .scores import ClipScore, Evaluation

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""``progress(done, total)`` in frames, each counted once per pass (rollouts, one step, posterior)."""

STRIP_COLUMNS = 10
SHOWN_CLIPS = 4
"""Number of clips, from the first on, whose pictures are kept."""


def predicted_frames(clip: Clip, n_past: int, limit: int | None) -> int:
    """How many frames of a clip an evaluation predicts: all that have a true frame, up to the limit."""
    frames = clip.n_frames - n_past
    return frames if limit is None else min(frames, limit)


def evaluate(
    model: VideoCVAE,
    clips: Sequence[Clip],
    device: Device,
    config: EvalConfig,
    *,
    n_past: int,
    n_future: int | None = None,
    seed: int = 0,
    recon: str = "mse",
    with_ssim: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the clips that have true frames to predict.

    Args:
        model: on the device; put into evaluation mode here and back afterwards (batch norm uses its
            running statistics).
        clips: all of one frame size.
        n_future: predict at most this many frames of each clip.
        seed: seed of the prior's noise.
        recon: kind of the reconstruction term, see ``objective.reconstruction``.
    """
    usable = [clip for clip in clips if clip.n_frames > n_past]
    passes = config.samples + (1 if model.parallel else 2)
    total, done = passes * sum(predicted_frames(clip, n_past, n_future) for clip in usable), 0
    scores: list[ClipScore] = []

    def advance(frames: int) -> None:
        nonlocal done
        done += frames
        if progress is not None:
            progress(done, total)

    was_training = model.training
    model.eval()
    try:
        setup = _Setup(device.for_inference(model), device, config, n_past, seed, recon, with_ssim, advance)
        with device.many_shapes():
            for group in neighbours(
                usable, lambda c: predicted_frames(c, n_past, n_future), config.batch_size
            ):
                for score in _ClipGroup(setup, group, predicted_frames(group[0], n_past, n_future)).scores():
                    if len(scores) >= SHOWN_CLIPS:
                        score.strip = {}
                    scores.append(score)
    finally:
        model.train(was_training)
    return Evaluation(scores)


def clips_of_process(clips: Sequence[Clip], n_past: int, world: World) -> list[Clip]:
    """The clips that this process scores, among those that have true frames to predict."""
    return [clip for clip in clips if clip.n_frames > n_past][world.rank :: world.size]


def gathered(mine: Evaluation, world: World) -> Evaluation | None:
    """The scores of all processes in the order of the clips, in the first process; None in the others."""
    parts = world.gather(mine.clips)
    if parts is None:
        return None
    return Evaluation([parts[k % world.size][k // world.size] for k in range(sum(map(len, parts)))])


def neighbours(items: Iterable[T], length: Callable[[T], int], size: int) -> Iterator[list[T]]:
    """Groups of at most ``size`` consecutive items of equal length."""
    for _, equal in itertools.groupby(items, length):
        run = list(equal)
        yield from (run[k : k + size] for k in range(0, len(run), size))


class _Setup(NamedTuple):
    """What all groups of an evaluation share."""

    model: VideoCVAE
    device: Device
    config: EvalConfig
    n_past: int
    seed: int
    recon: str
    with_ssim: bool
    advance: Callable[[int], None]


class _ClipGroup:
    """Clips of ``n`` predicted frames each, scored together. They are scored piece by piece, so that memory
    does not grow with their length."""

    def __init__(self, setup: _Setup, clips: list[Clip], n: int) -> None:
        self.setup, self.clips, self.n, self.n_past = setup, clips, n, setup.n_past
        self.past, self.past_condition = self._frames(0, self.n_past), self._conditions(0, self.n_past)
        shown = np.linspace(0, n - 1, STRIP_COLUMNS).round()
        self.strip_frames = sorted({self.n_past + int(k) for k in shown})

    def _load(self, arrays: Iterable[np.ndarray], first: int, last: int) -> Tensor:
        return stacked([array[first:last] for array in arrays], self.setup.device.torch)

    def _frames(self, first: int, last: int) -> Tensor:
        return self._load((clip.frames for clip in self.clips), first, last)

    def _conditions(self, first: int, last: int) -> Tensor:
        return self._load((clip.condition for clip in self.clips), first, last)

    def _near_ink(self, first: int, last: int) -> Tensor | None:
        """Which pixels are near the label's ink, ``[B, k, 1, H, W]``; None if conditions are no pictures."""
        condition = self._conditions(first, last)
        return metrics.near_ink(condition) if condition.ndim == 5 else None

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """(first, last) frame number of each piece."""
        end, chunk = self.n_past + self.n, self.setup.config.chunk
        for first in range(self.n_past, end, chunk):
            yield first, min(first + chunk, end)

    def _noise(self, sample: int) -> Noise:
        model, _, config, n_past, seed, *_ = self.setup
        names, size = [clip.name for clip in self.clips], (self.past.shape[-2], self.past.shape[-1])
        return prior_noise(model, names, size, prior=config.prior, seed=seed, n_past=n_past, sample=sample)

    def scores(self) -> list[ClipScore]:
        """The clips' scores, in their order."""
        rollouts, diversity = self._rollouts()
        posterior = self._teacher_forced(posterior=True)
        # In a parallel model no step sees an earlier prediction: the one-step pass equals the rollout.
        parallel = self.setup.model.parallel
        one_step = (rollouts[0] if parallel else self._teacher_forced(posterior=False)).arrays()
        samples, seen, plain = [one.arrays() for one in rollouts], posterior.arrays(), self._without_model()
        strips, scores = [one.strip() for one in (posterior, *rollouts)], []
        for b, clip in enumerate(self.clips):
            stacked = {name: np.stack([one[name][b] for one in samples]) for name in samples[0]}
            score = ClipScore(
                name=clip.name,
                first=self.n_past,
                mse=stacked["mse"],
                psnr=stacked["psnr"],
                psnr_per_channel=stacked["psnr_per_channel"],
                ssim=stacked.get("ssim"),
                psnr_one_step=one_step["psnr"][b],
                ssim_one_step=one_step["ssim"][b] if self.setup.with_ssim else None,
                psnr_posterior=seen["psnr"][b],
                not_finite=stacked["not_finite"],
                recon=stacked["recon"],
                kl=seen["kl"][b],
                mse_near=stacked.get("mse_near"),
                near=plain["near"][b] if "near" in plain else None,
                repeat_last_past=plain["repeat_last_past"][b],
                mean_frame=plain["mean_frame"][b],
                diversity=diversity[b] if diversity is not None else None,
                strip_frames=self.strip_frames,
            )
            score.strip = {"truth": np.moveaxis(clip.frames[self.strip_frames], 1, -1)}
            score.strip |= {"posterior": strips[0][b], "rollout": strips[1][b]}
            if len(samples) > 1:
                score.strip["best sample"] = strips[1 + score.best][b]
            if clip.condition.ndim == 4:
                score.strip["condition"] = np.moveaxis(clip.condition[self.strip_frames], 1, -1)
            scores.append(score)
        return scores

    def _rollouts(self) -> tuple[list[_Pass], np.ndarray | None]:
        """A pass for every sample, and the samples' diversity ``[B, n]``.

        All samples are predicted together, piece by piece: their spread is computed without keeping them.
        """
        numbers = range(self.setup.config.samples)
        streams, passes = [self._rollout(k) for k in numbers], [_Pass(self) for _ in numbers]
        spread = _Pass(self)
        for first, last in self._pieces():
            x, near = self._frames(first, last), self._near_ink(first, last)
            mean, squares = torch.zeros_like(x), torch.zeros_like(x)  # Welford 1962
            for n, (stream, one) in enumerate(zip(streams, passes, strict=True), start=1):
                x_hat = next(stream)
                one.score(first, x_hat, x, self.setup.with_ssim)
                if near is not None:
                    one.add("mse_near", metrics.mse_within(x_hat, x, near))
                change = metrics.shown(x_hat) - mean
                mean += change / n
                squares += change * (metrics.shown(x_hat) - mean)
            deviation = (squares.clamp(min=0) / max(len(streams) - 1, 1)).sqrt()
            spread.add("diversity", deviation.mean((-3, -2, -1)))
        return passes, spread.arrays()["diversity"] if len(streams) > 1 else None

    def _rollout(self, sample: int) -> Iterator[Tensor]:
        conditions = (self._conditions(first, last) for first, last in self._pieces())
        model, device, noise = self.setup.model, self.setup.device, self._noise(sample)
        return rollout(model, self.past, self.past_condition, conditions, noise, device)

    def _teacher_forced(self, posterior: bool) -> _Pass:
        """The pass in which every step is fed the true previous frame, with z from posterior or prior."""
        model, device, *_ = self.setup
        with torch.inference_mode(), device.autocast():
            state = model.start(self.past, self.past_condition)
        one, noise = _Pass(self), self._noise(0)
        for first, last in self._pieces():
            frames = self._frames(first - 1, last)
            x = frames[:, 1:]
            drawn = [n.to(device.torch) for n in noise(first - self.n_past, last - first)]
            with torch.inference_mode(), device.autocast():
                features = model.encode(self._conditions(first, last), x if posterior else None)
                steps, state = model.unroll(state, frames[:, :-1], features, drawn, posterior)
            one.score(first, steps.x_hat.float(), x, self.setup.with_ssim and not posterior)
            if posterior:
                one.add("kl", total_kl(steps))
        return one

    def _without_model(self) -> dict[str, np.ndarray]:
        """The PSNR of the trivial predictors (repeat the last given frame; the mean of the true frames to
        predict, which looks at the truth), and the share of pixels near the label's ink."""
        curves, last = _Pass(self), self.past[:, -1:]
        total = sum(self._frames(a, b).sum(1, keepdim=True) for a, b in self._pieces())
        assert isinstance(total, Tensor)
        mean = total / self.n
        for a, b in self._pieces():
            x = self._frames(a, b)
            curves.add("repeat_last_past", metrics.psnr(last, x))
            curves.add("mean_frame", metrics.psnr(mean, x))
            if (near := self._near_ink(a, b)) is not None:
                curves.add("near", near.float().mean((-3, -2, -1)))
        return curves.arrays()


class _Pass:
    """Curves ``[B, n]`` of one pass over a group, collected piece by piece, and its frames for the strip."""

    def __init__(self, group: _ClipGroup) -> None:
        self._group = group
        self._pieces: dict[str, list[Tensor]] = {}
        self._strip: list[Tensor] = []

    def add(self, name: str, value: Tensor) -> None:
        """The next piece ``[B, k]`` of a curve."""
        self._pieces.setdefault(name, []).append(value.cpu())

    def score(self, first: int, x_hat: Tensor, x: Tensor, with_ssim: bool) -> None:
        """Score the predictions ``[B, k, C, H, W]`` of the frames from number ``first`` on."""
        self.add("mse", metrics.mse(x_hat, x))
        self.add("psnr", metrics.psnr(x_hat, x))
        self.add("psnr_per_channel", metrics.psnr_per_channel(x_hat, x))
        self.add("not_finite", metrics.not_finite(x_hat))
        self.add("recon", reconstruction(x_hat, x, self._group.setup.recon))
        if with_ssim:
            self.add("ssim", metrics.ssim(x_hat, x))
        for k in range(x.shape[1]):
            if first + k in self._group.strip_frames:
                self._strip.append(metrics.as_bytes(x_hat[:, k]).cpu())
        self._group.setup.advance(x.shape[0] * x.shape[1])

    def arrays(self) -> dict[str, np.ndarray]:
        """The curves, float64."""
        return {name: torch.cat(pieces, 1).double().numpy() for name, pieces in self._pieces.items()}

    def strip(self) -> np.ndarray:
        """The predictions of the strip's frames, uint8 ``[B, K, H, W, C]``."""
        return torch.stack(self._strip, 1).movedim(2, -1).numpy()
