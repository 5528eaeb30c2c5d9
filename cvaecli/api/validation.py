"""Score a trained model."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from .. import checkpoint as checkpoints
from .. import evaluations, media
from ..config.schema import RunConfig
from ..data.clip import Clip, VideoData
from ..engine.distributed import ALONE, World
from ..engine.evaluate import SHOWN_CLIPS, clips_of_process, evaluate, gathered
from ..engine.scores import Evaluation
from ..errors import UserError
from ..evaluations import ClipFrames
from ..media import panels
from ..models.base import VideoCVAE
from ..reporter import Reporter, Silent
from ..run import Run
from .loading import RUNS, Opened, load_run_data, open_run

Swap = Literal["actions", "positions", "conditions"]
"""What ``validate`` exchanges between clips: some columns of the condition vectors, or whole conditions."""

OWN = "the clip's own"
"""``protocol.conditions`` of an evaluation that exchanges nothing."""

LITERATURE = {"robot": "psnr_per_channel"}
"""The PSNR that publications quote, by kind of data, where it is not ``psnr``."""


def validate(
    run: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    split: str = "val",
    swap: Swap | None = None,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
    config: RunConfig | None = None,
    data: VideoData | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Score a run's best checkpoint on a split with true frames; ``runs/README.md`` has the protocol.

    Args:
        run: see ``run.find``.
        overrides: of data.*, runtime.*, seed, and of eval.samples, eval.prior, eval.average_flips,
            eval.batch_size, eval.chunk.
        split: train, val, or test where it has true frames.
        swap: give the predicted steps of every clip the next clip's actions, positions or whole conditions
            (the last clip takes the first one's). The given frames keep their own. The loss in PSNR shows
            how much the model uses them.
        config: of the training that has just ended. A resume may have changed it since the best checkpoint.
        data: already loaded data of the same config.
        world: processes that each score their share of the clips.

    Returns:
        What ``eval/<split>/metrics.json`` holds. It is written there together with ``per_frame.csv``; with
        ``swap``, to ``eval/<split>-swapped-<swap>``. With several processes the first gets it, the others an
        empty dict.

    Raises:
        UserError: no such run or split, no true frames, nothing to exchange, or an override that does not
            apply.
    """
    reporter = reporter or Silent()
    opened = open_run(run, overrides, runs, world, config=config)
    home, config = opened.run, opened.config
    data = data or load_run_data(opened, (split,), reporter, world)
    clips = _with_truth(data, split, config)
    if swap is not None:
        clips = swapped(clips, _columns(data, swap), config.data.n_past, split)
    with reporter.task(f"Validating {home.name} on {split}") as advance:
        began = time.perf_counter()
        mine = evaluate(
            opened.model,
            clips_of_process(clips, config.data.n_past, world),
            opened.device,
            config.eval,
            n_past=config.data.n_past,
            n_future=config.data.n_future,
            seed=config.seed,
            recon=config.train.recon,
            with_ssim=True,
            progress=advance,
        )
        scores = gathered(mine, world)
        seconds = time.perf_counter() - began
    if scores is None:
        return {}
    summary: dict[str, Any] = scores.summary()
    if swap is not None:
        summary["near_label"] = None  # the exchanged labels do not show where the clip's person is
    summary["seconds"] = round(seconds, 2)
    summary["protocol"] = protocol = _protocol(opened, data, scores, split, swap)
    if protocol["n_future_min"] != protocol["n_future_max"]:
        reporter.warn(
            f"{split}: clips of {protocol['n_future_min']} to {protocol['n_future_max']} predicted frames; "
            "each clip has the same weight in the means"
        )
    summary = without_nan(summary)
    name = split if swap is None else f"{split}{evaluations.SWAPPED}{swap}"
    # The summary last: an interruption leaves no new numbers beside old pictures.
    save_strip(scores, evaluations.folder_of(home.path, name) / "strip.png")
    evaluations.write_frames(home.path, name, _frames(scores))
    evaluations.write(home.path, name, summary, list(scores.per_frame()))
    return summary


