"""Free-running validation: rollout, one-step and posterior curves of every clip, and trivial predictors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..config.schema import EvalConfig
from ..data.clip import Clip
from ..models.base import VideoCVAE
from ..objective import reconstruction, total_kl
from .batches import to_float
from .device import Device
from .distributed import World
from .rollout import Noise, prior_noise, rollout
from .scores import ClipScore, Evaluation

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""``progress(done, total)`` in frames, each counted once a pass (rollouts, one step, posterior)."""

STRIP_COLUMNS = 10


def predicted_frames(clip: Clip, n_past: int, *limits: int | None) -> int:
    """How many frames of a clip an evaluation predicts: all that have a truth, or the smallest limit."""
    return min([clip.n_frames - n_past, *(limit for limit in limits if limit is not None)])


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
    """Score the clips that have a true frame to predict.

    Args:
        model: on the device; put into evaluation mode here and back afterwards (batch norm uses its
            running statistics).
        clips: of one frame size.
        n_future: predict at most so many frames of each clip.
        seed: of the prior's noise.
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
        ready = device.for_inference(model)
        for group in neighbours(usable, lambda c: predicted_frames(c, n_past, n_future), config.batch_size):
            n = predicted_frames(group[0], n_past, n_future)
            scores += _Group(
                ready, group, device, config, n_past, n, seed, recon, with_ssim, advance
            ).scores()
    finally:
        model.train(was_training)
    return Evaluation(scores)


def share(clips: Sequence[Clip], n_past: int, world: World) -> list[Clip]:
    """The clips that this process is to score, of those that have a true frame to predict."""
    return [clip for clip in clips if clip.n_frames > n_past][world.rank :: world.size]


def together(mine: Evaluation, world: World) -> Evaluation | None:
    """The scores of every process's ``share`` in the clips' order, in the first process; None elsewhere."""
    parts = world.gather(mine.clips)
    if parts is None:
        return None
    return Evaluation([parts[k % world.size][k // world.size] for k in range(sum(map(len, parts)))])


def neighbours(items: Iterable[T], length: Callable[[T], int], size: int) -> Iterator[list[T]]:
    """Neighbours of equal length, at most ``size`` together."""
    for _, alike in itertools.groupby(items, length):
        run = list(alike)
        yield from (run[k : k + size] for k in range(0, len(run), size))


class _Group:
    """Clips of equal length, scored together piece by piece so that memory does not grow with length."""

    def __init__(
        self,
        model: VideoCVAE,
        clips: list[Clip],
        device: Device,
        config: EvalConfig,
        n_past: int,
        n: int,
        seed: int,
        recon: str,
        with_ssim: bool,
        advance: Callable[[int], None],
    ) -> None:
        self.model, self.clips, self.device, self.config = model, clips, device, config
        self.n_past, self.n, self.seed, self.recon, self.with_ssim = n_past, n, seed, recon, with_ssim
        self.advance = advance
        self.past = self._frames(0, n_past)
        self.past_condition = self._conditions(0, n_past)
        self.size = (self.past.shape[-2], self.past.shape[-1])

    def _load(self, arrays: Sequence[np.ndarray], first: int, last: int) -> Tensor:
        return to_float(torch.from_numpy(np.stack([a[first:last] for a in arrays])).to(self.device.torch))

    def _frames(self, first: int, last: int) -> Tensor:
        return self._load([clip.frames for clip in self.clips], first, last)

    def _conditions(self, first: int, last: int) -> Tensor:
        return self._load([clip.condition for clip in self.clips], first, last)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """(first, last) frame number of each piece."""
        end = self.n_past + self.n
        for first in range(self.n_past, end, self.config.chunk):
            yield first, min(first + self.config.chunk, end)

    def _noise(self, sample: int) -> Noise:
        return prior_noise(
            self.model,
            [clip.name for clip in self.clips],
            self.size,
            prior=self.config.prior,
            seed=self.seed,
            n_past=self.n_past,
            sample=sample,
        )

    def scores(self) -> list[ClipScore]:
        samples, diversity = self._rollouts()
        posterior = self._forced(posterior=True)
        # In a parallel model no step sees an earlier prediction: one step is the rollout.
        one_step = samples[0] if self.model.parallel else self._forced(posterior=False)
        trivial = self._trivial()
        scores = []
        for b, clip in enumerate(self.clips):
            stacked = {key: np.stack([s[key][b] for s in samples]) for key in samples[0] if key != "strip"}
            scores.append(
                ClipScore(
                    name=clip.name,
                    first=self.n_past,
                    mse=stacked["mse"],
                    psnr=stacked["psnr"],
                    psnr_per_channel=stacked["psnr_per_channel"],
                    ssim=stacked.get("ssim"),
                    psnr_one_step=one_step["psnr"][b],
                    ssim_one_step=one_step["ssim"][b] if self.with_ssim else None,
                    psnr_posterior=posterior["psnr"][b],
                    not_finite=stacked["not_finite"],
                    recon=stacked["recon"],
                    kl=posterior["kl"][b],
                    repeat_last_past=trivial["repeat_last_past"][b],
                    mean_frame=trivial["mean_frame"][b],
                    diversity=diversity[b] if diversity is not None else None,
                    strip_frames=self._strip_frames(),
                )
            )
            shown = {"posterior": posterior, "rollout": samples[0]}
            if len(samples) > 1:
                shown["best sample"] = samples[scores[-1].best]
            scores[-1].strip = self._strip(b, {row: one["strip"][b] for row, one in shown.items()})
        return scores

    def _rollouts(self) -> tuple[list[dict[str, np.ndarray]], np.ndarray | None]:
        """Every sample's curves and strip, and the samples' diversity ``[B, n]``.

        The samples go on piece by piece together: their spread is known without keeping any.
        """
        streams = [self._rollout(sample) for sample in range(self.config.samples)]
        scored, spread = [_Scored(self) for _ in streams], _Curves()
        for first, last in self._pieces():
            x = self._frames(first, last)
            mean, squares = torch.zeros_like(x), torch.zeros_like(x)  # as Welford 1962
            for n, (stream, one) in enumerate(zip(streams, scored, strict=True), start=1):
                x_hat = next(stream)
                one.add(first, x_hat, x, self.with_ssim)
                change = metrics.shown(x_hat) - mean
                mean += change / n
                squares += change * (metrics.shown(x_hat) - mean)
            deviation = (squares.clamp(min=0) / max(len(streams) - 1, 1)).sqrt()
            spread.add("diversity", deviation.mean((-3, -2, -1)))
        diversity = spread.arrays()["diversity"] if len(streams) > 1 else None
        return [one.arrays() for one in scored], diversity

    def _rollout(self, sample: int) -> Iterator[Tensor]:
        conditions = (self._conditions(first, last) for first, last in self._pieces())
        return rollout(
            self.model, self.past, self.past_condition, conditions, self._noise(sample), self.device
        )

    def _forced(self, posterior: bool) -> dict[str, np.ndarray]:
        """Every step fed with the true previous frame."""
        with torch.inference_mode(), self.device.autocast():
            state = self.model.start(self.past, self.past_condition)
        scored, noise = _Scored(self), self._noise(0)
        for first, last in self._pieces():
            frames = self._frames(first - 1, last)
            x = frames[:, 1:]
            drawn = [n.to(self.device.torch) for n in noise(first - self.n_past, last - first)]
            with torch.inference_mode(), self.device.autocast():
                features = self.model.encode(self._conditions(first, last), x if posterior else None)
                steps, state = self.model.unroll(state, frames[:, :-1], features, drawn, posterior)
            scored.add(first, steps.x_hat.float(), x, self.with_ssim and not posterior)
            if posterior:
                scored.curves.add("kl", total_kl(steps))
        return scored.arrays()

    def _trivial(self) -> dict[str, np.ndarray]:
        """Repeat the last given frame; the mean of the clip's true predicted frames (which peeks)."""
        curves, last = _Curves(), self.past[:, -1:]
        total = sum(self._frames(a, b).sum(1, keepdim=True) for a, b in self._pieces())
        assert isinstance(total, Tensor)
        mean = total / self.n
        for a, b in self._pieces():
            x = self._frames(a, b)
            curves.add("repeat_last_past", metrics.psnr(last, x))
            curves.add("mean_frame", metrics.psnr(mean, x))
        return curves.arrays()

    def _strip_frames(self) -> list[int]:
        return sorted({self.n_past + int(k) for k in np.linspace(0, self.n - 1, STRIP_COLUMNS).round()})

    def _strip(self, b: int, predicted: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        clip, frames = self.clips[b], self._strip_frames()
        strip = {"truth": np.moveaxis(clip.frames[frames], 1, -1), **predicted}
        if clip.condition.ndim == 4:
            strip["condition"] = np.moveaxis(clip.condition[frames], 1, -1)
        return strip


class _Scored:
    """One pass of a group: its curves, and the frames for the strip."""

    def __init__(self, group: _Group) -> None:
        self.curves, self._group = _Curves(), group
        self._kept: list[Tensor] = []
        self._wanted = set(group._strip_frames())

    def add(self, first: int, x_hat: Tensor, x: Tensor, with_ssim: bool) -> None:
        """Score the predictions ``[B, k, C, H, W]`` of the frames from number ``first`` on."""
        self.curves.add("mse", metrics.mse(x_hat, x))
        self.curves.add("psnr", metrics.psnr(x_hat, x))
        self.curves.add("psnr_per_channel", metrics.psnr_per_channel(x_hat, x))
        self.curves.add("not_finite", metrics.not_finite(x_hat))
        self.curves.add("recon", reconstruction(x_hat, x, self._group.recon))
        if with_ssim:
            self.curves.add("ssim", metrics.ssim(x_hat, x))
        for k in range(x.shape[1]):
            if first + k in self._wanted:
                self._kept.append((metrics.shown(x_hat[:, k]) * 255).round().byte().cpu())
        self._group.advance(x.shape[0] * x.shape[1])

    def arrays(self) -> dict[str, np.ndarray]:
        """The curves ``[B, n]``, and ``strip`` uint8 ``[B, K, H, W, C]``."""
        return {**self.curves.arrays(), "strip": torch.stack(self._kept, 1).movedim(2, -1).numpy()}


class _Curves:
    """Named curves ``[B, n]`` collected piece by piece."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Tensor]] = {}

    def add(self, name: str, value: Tensor) -> None:
        self._pieces.setdefault(name, []).append(value.cpu())

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: torch.cat(pieces, 1).double().numpy() for name, pieces in self._pieces.items()}
