"""Several futures of one clip, sampled and kept with the truth for `cvae plot samples`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..engine.evaluate import predicted_frames
from ..errors import UserError
from ..files import replacing
from ..reporter import Reporter, Silent
from .loading import RUNS, load_data, open_run
from .streaming import Video, predicted


def futures(
    run: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    split: str = "test",
    sequence: int = 0,
    samples: int = 16,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> Path:
    """Roll one clip out several times; the samples are the same as those of ``validate``.

    Args:
        run: see ``run.find``.
        overrides: of data.*, eval.*, runtime.* and seed.
        split, sequence: which clip; it must have true frames to predict.
        samples: N, at least 2.

    Returns:
        ``RUN/predictions/<split>-<sequence>-futures.npz``: ``truth`` uint8 ``[T, H, W, 3]``, ``samples``
        uint8 ``[N, T - first, H, W, 3]``, ``first``: the first predicted frame's number.

    Raises:
        UserError: no such clip, or one without frames to predict.
    """
    reporter = reporter or Silent()
    home, _, config, model, device, _ = open_run(run, overrides, runs)
    clips = load_data(config, (split,), reporter).splits.get(split, [])
    if not 0 <= sequence < len(clips):
        raise UserError(f"--sequence {sequence}: {split} has {len(clips)} sequences, counted from 0")
    clip, P = clips[sequence], config.data.n_past
    K = predicted_frames(clip, P, config.data.n_future)
    if K < 1:
        raise UserError(f"{clip.name}: has no true frames to compare with", "choose another split")
    drawn = []
    with reporter.task(f"Sampling futures of {clip.name}") as advance:
        for sample in range(samples):
            _given, *pieces = predicted(model, [Video(clip, P + K, sample)], config, device)
            drawn.append(np.concatenate(pieces, 1)[0])
            advance(sample + 1, samples)
    path = home.path / "predictions" / f"{split}-{sequence}-futures.npz"
    truth = np.moveaxis(np.array(clip.frames[: P + K]), 1, -1)
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, truth=truth, samples=np.stack(drawn), first=P)
    return path