def _protocol(
    opened: Opened, data: VideoData, scores: Evaluation, split: str, swap: Swap | None
) -> dict[str, Any]:
    """How the numbers were measured."""
    config, saved = opened.config, opened.checkpoint
    predicted = [clip.psnr.shape[1] for clip in scores.clips]
    return {
        "split": split,
        "n_past": config.data.n_past,
        "n_future": config.data.n_future or "all",
        "n_future_min": min(predicted),
        "n_future_max": max(predicted),
        "samples": config.eval.samples,
        "prior": config.eval.prior,
        "average_flips": config.eval.average_flips,
        "conditions": OWN if swap is None else f"predicted steps: the next clip's {swap}",
        "seed": config.seed,
        "batch_norm": "running statistics" if _has_batch_norm(opened.model) else "none in this model",
        "precision": opened.device.precision,
        "device": opened.device.name,
        "psnr": "mean over frames of -10 log10(MSE over C, H, W), clamped to [0, 1]; mean over clips",
        "ssim": "11x11 Gaussian window, sigma 1.5, per channel, K1 0.01, K2 0.03",
        "literature_psnr": LITERATURE.get(config.data.kind, "psnr"),
        "frame_size": list(data.frame_size),
        "data": data.source,
        "data_fingerprint": data.fingerprint,
        "checkpoint": opened.path.name,
        "checkpoint_fingerprint": checkpoints.fingerprint(saved),
        "epochs_done": saved["epoch"],
        "step": saved["step"],
    }


def _has_batch_norm(model: VideoCVAE) -> bool:
    return any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.modules())


def without_nan(values: Any) -> Any:
    """Plain data with None for NaN and infinity, which JSON does not have."""
    if isinstance(values, dict):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def evaluation(run: Run, split: str = "val") -> dict[str, Any]:
    """The last evaluation of a run on a split, from its files; see ``evaluations.read_summary``."""
    return evaluations.read_summary(run.path, split)


# --- which clips --------------------------------------------------------------------------------------


def _with_truth(data: VideoData, split: str, config: RunConfig) -> list[Clip]:
    if split not in data.splits:
        raise UserError(
            f"--split {split}: the data have no such split", f"there are: {', '.join(data.splits)}"
        )
    clips = [clip for clip in data.splits[split] if clip.n_frames > config.data.n_past]
    if not clips:
        raise UserError(
            f"{split}: has no true frames to compare with",
            "use --split val, or cvae predict for the pictures",
        )
    return clips


def _columns(data: VideoData, swap: str) -> slice:
    """The columns of a condition that ``swap`` names; all for ``conditions``."""
    if swap not in get_args(Swap):
        raise UserError(f"--swap {swap}: cannot be exchanged", f"one of {', '.join(get_args(Swap))}")
    if swap == "conditions":
        return slice(None)
    if swap not in data.condition_parts:
        raise UserError(f"--swap {swap}: these data have no {swap} of their own", "use --swap conditions")
    return data.condition_parts[swap]


def swapped(clips: Sequence[Clip], columns: slice, n_past: int, split: str = "") -> list[Clip]:
    """Every clip with the next one's conditions from frame ``n_past`` on; the last has the first one's.

    ``condition[t]`` drives the step to frame ``t``. The conditions of the given frames stay the clip's own,
    so that only predicted steps differ. If the next clip is shorter, the clip is cut to its length.

    Args:
        columns: columns of the condition vectors; all for a label image.

    Raises:
        UserError: there is only one clip.
    """
    if len(clips) < 2:
        raise UserError(f"--swap: {split} has only one clip, so there is nothing to exchange")
    made = []
    for clip, other in zip(clips, [*clips[1:], clips[0]], strict=True):
        n = min(clip.n_steps, other.n_steps)
        condition = clip.condition[:n].copy()
        condition[n_past:, columns] = other.condition[n_past:n, columns]
        made.append(Clip(clip.name, clip.frames[:n], condition))
    return [clip for clip in made if clip.n_frames > n_past]


# --- pictures -----------------------------------------------------------------------------------------


def save_strip(evaluation: Evaluation, path: Path) -> None:
    """Truth, posterior, rollout and label of the first clip at evenly spaced frames, as a PNG."""
    clip = evaluation.clips[0]
    H = clip.strip["truth"].shape[1]
    media.save_png(
        path,
        panels.strip(
            list(clip.strip.values()), list(clip.strip), scale=max(1, 96 // H), columns=clip.strip_frames
        ),
    )


def _frames(scores: Evaluation) -> list[ClipFrames]:
    """The pictures of the first clips."""
    return [
        ClipFrames(clip.name, np.array(clip.strip_frames), clip.strip) for clip in scores.clips[:SHOWN_CLIPS]
    ]
