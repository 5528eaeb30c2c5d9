"""Predict videos, and show them beside the truth."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import media, metrics, panels
from .. import submission as submissions
from ..data.clip import Clip, VideoData
from ..engine.batches import to_float
from ..engine.device import Device
from ..engine.rollout import prior_noise, rollout
from ..errors import UserError
from ..models.base import VideoCVAE
from ..reporter import Reporter, Silent
from ..schema import RunConfig
from .joining import RUNS, load_data, open_run


def predict(
    run: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    frames: int | None = None,
    split: str | None = None,
    sequence: int | str = 0,
    samples: int = 1,
    submission: Path | None = None,
    fps: float = 25,
    scale: int = 1,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Predict videos from their first frames and their conditions, in constant memory.

    Args:
        out: see ``media.write``; ``predictions/<split>-<sequence>.gif`` in the run when unset. With
            several sequences or samples, their numbers are added to the name.
        frames: frames of the output, given ones included; all that the conditions allow when unset.
        split: test where there is one, else val.
        sequence: number of a sequence, or ``all``.
        samples: predictions of each sequence, with different noise.
        submission: also write the course's CSV: all sequences of the split, first sample.

    Returns:
        The files written.
    """
    reporter = reporter or Silent()
    home, _, config, model, device, _ = open_run(run, overrides, runs)
    data = load_data(config, (split,) if split else (), reporter)
    split = split or next((s for s in ("test", "val", "train") if s in data.splits), "val")
    clips = _chosen(data, split, sequence)
    everything = [clip for _, clip in _chosen(data, split, "all")] if submission else []
    lengths = {clip.name: _length(clip, frames, config) for clip in [*(c for _, c in clips), *everything]}
    out = home.path / "predictions" / f"{split}.gif" if out is None else Path(out)
    several = len(clips) > 1 or out.parent == home.path / "predictions"
    written = []
    for number, clip in clips:
        n = lengths[clip.name]
        for sample in range(samples):
            path = _numbered(out, *([number] if several else []), *([f"s{sample}"] if samples > 1 else []))
            with reporter.task(f"Predicting {clip.name}") as advance:
                began = time.perf_counter()
                stream = _predicted(model, clip, n, config, device, sample)
                media.write(_counted(stream, n, advance), path, fps=fps, scale=scale, total=n)
                seconds = time.perf_counter() - began
            reporter.note(f"{clip.name}: predicted and wrote {n} frames in {seconds:.2f} s")
            written.append(path)
    if submission is not None:
        with reporter.task("Writing the submission") as advance:
            streams = (_predicted(model, c, lengths[c.name], config, device, 0) for c in everything)
            total = sum(lengths[clip.name] for clip in everything)
            submissions.write(_counted(itertools.chain.from_iterable(streams), total, advance), submission)
        written.append(submission)
    return written


def _chosen(data: VideoData, split: str, sequence: int | str) -> list[tuple[int, Clip]]:
    if split not in data.splits:
        raise UserError(
            f"--split {split}: the data have no such split", f"there are: {', '.join(data.splits)}"
        )
    clips = list(enumerate(data.splits[split]))
    if sequence == "all":
        return clips
    number = int(sequence)
    if not 0 <= number < len(clips):
        raise UserError(
            f"--sequence {number}: {split} has sequences 0 to {len(clips) - 1}", "or use --sequence all"
        )
    return [clips[number]]


def _length(clip: Clip, frames: int | None, config: RunConfig) -> int:
    """Frames of the output, given ones included."""
    n_past = config.data.n_past
    if clip.n_frames < n_past:
        raise UserError(f"{clip.name}: has {clip.n_frames} given frames, the model needs {n_past}")
    if frames is None:
        limit = config.data.n_future
        return clip.n_steps if limit is None else min(clip.n_steps, n_past + limit)
    if not n_past < frames <= clip.n_steps:
        raise UserError(
            f"--frames {frames}: {clip.name} has conditions for {clip.n_steps} frames, {n_past} given",
            f"choose {n_past + 1} to {clip.n_steps}",
        )
    return frames


