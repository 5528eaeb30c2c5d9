"""Predictions of one clip as arrays in the run folder: for ``plot("samples")`` and the players of pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import replacing
from ..pages.pictures import video_of
from ..reporter import Reporter, Silent


def sample(
    run: str | Path,
    split: str = "test",
    sequence: int = 0,
    *,
    samples: int = 1,
    frames: int | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Predict one clip once or several times. ``validate`` scores the same samples.

    Args:
        run: see ``run.find``; its data must be there.
        split, sequence: which clip; it must have true frames to predict.
        samples: N, at least 1.
        frames: frames of the video, including the given ones, at most the clip's; as many as a validation
            scores when unset.

    Returns:
        ``RUN/predictions/<split>-<sequence>-futures.npz``, or ``-frames.npz`` for one sample: ``truth`` uint8
        ``[T, H, W, 3]``, ``samples`` uint8 ``[N, T - first, H, W, 3]``, ``first``: number of the first
        predicted frame, ``checkpoint``: fingerprint of the weights, and, if conditions are pictures,
        ``condition`` uint8 ``[T, H, W, 3]``.

    Raises:
        UserError: no checkpoint, no data, no such clip, or one without true frames to predict.
    """
    from ..checkpoint import fingerprint
    from ..engine.evaluate import predicted_frames
    from .loading import load_run_data, open_run
    from .prediction import Video, find_clips, predicted

    reporter = reporter or Silent()
    opened = open_run(run, ())
    home, _, config, model, device, saved = opened
    ((_, clip),) = find_clips(load_run_data(opened, (split,), reporter), split, sequence)
    P = config.data.n_past
    if clip.n_frames <= P:
        raise UserError(f"{clip.name}: has no true frames to compare with", "choose another split")
    total = P + predicted_frames(clip, P, config.data.n_future if frames is None else max(1, frames - P))
    done = 0
    drawn = []
    with reporter.task(f"Predicting {clip.name} with {home.name}") as advance:
        for number in range(samples):
            pieces = []
            for piece in predicted(model, [Video(clip, total, number)], config, device):
                pieces.append(piece[0])
                done += len(pieces[-1])
                advance(done, samples * total)
            drawn.append(np.concatenate(pieces)[P:])
    arrays = {"truth": np.moveaxis(np.array(clip.frames[:total]), 1, -1), "samples": np.stack(drawn)}
    arrays |= {"first": np.array(P), "checkpoint": np.array(fingerprint(saved))}
    if clip.condition.ndim == 4:
        arrays["condition"] = np.moveaxis(np.array(clip.condition[:total]), 1, -1)
    kind = "frames" if samples == 1 else "futures"
    path = home.path / "predictions" / f"{split}-{sequence}-{kind}.npz"
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path


def add_frames(runs: Sequence[Path], split: str, count: int, *, reporter: Reporter | None = None) -> None:
    """Predict the first clip of a split, for the runs that lack ``count`` frames of it by the weights that
    were scored last."""
    for run in runs:
        video = video_of(run, split)
        if video is None or len(video.prediction) < count:
            sample(run, split, frames=count, reporter=reporter)
