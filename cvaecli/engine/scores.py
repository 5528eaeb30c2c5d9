"""What an evaluation measures: curves of every clip, and a data set's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class ClipScore:
    """One clip's curves over its ``n`` predicted frames, float64; the first one is frame ``first``.

    ``rollout`` feeds predictions back, ``one_step`` feeds the true previous frame, both with z from
    the prior; ``posterior`` feeds the true previous frame with z from the posterior, which saw the
    target. Their differences are drift and the posterior-to-prior gap.
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
    not_finite: np.ndarray  # [samples, n] 1 where the rollout's frame holds a NaN or an infinity
    recon: np.ndarray  # [samples, n] reconstruction term of the rollout, in the training loss's unit
    kl: np.ndarray  # [n] nats
    repeat_last_past: np.ndarray  # [n] dB
    mean_frame: np.ndarray  # [n] dB
    diversity: np.ndarray | None = None
    """[n] standard deviation over the samples, mean over channels and pixels, in units of the data range
    1; None where there is one sample."""
    strip: dict[str, np.ndarray] = field(default_factory=dict)
    """Evenly spaced frames, uint8 ``[K, H, W, C]``: truth, posterior, rollout (sample 0), with several
    samples the best one and, if it is a picture, condition."""
    strip_frames: list[int] = field(default_factory=list)

    @property
    def nan_frames(self) -> int:
        """How many frames of the rollouts, of all samples together, hold a NaN or an infinity."""
        return int(self.not_finite.sum())

    @property
    def best(self) -> int:
        """The sample with the highest mean PSNR."""
        return int(self.psnr.mean(1).argmax())

    def extremes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """``[n]`` each: the curve ``psnr`` or ``ssim`` of the samples with its highest and lowest mean."""
        curves: np.ndarray = getattr(self, name)
        means = curves.mean(1)
        return curves[means.argmax()], curves[means.argmin()]


@dataclass
class Evaluation:
    """The scores of a split. A data set's number is the mean over clips of the clip's mean over frames."""

    clips: list[ClipScore]

    def penalised_kl(self, free_bits: float) -> float:
        """The KL as the loss counts it before its weight: nats per frame, at least ``free_bits`` a frame."""
        return float(np.mean([np.mean(np.maximum(clip.kl, free_bits)) for clip in self.clips]))

    def summary(self) -> dict[str, Any]:
        """The numbers of ``metrics.json``; dB, nats per frame, and counts."""

        def over_clips(value: Callable[[ClipScore], Any]) -> float:
            return float(np.mean([np.mean(value(clip)) for clip in self.clips]))

        with_ssim = all(clip.ssim is not None for clip in self.clips)
        with_samples = all(clip.diversity is not None for clip in self.clips)
        one_step, posterior = over_clips(lambda c: c.psnr_one_step), over_clips(lambda c: c.psnr_posterior)
        return {
            "psnr": over_clips(lambda c: c.psnr),
            "psnr_best_of_samples": over_clips(lambda c: c.extremes("psnr")[0]),
            "psnr_worst_of_samples": over_clips(lambda c: c.extremes("psnr")[1]),
            "psnr_one_step": one_step,
            "psnr_posterior": posterior,
            "posterior_prior_gap": posterior - one_step,
            "psnr_of_mean_mse": float(
                np.mean([-10 * np.log10(max(np.mean(clip.mse), 1e-10)) for clip in self.clips])
            ),
            "psnr_per_channel": over_clips(lambda c: c.psnr_per_channel),
            "ssim": over_clips(lambda c: c.ssim) if with_ssim else None,
            "ssim_best_of_samples": over_clips(lambda c: c.extremes("ssim")[0]) if with_ssim else None,
            "ssim_worst_of_samples": over_clips(lambda c: c.extremes("ssim")[1]) if with_ssim else None,
            "ssim_one_step": over_clips(lambda c: c.ssim_one_step) if with_ssim else None,
            "diversity": over_clips(lambda c: c.diversity) if with_samples else None,
            "mse": over_clips(lambda c: c.mse),
            "recon": over_clips(lambda c: c.recon),
            "kl": over_clips(lambda c: c.kl),
            "frames": sum(clip.psnr.shape[1] for clip in self.clips),
            "nan_frames": sum(clip.nan_frames for clip in self.clips),
            "clips": [self._clip(clip) for clip in self.clips],
            "baselines": {
                "repeat_last_past": {"psnr": over_clips(lambda c: c.repeat_last_past)},
                "mean_frame": {"psnr": over_clips(lambda c: c.mean_frame)},
            },
        }

    @staticmethod
    def _clip(clip: ClipScore) -> dict[str, Any]:
        return {
            "name": clip.name,
            "frames": clip.psnr.shape[1],
            "nan_frames": clip.nan_frames,
            "psnr": float(clip.psnr.mean()),
            "psnr_one_step": float(clip.psnr_one_step.mean()),
            "psnr_worst_frame": float(clip.psnr.mean(0).min()),
            "ssim": None if clip.ssim is None else float(clip.ssim.mean()),
            "kl": float(clip.kl.mean()),
            "repeat_last_past": float(clip.repeat_last_past.mean()),
            "mean_frame": float(clip.mean_frame.mean()),
        }

    def per_frame(self) -> Iterator[dict[str, Any]]:
        """The rows of ``per_frame.csv``; rollout values are means over the samples."""
        for clip in self.clips:
            psnr_best, psnr_worst = clip.extremes("psnr")
            ssim_best, ssim_worst = (None, None) if clip.ssim is None else clip.extremes("ssim")
            for k in range(clip.psnr.shape[1]):
                yield {
                    "clip": clip.name,
                    "frame": clip.first + k,
                    "psnr": clip.psnr[:, k].mean(),
                    "ssim": None if clip.ssim is None else clip.ssim[:, k].mean(),
                    "psnr_one_step": clip.psnr_one_step[k],
                    "ssim_one_step": None if clip.ssim_one_step is None else clip.ssim_one_step[k],
                    "psnr_best": psnr_best[k],
                    "psnr_worst": psnr_worst[k],
                    "ssim_best": None if ssim_best is None else ssim_best[k],
                    "ssim_worst": None if ssim_worst is None else ssim_worst[k],
                    "psnr_per_channel": clip.psnr_per_channel[:, k].mean(),
                    "diversity": None if clip.diversity is None else clip.diversity[k],
                    "psnr_posterior": clip.psnr_posterior[k],
                    "kl": clip.kl[k],
                    "repeat_last_past": clip.repeat_last_past[k],
                    "mean_frame": clip.mean_frame[k],
                }
