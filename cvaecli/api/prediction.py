"""Predict videos, and show them beside the truth.

Videos are predicted several at a time and written piece by piece: memory does not grow with their length.
"""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .. import media, metrics
from ..config.schema import RunConfig
from ..data.clip import Clip, VideoData
from ..engine.batches import stacked
from ..engine.device import Device
from ..engine.evaluate import neighbours
from ..engine.portable import Call, played
from ..engine.prefetch import on_host
from ..engine.rollout import Noise, prior_noise, rollout
from ..errors import UserError
from ..media import panels
from ..media import submission as submissions
from ..media.background import Consumer
from ..media.panels import Frame
from ..models.base import VideoCVAE
from ..reporter import Reporter, Silent
from .exporting import onnx_calls
from .loading import RUNS, TRAINING_ONLY, Opened, load_run_data, open_run, refuse_overrides

UNUSED = {**TRAINING_ONLY, "eval.samples": "use --samples (in Python: samples)"}
"""Keys that have no effect on a prediction."""
BACKENDS = ("pytorch", "onnx")
"""What computes the frames."""


class Video(NamedTuple):
    """A video to predict.

    Attributes:
        clip: gives the first frames and the conditions.
        frames: number of its frames, including the given ones.
        sample: number of the sample; each has its own noise.
    """

    clip: Clip
    frames: int
    sample: int = 0


