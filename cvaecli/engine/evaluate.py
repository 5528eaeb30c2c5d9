"""Free-running validation: rollout, one-step and posterior curves of every clip, trivial predictors, and the
numbers of a whole data set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

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

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""``progress(done, total)`` in frames, each counted once per pass (rollouts, one step, posterior)."""

STRIP_COLUMNS = 10


@dataclass
class ClipScore:
    """One clip's curves over its ``n`` predicted frames, float64; the first one is frame ``first``.

    ``rollout`` feeds predictions back and ``one_step`` the true previous frame, both with z from the prior.
    ``posterior`` feeds the true previous frame with z from the posterior, which sees the target. Their
    differences are the drift and the gap between posterior and prior.
    """

    name: str
    first: int
    mse: np.ndarray  # [samples, n]
    psnr: np.ndarray  # [samples, n] dB
    psnr_per_channel: np.ndarray  # [samples, n] dB
    ssim: np.ndarray | None  # [samples, n]
    psnr_one_step: np.ndarray  # [n] dB
    ssim_one_step: np.ndarray | None  # [n]
    psnr_posterior: np.ndarray  # [n] dB
    not_finite: np.ndarray  # [samples, n] 1 if the rollout's frame contains a NaN or an infinity
    recon: np.ndarray  # [samples, n] reconstruction term of the rollout, in the training loss's unit
    kl: np.ndarray  # [n] nats
    mse_near: np.ndarray | None  # [samples, n] the part of mse near the label's ink; None without pictures
    near: np.ndarray | None  # [n] share of the pixels that are near the label's ink
    repeat_last_past: np.ndarray  # [n] dB
    mean_frame: np.ndarray  # [n] dB
    diversity: np.ndarray | None = None
    """[n] standard deviation over the samples, mean over channels and pixels, in units of the data range
    1; None if there is only one sample."""
    strip: dict[str, np.ndarray] = field(default_factory=dict)
    """Evenly spaced frames, uint8 ``[K, H, W, C]``: truth, posterior, rollout (sample 0), the best sample if
    there are several, and the condition if it is a picture."""
    strip_frames: list[int] = field(default_factory=list)

    @property
    def nan_frames(self) -> int:
        """Number of rollout frames, over all samples, that contain a NaN or an infinity."""
        return int(self.not_finite.sum())

    @property
    def best(self) -> int:
        """The sample with the highest mean PSNR."""
        return int(self.psnr.mean(1).argmax())

    def extremes(self, name: str) -> tuple[Any, Any]:
        """The curves ``psnr`` or ``ssim`` of the samples with the highest and the lowest mean, ``[n]`` each;
        (None, None) if there is no such curve."""
        curves: np.ndarray | None = getattr(self, name)
        if curves is None:
            return None, None
        means = curves.mean(1)
        return curves[means.argmax()], curves[means.argmin()]

    def curves(self) -> dict[str, np.ndarray | None]:
        """The columns of ``per_frame.csv``, ``[n]`` each; the rollout's are means over the samples."""
        psnr, ssim = self.extremes("psnr"), self.extremes("ssim")
        return {
            "psnr": self.psnr.mean(0),
            "ssim": None if self.ssim is None else self.ssim.mean(0),
            "psnr_one_step": self.psnr_one_step,
            "ssim_one_step": self.ssim_one_step,
            "psnr_best": psnr[0],
            "psnr_worst": psnr[1],
            "ssim_best": ssim[0],
            "ssim_worst": ssim[1],
            "psnr_per_channel": self.psnr_per_channel.mean(0),
            "diversity": self.diversity,
            "psnr_posterior": self.psnr_posterior,
            "kl": self.kl,
            "repeat_last_past": self.repeat_last_past,
            "mean_frame": self.mean_frame,
        }

    def summary(self) -> dict[str, Any]:
        """The clip's entry in ``metrics.json``."""
        return {
            "name": self.name,
            "frames": self.psnr.shape[1],
            "nan_frames": self.nan_frames,
            "psnr": float(self.psnr.mean()),
            "psnr_one_step": float(self.psnr_one_step.mean()),
            "psnr_worst_frame": float(self.psnr.mean(0).min()),
            "ssim": None if self.ssim is None else float(self.ssim.mean()),
            "kl": float(self.kl.mean()),
            "repeat_last_past": float(self.repeat_last_past.mean()),
            "mean_frame": float(self.mean_frame.mean()),
        }


