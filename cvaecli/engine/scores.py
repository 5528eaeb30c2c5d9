"""The scores of an evaluation: the curves of each clip, and the numbers of a whole data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import metrics


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
        mse, near = self._mean(lambda c: c.mse), self._mean(lambda c: c.mse_near)
        pixels = self._mean(lambda c: c.near)
        if mse is None or near is None or pixels is None:
            return None
        return {
            "distance": metrics.INK_DISTANCE,
            "pixels": pixels,
            "error": near / max(mse, 1e-10),
            "psnr": _psnr_of_part(near, pixels),
            "psnr_elsewhere": _psnr_of_part(mse - near, 1 - pixels),
        }

    def per_frame(self) -> Iterator[dict[str, Any]]:
        """The rows of ``per_frame.csv``."""
        for clip in self.clips:
            curves = clip.curves()
            for k in range(clip.psnr.shape[1]):
                values = {name: None if curve is None else curve[k] for name, curve in curves.items()}
                yield {"clip": clip.name, "frame": clip.first + k, **values}


def _psnr_of_part(mse: float, share: float) -> float | None:
    """PSNR over a share of the pixels that contributes ``mse`` to the error of all; None without pixels."""
    return -10 * math.log10(max(mse / share, 1e-10)) if share else None
