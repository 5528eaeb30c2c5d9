"""Score a trained model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint as checkpoints
from ..config.schema import RunConfig
from ..data.clip import Clip, VideoData
from ..engine.distributed import ALONE, World
from ..engine.evaluate import Evaluation, evaluate, share, together
from ..errors import UserError
from ..media import panels
from ..media import video as media
from ..models.base import VideoCVAE
from ..reporter import Reporter, Silent
from ..run import Run
from .loading import RUNS, load_data, open_run


def validate(
    run: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    split: str = "val",
    swap_conditions: bool = False,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
    data: VideoData | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Score a run's best checkpoint on a split with truth; see ``runs/README.md`` for the protocol.

    Args:
        run: see ``run.find``.
        overrides: of data.*, eval.*, runtime.* and seed.
        split: val, or test where it has true frames.
        swap_conditions: give every clip the next clip's conditions (the last one the first's). What that
            costs is what the model makes of its conditions.
        data: already loaded data of the same config.
        world: processes that each score their share of the clips.

    Returns:
        What ``eval/<split>/metrics.json`` holds; written there beside ``per_frame.csv``, or with swapped
        conditions into ``eval/<split>-swapped``. Nothing in all processes but the first.
    """
    reporter = reporter or Silent()
    home, path, config, model, device, saved = open_run(run, overrides, runs, world)
    data = data or load_data(config, (split,), reporter, world)
    clips = _with_truth(data, split, config)
    if swap_conditions:
        clips = _swapped(clips, split, config)
    with reporter.task(f"Validating {home.name} on {split}") as advance:
        began = time.perf_counter()
        mine = evaluate(
            model,
            share(clips, config.data.n_past, world),
            device,
            config.eval,
            n_past=config.data.n_past,
            n_future=config.data.n_future,
            seed=config.seed,
            recon=config.train.recon,
            with_ssim=True,
            progress=advance,
        )
        scores = together(mine, world)
        seconds = time.perf_counter() - began
    if scores is None:
        return {}
    summary: dict[str, Any] = scores.summary()
    summary["seconds"] = round(seconds, 2)
    summary["protocol"] = {
        "split": split,
        "n_past": config.data.n_past,
        "n_future": config.data.n_future or "all",
        "samples": config.eval.samples,
        "prior": config.eval.prior,
        "conditions": "the next clip's" if swap_conditions else "the clip's own",
        "seed": config.seed,
        "batch_norm": "running statistics" if _has_batch_norm(model) else "none in this model",
        "precision": device.precision,
        "device": device.name,
        "psnr": "mean over frames of -10 log10(MSE over C, H, W), clamped to [0, 1]; mean over clips",
        "ssim": "11x11 Gaussian window, sigma 1.5, per channel, K1 0.01, K2 0.03",
        "frame_size": list(data.frame_size),
        "data": data.source,
        "data_fingerprint": data.fingerprint,
        "checkpoint": path.name,
        "checkpoint_fingerprint": checkpoints.fingerprint(saved),
        "epoch": saved["epoch"],
        "step": saved["step"],
    }
    summary = without_nan(summary)
    name = f"{split}-swapped" if swap_conditions else split
    folder = home.write_evaluation(name, summary, list(scores.per_frame()))
    save_strip(scores, folder / "strip.png")
    return summary


def _has_batch_norm(model: VideoCVAE) -> bool:
    return any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.modules())


def without_nan(values: Any) -> Any:
    """Plain data with None for NaN and infinity, which JSON does not know."""
    if isinstance(values, dict):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def evaluation(run: Run, split: str = "val") -> dict[str, Any]:
    """The last validation of a run: ``eval/<split>/metrics.json``."""
    path = run.path / "eval" / split / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path}: not there", f"run: cvae validate {run.path} --split {split}")
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return metrics


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


def _swapped(clips: list[Clip], split: str, config: RunConfig) -> list[Clip]:
    """Every clip with the next one's conditions, and so many frames as these reach for."""
    if len(clips) < 2:
        raise UserError(f"--swap-conditions: {split} has one clip, and there is none to swap with")
    pairs = zip(clips, [*clips[1:], clips[0]], strict=True)
    swapped = [Clip(clip.name, clip.frames[: other.n_steps], other.condition) for clip, other in pairs]
    return [clip for clip in swapped if clip.n_frames > config.data.n_past]


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