@dataclass
class Evaluation:
    """The scores of a split. A data set's number is the mean over clips of the clip's mean over frames."""

    clips: list[ClipScore]

    def _mean(self, value: Callable[[ClipScore], Any]) -> float | None:
        """The data set's number for a curve; None if a clip does not have the curve."""
        curves = [value(clip) for clip in self.clips]
        if any(curve is None for curve in curves):
            return None
        return float(np.mean([np.mean(curve) for curve in curves]))

    def penalised_kl(self, free_bits: float) -> float:
        """The KL as the loss counts it before its weight: nats per frame, at least ``free_bits`` a frame."""
        return float(np.mean([np.mean(np.maximum(clip.kl, free_bits)) for clip in self.clips]))

    def summary(self) -> dict[str, Any]:
        """The numbers of ``metrics.json``; dB, nats per frame, and counts."""
        mean, clips = self._mean, [clip.summary() for clip in self.clips]
        one_step, posterior = mean(lambda c: c.psnr_one_step), mean(lambda c: c.psnr_posterior)
        assert one_step is not None and posterior is not None
        return {
            "psnr": mean(lambda c: c.psnr),
            "psnr_best_of_samples": mean(lambda c: c.extremes("psnr")[0]),
            "psnr_worst_of_samples": mean(lambda c: c.extremes("psnr")[1]),
            "psnr_one_step": one_step,
            "psnr_posterior": posterior,
            "posterior_prior_gap": posterior - one_step,
            "psnr_of_mean_mse": mean(lambda c: -10 * np.log10(max(np.mean(c.mse), 1e-10))),
            "psnr_per_channel": mean(lambda c: c.psnr_per_channel),
            "ssim": mean(lambda c: c.ssim),
            "ssim_best_of_samples": mean(lambda c: c.extremes("ssim")[0]),
            "ssim_worst_of_samples": mean(lambda c: c.extremes("ssim")[1]),
            "ssim_one_step": mean(lambda c: c.ssim_one_step),
            "diversity": mean(lambda c: c.diversity),
            "mse": mean(lambda c: c.mse),
            "recon": mean(lambda c: c.recon),
            "kl": mean(lambda c: c.kl),
            "near_label": self._near_label(),
            "frames": sum(clip["frames"] for clip in clips),
            "nan_frames": sum(clip["nan_frames"] for clip in clips),
            "clips": clips,
            "baselines": {
                "repeat_last_past": {"psnr": mean(lambda c: c.repeat_last_past)},
                "mean_frame": {"psnr": mean(lambda c: c.mean_frame)},
            },
        }

    def _near_label(self) -> dict[str, float | None] | None:
        """How the rollout's error divides into near the label's ink and elsewhere; None without labels."""
        mse, error, pixels = (
            self._mean(of) for of in (lambda c: c.mse, lambda c: c.mse_near, lambda c: c.near)
        )
        if error is None or pixels is None or mse is None:
            return None

        def psnr(error: float, pixels: float) -> float | None:
            return -10 * math.log10(max(error / pixels, 1e-10)) if pixels else None

        return {
            "distance": metrics.INK_DISTANCE,
            "pixels": pixels,
            "error": error / max(mse, 1e-10),
            "psnr": psnr(error, pixels),
            "psnr_elsewhere": psnr(mse - error, 1 - pixels),
        }

    def per_frame(self) -> Iterator[dict[str, Any]]:
        """The rows of ``per_frame.csv``."""
        for clip in self.clips:
            curves = clip.curves()
            for k in range(clip.psnr.shape[1]):
                values = {name: None if curve is None else curve[k] for name, curve in curves.items()}
                yield {"clip": clip.name, "frame": clip.first + k, **values}


def predicted_frames(clip: Clip, n_past: int, *limits: int | None) -> int:
    """How many frames of a clip an evaluation predicts: all that have a true frame, up to the limits."""
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
                scores += _ClipGroup(setup, group, predicted_frames(group[0], n_past, n_future)).scores()
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
        samples, seen, trivial = [one.arrays() for one in rollouts], posterior.arrays(), self._trivial()
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
                near=stacked["near"][0] if "near" in stacked else None,
                repeat_last_past=trivial["repeat_last_past"][b],
                mean_frame=trivial["mean_frame"][b],
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
                    one.add("near", near.float().mean((-3, -2, -1)))
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

    def _trivial(self) -> dict[str, np.ndarray]:
        """The trivial predictors: repeat the last given frame; the mean of the true frames to predict (which
        looks at the truth)."""
        curves, last = _Pass(self), self.past[:, -1:]
        total = sum(self._frames(a, b).sum(1, keepdim=True) for a, b in self._pieces())
        assert isinstance(total, Tensor)
        mean = total / self.n
        for a, b in self._pieces():
            x = self._frames(a, b)
            curves.add("repeat_last_past", metrics.psnr(last, x))
            curves.add("mean_frame", metrics.psnr(mean, x))
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
