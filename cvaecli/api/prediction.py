"""Predict videos, and show them beside the truth."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..config.schema import RunConfig
from ..data.clip import Clip, VideoData
from ..engine.evaluate import neighbours
from ..errors import UserError
from ..media import panels
from ..media import submission as submissions
from ..media import video as media
from ..media.background import Consumer
from ..media.panels import Frame
from ..reporter import Reporter, Silent
from .loading import RUNS, load_data, open_run
from .streaming import Video, predicted


class _Order(NamedTuple):
    """A video to predict, and where it goes: a file, rows of the submission from ``row`` on, or both."""

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
    fps: float = 25,
    scale: int = 1,
    runs: Path = RUNS,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Predict videos from their first frames and their conditions, in constant memory.

    Up to ``eval.batch_size`` videos of equal length (sequences, samples) are predicted together; files are
    written in threads meanwhile.

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
    chosen = dict(_chosen(data, split, sequence))
    out = home.path / "predictions" / f"{split}.gif" if out is None else Path(out)
    several = len(chosen) > 1 or out.parent == home.path / "predictions"
    orders, row = [], 0
    for number, clip in _chosen(data, split, "all") if submission else chosen.items():
        n = _length(clip, frames, config)
        for sample in range(samples if number in chosen else 1):
            parts = [*([number] if several else []), *([f"s{sample}"] if samples > 1 else [])]
            path = _numbered(out, *parts) if number in chosen else None
            orders.append(_Order(Video(clip, n, sample), path, row if submission and not sample else None))
        row += n
    save = functools.partial(media.write, fps=fps, scale=scale)
    with submissions.opened(submission, data.frame_size) if submission else nullcontext() as csv:
        for group in neighbours(orders, lambda order: order.video.frames, config.eval.batch_size):
            stream = predicted(model, [order.video for order in group], config, device)
            _write(group, stream, save, csv, reporter)
    files = [order.path for order in orders if order.path is not None]
    return files if submission is None else [*files, submission]


def _write(
    group: Sequence[_Order],
    stream: Iterator[npt.NDArray[np.uint8]],
    save: Callable[..., int],
    csv: submissions.Submission | None,
    reporter: Reporter,
) -> None:
    """Hand ``stream [B, k, H, W, C]`` on to the writers of its videos, each in a thread of its own."""
    n, names = group[0].video.frames, list(dict.fromkeys(order.video.clip.name for order in group))
    title = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    began, done = time.perf_counter(), 0
    with reporter.task(f"Predicting {title}") as advance, ExitStack() as stack:
        writers: list[tuple[int, Consumer[Frame]]] = []
        for b, order in enumerate(group):
            if order.path is not None:
                work = functools.partial(save, out=order.path, total=n)
                writers.append((b, stack.enter_context(Consumer(work))))
        rows = [(b, order.row) for b, order in enumerate(group) if order.row is not None]
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


def _most_telling(data: VideoData, config: RunConfig) -> str:
    for split in ("test", "val", "train"):
        if any(clip.n_frames > config.data.n_past for clip in data.splits.get(split, [])):
            return split
    return next(iter(data.splits), "val")