class _Job(NamedTuple):
    """A video to predict, and where to write it: a file, rows of the submission from ``row`` on, or both."""

    video: Video
    path: Path | None
    row: int | None


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
    backend: str = "pytorch",
    fps: float = 25,
    scale: int | None = None,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Predict videos from their first frames and their conditions, in constant memory.

    Up to ``eval.batch_size`` videos (sequences, samples) of equal length are predicted together. Threads
    write the files meanwhile.

    Args:
        run: see ``run.find``.
        overrides: of data.*, runtime.*, seed, and of eval.prior, eval.batch_size and eval.chunk.
        out: see ``media.write``; ``predictions/<split>-<sequence>.gif`` in the run when unset. With
            several sequences or samples, their numbers are added to the name.
        frames: frames of the output, including the given ones; when unset, one for every condition.
        split: when unset, test if there is one, else val.
        sequence: number of a sequence, or ``all``.
        samples: predictions of each sequence, with different noise.
        submission: also write the course's CSV: all sequences of the split, first sample.
        backend: one of ``BACKENDS``; ``onnx`` takes the files that ``export`` left in the run, and the CPU.
        scale: whole-number enlargement of pictures; chosen by ``media.write`` for viewing when unset.

    Returns:
        The files written.
    """
    reporter = reporter or Silent()
    opened, calls = _opened(run, overrides, runs, backend)
    home, _, config, model, device, _ = opened
    data = load_run_data(opened, (split,) if split else (), reporter)
    split = split or next((s for s in ("test", "val", "train") if s in data.splits), "val")
    chosen = dict(find_clips(data, split, sequence))
    several = len(chosen) > 1 or out is None
    out = home.path / "predictions" / f"{split}.gif" if out is None else Path(out)
    jobs, row = [], 0
    for number, clip in find_clips(data, split, "all") if submission else chosen.items():
        n = _length(clip, frames, config)
        for sample in range(samples if number in chosen else 1):
            parts = [*([number] if several else []), *([f"s{sample}"] if samples > 1 else [])]
            path = _numbered(out, *parts) if number in chosen else None
            jobs.append(_Job(Video(clip, n, sample), path, row if submission and not sample else None))
        row += n
    save = functools.partial(media.write, fps=fps, scale=scale)
    with submissions.opened(submission, data.frame_size) if submission else nullcontext() as csv:
        for group in neighbours(jobs, lambda job: job.video.frames, config.eval.batch_size):
            stream = predicted(model, [job.video for job in group], config, device, calls)
            _write(group, stream, save, csv, reporter)
    files = [job.path for job in jobs if job.path is not None]
    return files if submission is None else [*files, submission]


def _opened(
    run: str | Path | None, overrides: Sequence[str], runs: Path, backend: str
) -> tuple[Opened, Mapping[str, Call] | None]:
    """The run, and the graphs that predict in place of its model, if the backend has any."""
    if backend not in BACKENDS:
        raise UserError(f"--backend {backend}: no such backend", f"there are: {', '.join(BACKENDS)}")
    if backend == "pytorch":
        return open_run(run, overrides, runs, unused=UNUSED), None
    fixed = dict.fromkeys(("runtime.device", "runtime.precision"), "onnx predicts on the CPU in float32")
    refuse_overrides(overrides, ("",), fixed)
    opened = open_run(run, [*overrides, "runtime.device=cpu", "runtime.precision=fp32"], runs, unused=UNUSED)
    name = str(opened.run.path if run is None or run == "latest" else run)
    own = [each for each in overrides if each.startswith(("data.", "eval.average_flips="))]
    return opened, onnx_calls(opened, shlex.join(["cvae", "export", name, "--format", "onnx", *own]))


def _write(
    group: Sequence[_Job],
    stream: Iterator[npt.NDArray[np.uint8]],
    save: Callable[..., int],
    csv: submissions.Submission | None,
    reporter: Reporter,
) -> None:
    """Pass ``stream [B, k, H, W, C]`` to the writers of its videos, each in a thread of its own."""
    n, names = group[0].video.frames, list(dict.fromkeys(job.video.clip.name for job in group))
    title = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    began, done = time.perf_counter(), 0
    with reporter.task(f"Predicting {title}") as advance, ExitStack() as stack:
        writers: list[tuple[int, Consumer[Frame]]] = []
        for b, job in enumerate(group):
            if job.path is not None:
                work = functools.partial(save, out=job.path, total=n)
                writers.append((b, stack.enter_context(Consumer(work))))
        rows = [(b, job.row) for b, job in enumerate(group) if job.row is not None]
        if csv is not None and rows:
            for (b, row), file in zip(rows, stack.enter_context(csv.sequences(len(rows))), strict=True):
                work = functools.partial(submissions.write_rows, file=file, first=row)
                writers.append((b, stack.enter_context(Consumer(work))))
        for piece in stream:
            for b, writer in writers:
                writer.put(piece[b])
            done += piece.shape[1]
            advance(done * len(group), n * len(group))
    seconds = time.perf_counter() - began
    videos = f"{len(group)} videos of " if len(group) > 1 else ""
    reporter.note(f"{title}: predicted and wrote {videos}{n} frames in {seconds:.2f} s")


def find_clips(data: VideoData, split: str, sequence: int | str) -> list[tuple[int, Clip]]:
    """One clip of a split, or all, each with its number. Raises `UserError` if there is no such clip."""
    if split not in data.splits:
        raise UserError(
            f"--split {split}: the data have no such split", f"there are: {', '.join(data.splits)}"
        )
    clips = list(enumerate(data.splits[split]))
    if sequence == "all":
        return clips
    number = int(sequence)
    if not 0 <= number < len(clips):
        raise UserError(f"--sequence {number}: {split} has sequences 0 to {len(clips) - 1}")
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
    """``seq.gif`` becomes ``seq-0.gif`` or ``seq-0-s1.gif``; a folder's name gets the numbers at its end."""
    if not parts:
        return path
    path = path if path.name else path.resolve()  # "." has no name to add to
    return path.with_name("-".join([path.stem, *map(str, parts)]) + path.suffix)


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
        split: when unset, the first of test, val, train that has true frames. A clip without them has no
            panel for the truth.

    Returns:
        The file; ``RUN/predictions/<split>-<sequence>-panels.gif`` when ``out`` is unset.
    """
    reporter = reporter or Silent()
    opened = open_run(run, overrides, runs, unused={**TRAINING_ONLY, "eval.samples": "one sample is shown"})
    home, _, config, model, device, _ = opened
    data = load_run_data(opened, (split,) if split else (), reporter)
    split = split or _split_with_truth(data, config)
    ((number, clip),) = find_clips(data, split, int(sequence))
    n = _length(clip, frames, config)
    out = home.path / "predictions" / f"{split}-{number}-panels.gif" if out is None else Path(out)
    scale = scale or max(1, 200 // clip.frames.shape[2])

    def write(prediction: Iterator[Frame]) -> None:
        streams: dict[str, Iterator[Frame]] = {}
        if clip.n_frames >= n:
            streams["truth"] = (np.moveaxis(frame, 0, -1) for frame in clip.frames[:n])
        streams["prediction"] = prediction
        if clip.condition.ndim == 4:
            streams["condition"] = (np.moveaxis(image, 0, -1) for image in clip.condition[:n])
        panelled = panels.side_by_side(list(streams.values()), list(streams), scale=scale, counter=True)
        media.write(panelled, out, fps=fps, total=n)

    done = 0
    with reporter.task(f"Exporting {clip.name}") as advance, Consumer(write) as writer:
        for piece in predicted(model, [Video(clip, n)], config, device):
            writer.put(piece[0])
            done += piece.shape[1]
            advance(done, n)
    return out


def _split_with_truth(data: VideoData, config: RunConfig) -> str:
    """The first of test, val and train that has true frames to predict; else any split."""
    for split in ("test", "val", "train"):
        if any(clip.n_frames > config.data.n_past for clip in data.splits.get(split, [])):
            return split
    return next(iter(data.splits), "val")


def predicted(
    model: VideoCVAE,
    videos: Sequence[Video],
    config: RunConfig,
    device: Device,
    calls: Mapping[str, Call] | None = None,
) -> Iterator[npt.NDArray[np.uint8]]:
    """The given frames, then the predicted ones, of videos of equal length.

    Each video has its own noise, a function of (seed, sample, clip, frame). A video is therefore the same
    whatever others are predicted with it, up to rounding: the order of additions may depend on the batch.
    Conditions are read from the memory map piece by piece, as they are needed.

    Args:
        calls: the model's graphs (``portable.played``); they predict in its place, on the CPU.

    Yields:
        uint8 ``[B, k, H, W, C]``: first the given frames, then up to ``eval.chunk`` predicted ones at a time.
    """
    P, n, chunk = config.data.n_past, videos[0].frames, config.eval.chunk

    def load(part: str, first: int, last: int) -> torch.Tensor:
        return stacked([getattr(video.clip, part)[first:last] for video in videos], device.torch)

    yield np.moveaxis(np.stack([video.clip.frames[:P] for video in videos]), 2, -1)
    conditions = (load("condition", first, min(first + chunk, n)) for first in range(P, n, chunk))
    past, past_condition = load("frames", 0, P), load("condition", 0, P)
    noise = _noise(model, videos, config)
    if calls is None:
        pieces = rollout(model, past, past_condition, conditions, noise, device)
    else:
        pieces = played(calls, past, past_condition, conditions, noise)
    shown = (metrics.as_bytes(x_hat).movedim(2, -1).contiguous() for x_hat in pieces)
    for piece in on_host(shown):
        yield piece.numpy()


def _noise(model: VideoCVAE, videos: Sequence[Video], config: RunConfig) -> Noise:
    """The noise of each row, the same as if the video were predicted alone."""
    alone = [
        prior_noise(
            model,
            [video.clip.name],
            (video.clip.frames.shape[2], video.clip.frames.shape[3]),
            prior=config.eval.prior,
            seed=config.seed,
            n_past=config.data.n_past,
            sample=video.sample,
        )
        for video in videos
    ]
    return lambda first, count: [
        torch.cat(rows) for rows in zip(*(one(first, count) for one in alone), strict=True)
    ]