def _numbered(path: Path, *parts: object) -> Path:
    """``seq.gif`` becomes ``seq-0.gif``, ``seq-0-s1.gif``; folders get the numbers at their end."""
    if not parts:
        return path
    path = path if path.name else path.resolve()  # "." has no name to add to
    return path.with_name("-".join([path.stem, *map(str, parts)]) + path.suffix)


def _counted(frames: Iterator[np.ndarray], total: int, advance: Any) -> Iterator[np.ndarray]:
    for done, frame in enumerate(frames, start=1):
        yield frame
        advance(done, total)


def _predicted(
    model: VideoCVAE, clip: Clip, n: int, config: RunConfig, device: Device, sample: int
) -> Iterator[np.ndarray]:
    """The given frames, then the predicted ones up to ``n`` in all, uint8 ``[H, W, C]``."""
    P, chunk = config.data.n_past, config.eval.chunk

    def load(array: np.ndarray, first: int, last: int) -> torch.Tensor:
        return to_float(torch.from_numpy(np.array(array[first:last])).to(device.torch))[None]

    conditions = (load(clip.condition, first, min(first + chunk, n)) for first in range(P, n, chunk))
    yield from np.moveaxis(np.array(clip.frames[:P]), 1, -1)
    noise = prior_noise(
        model,
        [clip.name],
        (clip.frames.shape[2], clip.frames.shape[3]),
        prior=config.eval.prior,
        seed=config.seed,
        n_past=P,
        sample=sample,
    )
    past, past_condition = load(clip.frames, 0, P), load(clip.condition, 0, P)
    for x_hat in rollout(model, past, past_condition, conditions, noise, device):
        values = metrics.shown(x_hat[0]).mul(255).round().byte()
        yield from values.movedim(1, -1).cpu().numpy()


def export_gif(
    run: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    frames: int | None = None,
    split: str | None = None,
    sequence: int = 0,
    fps: float = 25,
    scale: int | None = None,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> Path:
    """Truth, prediction and condition side by side, captioned, as a GIF (or MP4, by ``out``'s suffix).

    Args:
        scale: whole-number enlargement; about 200 pixels of height when unset.
        split: the first of test, val, train that has true frames (then without the truth's panel).

    Returns:
        The file; ``RUN/predictions/<split>-<sequence>-panels.gif`` when ``out`` is unset.
    """
    reporter = reporter or Silent()
    home, _, config, model, device, _ = open_run(run, overrides, runs)
    data = load_data(config, (split,) if split else (), reporter)
    split = split or _most_telling(data, config)
    ((number, clip),) = _chosen(data, split, int(sequence))
    n = _length(clip, frames, config)
    streams: dict[str, Iterator[np.ndarray]] = {}
    if clip.n_frames >= n:
        streams["truth"] = (np.moveaxis(frame, 0, -1) for frame in clip.frames[:n])
    streams["prediction"] = _predicted(model, clip, n, config, device, 0)
    if clip.condition.ndim == 4:
        streams["condition"] = (np.moveaxis(image, 0, -1) for image in clip.condition[:n])
    out = home.path / "predictions" / f"{split}-{number}-panels.gif" if out is None else Path(out)
    scale = scale or max(1, 200 // clip.frames.shape[2])
    with reporter.task(f"Exporting {clip.name}") as advance:
        panelled = panels.side_by_side(list(streams.values()), list(streams), scale=scale, counter=True)
        media.write(_counted(panelled, n, advance), out, fps=fps, total=n)
    return out


def _most_telling(data: VideoData, config: RunConfig) -> str:
    for split in ("test", "val", "train"):
        if any(clip.n_frames > config.data.n_past for clip in data.splits.get(split, [])):
            return split
    return next(iter(data.splits), "val")
