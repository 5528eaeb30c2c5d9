"""One run's numbers in plain words. Each function takes curves or numbers and returns a sentence or two.

The thresholds are rules of thumb.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..tables import Array
from .settings import signed

COLLAPSED = 0.1
"""nats per frame: a latent that carries less has collapsed."""
WORTH = 0.1
"""dB: a smaller gap between posterior and prior counts as none."""
DRIFT = 1.0
"""dB: if the rollout is further below one step, this is called drift."""
FALL = 0.3
"""dB: if validation ends further below its best, this is called over-fitting."""


def latent(kl: float, gap: float) -> str:
    """Is the latent used?

    Args:
        kl: nats per frame of the posterior against the prior.
        gap: dB by which a prediction with z from the posterior beats one with z from the prior.
    """
    if not (np.isfinite(kl) and np.isfinite(gap)):
        return "It is not known whether the latent is used: KL or the posterior's PSNR is not finite."
    numbers = f"it carries {kl:.3g} nats per frame, and z from the posterior is worth {signed(gap)} dB"
    if kl < COLLAPSED:
        return f"The latent has collapsed: {numbers}. The model predicts from frames and conditions alone."
    if gap < WORTH:
        return f"The latent is filled but of little use: {numbers}. Its content does not show in the picture."
    return f"The latent is used: {numbers}. Predictions draw z from the prior and must do without that gain."


def drift(frames: Array, rollout: Array, one_step: Array) -> str:
    """Does the rollout fall behind one step, and from which frame on?

    Args:
        frames: frame numbers, ``[n]``.
        rollout: dB with predictions fed back, ``[n]``.
        one_step: dB with the true previous frame fed, ``[n]``.
    """
    if len(frames) < 5:
        return "The clips are too short to judge drift."
    if np.allclose(rollout, one_step, atol=1e-3):
        return "There is no drift: the rollout is as good as one step in every frame."
    fifth = max(1, len(frames) // 5)
    behind = _smooth(one_step - rollout, min(25, fifth) // 2 * 2 + 1)
    end, mean = float((one_step - rollout)[-fifth:].mean()), float((one_step - rollout).mean())
    if end < DRIFT:
        harder = float(one_step[:fifth].mean() - one_step[-fifth:].mean())
        tail = ""
        if harder > DRIFT:
            tail = f" The last fifth is {harder:.1f} dB lower for one step too: those frames are harder."
        return (
            f"There is little drift: the rollout lies {mean:.2f} dB below one step on average and "
            f"{end:.2f} dB over the last fifth of the frames.{tail}"
        )
    # Drift begins after the last frame where the rollout still keeps up
    keeps_up = np.flatnonzero(behind <= DRIFT)
    place = int(keeps_up[-1]) + 1 if len(keeps_up) else 0
    tail = f"over the last fifth of the frames it is {end:.1f} dB below"
    if place < fifth and end - float(behind[:fifth].mean()) < DRIFT:
        return f"The rollout falls behind one step within the first frames, but goes no further: {tail}."
    onset = int(frames[min(place, len(frames) - 1)])
    return (
        f"The rollout drifts: from about frame {onset} on it stays more than {DRIFT:g} dB below one step; "
        f"{tail}."
    )


def worst_stretch(frames: Array, psnr: Array) -> tuple[int, int, float]:
    """(first frame, last frame, mean dB) of the stretch with the lowest mean.

    A stretch is 25 frames, or a fifth of a clip that is shorter than 125.
    """
    span = max(1, min(25, len(frames) // 5))
    sums = np.convolve(psnr, np.ones(span), "valid")
    start = int(sums.argmin())
    return int(frames[start]), int(frames[start + span - 1]), float(sums[start] / span)


def worst(frames: Array, psnr: Array) -> str:
    """Which frames are worst?"""
    first, last, level = worst_stretch(frames, psnr)
    return (
        f"Frames {first} to {last} are predicted worst: {level:.2f} dB on average, "
        f"against {float(psnr.mean()):.2f} dB over all frames."
    )


def worst_clip(psnr: Mapping[str, float]) -> str:
    """Which clip is worst? ``psnr``: dB of each clip."""
    name = min(psnr, key=lambda clip: psnr[clip])
    return (
        f"Of {len(psnr)} clips {name} is predicted worst ({psnr[name]:.2f} dB); "
        f"the best reaches {max(psnr.values()):.2f} dB."
    )


def labels(ink: Array, first: int, last: int) -> str:
    """Do the label images of a stretch differ from the others?

    Args:
        ink: share of each label's pixels that differ from the median label, ``[T]``.
        first, last: the frames of the stretch.
    """
    here, usual = float(ink[first : last + 1].mean()), float(np.median(ink))
    blank = int((ink[first : last + 1] < 0.1 * usual).sum())
    if blank:
        return f"{blank} of its {last - first + 1} label images are blank or nearly so."
    if here < 0.6 * usual:
        return f"Its label images show less than usual: {here / usual:.0%} of the drawn area of the median."
    if here > 1.6 * usual:
        return f"Its label images show more than usual: {here / usual:.0%} of the drawn area of the median."
    return "Its label images show as much as those of the other frames."


def over_fitting(trained: Array, psnr: Array, train_recon: Array) -> str:
    """Did validation peak before the end?

    Args:
        trained: number of epochs trained at each validation, ``[n]``.
        psnr: free-running validation PSNR, ``[n]``.
        train_recon: reconstruction term of training in the same epochs, ``[n]``; lower is better.
    """
    if len(trained) < 3:
        return "There are too few validations to tell whether training was too short or too long."
    best = int(psnr.argmax())
    fall = float(psnr[best] - psnr[-max(1, len(psnr) // 5) :].mean())
    if fall > FALL and best < len(psnr) - 1:
        training = "kept falling" if train_recon[-1] < train_recon[best] else "did not fall either"
        cause = "the model over-fits" if train_recon[-1] < train_recon[best] else "training became unstable"
        return (
            f"Validation peaked after {int(trained[best])} epochs with {psnr[best]:.2f} dB and ends "
            f"{fall:.2f} dB lower, while the training error {training}: {cause}. "
            "The best checkpoint is the one that is used."
        )
    late = max(1, len(psnr) // 4)
    gain = float(psnr[-late:].max() - psnr[:-late].max())
    if gain > FALL:
        return (
            f"Validation was still rising at the end ({signed(gain)} dB over the last quarter): "
            "a longer training is likely to help."
        )
    below = round(float(psnr[best] - psnr[-1]), 2)
    end = f"{below:.2f} dB below" if below else "at"
    return f"Validation levelled off: {signed(gain)} dB over the last quarter; it ends {end} its best."


def against_trivial(psnr: float, repeat: float, mean_frame: float) -> str:
    """Does the model beat predictors that ignore the conditions?"""
    above, over_mean = psnr - repeat, psnr - mean_frame
    if not np.isfinite(above + over_mean):
        return "The trivial predictors' PSNR is not known."
    text = (
        f"The rollout reaches {psnr:.2f} dB: {signed(above)} dB against repeating the last given frame, "
        f"and {signed(over_mean)} dB against the clip's mean frame, which no predictor can know."
    )
    if min(above, over_mean) < 0:
        better = "Repeating a frame" if above < 0 else "The mean frame"
        return f"{text} {better} is better: the model has not learnt its task yet."
    return text


def _smooth(values: Array, span: int) -> Array:
    """A centred moving median of the same length: it keeps a step where it is. ``span`` is odd."""
    padded = np.pad(values, span // 2, mode="edge")
    smooth: Array = np.median(np.lib.stride_tricks.sliding_window_view(padded, span), axis=-1)
    return smooth
