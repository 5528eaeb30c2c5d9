"""The predicted frames that the pages of runs play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import replacing
from ..pages.pictures import video_of
from ..reporter import Reporter, Silent


def frames(run: Path, split: str, count: int, *, reporter: Reporter | None = None) -> Path:
    """Predict the first clip of a split, for the player of a page.

    Args:
        run: a run folder with a checkpoint; its data must be there.
        split: val, or test where it has true frames.
        count: frames of the video, including the given ones; fewer if the clip is shorter.

    Returns:
        ``RUN/predictions/<split>-0-frames.npz``: ``truth`` uint8 ``[T, H, W, 3]``, ``samples`` uint8
        ``[1, T - first, H, W, 3]``, ``first``: the first predicted frame's number, ``checkpoint``: the
        fingerprint of the weights, and, if conditions are pictures, ``condition`` uint8 ``[T, H, W, 3]``.

    Raises:
        UserError: no checkpoint, no data, or no true frames.
    """
    from ..checkpoint import fingerprint
    from .loading import load_data, open_run
    from .prediction import Video, predicted

    reporter = reporter or Silent()
    home, _, config, model, device, saved = open_run(run, ())
    clip = next(iter(load_data(config, (split,), reporter).splits.get(split, [])), None)
    first = config.data.n_past
    if clip is None or clip.n_frames <= first:
        raise UserError(f"--split {split}: has no true frames to show", "choose another split")
    total = max(first + 1, min(count, clip.n_frames))
    with reporter.task(f"Predicting {home.name}") as advance:
        pieces = []
        for piece in predicted(model, [Video(clip, total, 0)], config, device):
            pieces.append(piece[0])
            advance(sum(map(len, pieces)), total)
    arrays = {"truth": np.moveaxis(np.array(clip.frames[:total]), 1, -1), "first": np.array(first)}
    arrays["samples"] = np.concatenate(pieces)[None, first:]
    arrays["checkpoint"] = np.array(fingerprint(saved))
    if clip.condition.ndim == 4:
        arrays["condition"] = np.moveaxis(np.array(clip.condition[:total]), 1, -1)
    path = home.path / "predictions" / f"{split}-0-frames.npz"
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path


def add_frames(runs: Sequence[Path], split: str, count: int, *, reporter: Reporter | None = None) -> None:
    """Call ``frames`` for the runs that lack ``count`` frames by the checkpoint that was scored last."""
    for run in runs:
        video = video_of(run, split)
        if video is None or len(video.prediction) < count:
            frames(run, split, count, reporter=reporter)
