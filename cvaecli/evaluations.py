"""Reading and writing a run's evaluations, ``eval/<split>/``: metrics.json, per_frame.csv and frames.npz.

``<split>`` is ``train``, ``val`` or ``test``; with exchanged conditions it is ``<split>-swapped-<what>``.
Neither torch nor the run's data is needed. ``runs/README.md`` describes the files.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import UserError
from .files import replacing, write_csv, write_text
from .tables import AbsentError, Array, read_table

SWAPPED = "-swapped-"
COMPARABLE = (
    *("split", "n_past", "n_future", "n_future_min", "n_future_max", "samples", "prior"),
    *("average_flips", "conditions"),
    *("psnr", "ssim", "frame_size", "data_fingerprint", "checkpoint"),
)
"""Entries of the protocol that must agree for numbers to be comparable, as must the number of frames. Device,
precision, seed and training step may differ."""

LATER = {"average_flips": False}
"""What the protocol of an older evaluation does not say."""

PER_FRAME_OPTIONAL = (
    *("ssim", "psnr_one_step", "ssim_one_step", "psnr_best", "psnr_worst", "ssim_best", "ssim_worst"),
    *("psnr_per_channel", "diversity", "psnr_posterior", "kl", "repeat_last_past", "mean_frame"),
)
"""Columns of ``per_frame.csv`` that an older evaluation may lack."""


def folder_of(run: Path, split: str = "val") -> Path:
    """``RUN/eval/<split>``, which need not exist."""
    return run / "eval" / split


def command_for(run: Path, split: str = "val") -> str:
    """The command that makes this evaluation."""
    split, _, swapped = split.partition(SWAPPED)
    return f"cvae validate {run} --split {split}" + (f" --swap {swapped}" if swapped else "")


def read_summary(run: Path, split: str = "val") -> dict[str, Any]:
    """``metrics.json``: the numbers of an evaluation, with their protocol under ``protocol``.

    Raises:
        AbsentError: the run has no such evaluation; the hint is the command that makes it.
        UserError: the file is damaged.
    """
    path = folder_of(run, split) / "metrics.json"
    if not path.is_file():
        raise AbsentError(f"{path}: not there", f"run: {command_for(run, split)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for number in (content["psnr"], content["baselines"]["repeat_last_past"]["psnr"]):
            float(number or 0)  # None where a prediction was not finite
        content["protocol"] = LATER | content["protocol"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({type(error).__name__}: {error})", f"run again: {command_for(run, split)}"
        ) from None
    return dict(content)


def read_per_frame(run: Path, split: str = "val") -> dict[str, Array]:
    """``per_frame.csv``: float64 ``[rows]`` for each column; NaN where there is no number.

    ``clip`` is the index of the row's clip, counted in the order of the file; ``frame`` the frame's number
    within its clip. Columns that the file lacks are all NaN.

    Raises:
        AbsentError: the run has no such evaluation; the hint is the command that makes it.
        UserError: the file is damaged.
    """
    path = folder_of(run, split) / "per_frame.csv"
    remedy = f"run: {command_for(run, split)}"
    return read_table(path, ["frame", "psnr"], PER_FRAME_OPTIONAL, text="clip", remedy=remedy)


def write(run: Path, split: str, summary: Mapping[str, Any], per_frame: Sequence[Mapping[str, Any]]) -> Path:
    """Write both files, the summary last; returns their folder."""
    folder = folder_of(run, split)
    write_csv(folder / "per_frame.csv", list(per_frame[0]), per_frame)
    write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    return folder


class ClipFrames(NamedTuple):
    """Evenly spaced frames of one clip.

    Attributes:
        numbers: numbers of the frames within the clip, ``[K]``.
        rows: uint8 ``[K, H, W, 3]`` by name: truth, posterior, rollout (sample 0), ``best sample`` if there
            are several samples, and condition if it is a picture.
    """

    name: str
    numbers: np.ndarray
    rows: dict[str, np.ndarray]


def write_frames(run: Path, split: str, clips: Sequence[ClipFrames]) -> Path:
    """Write ``frames.npz``: ``names``; for the n-th clip ``<n>/frames`` (the numbers) and ``<n>/<row>``."""
    path = folder_of(run, split) / "frames.npz"
    arrays = {"names": np.array([clip.name for clip in clips])}
    for n, clip in enumerate(clips):
        arrays |= {f"{n}/frames": clip.numbers, **{f"{n}/{row}": frames for row, frames in clip.rows.items()}}
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # mypy takes an array for the flag allow_pickle
    return path


def read_frames(run: Path, split: str = "val") -> list[ClipFrames]:
    """``frames.npz``: pictures of the first clips.

    Raises:
        AbsentError: the run has none, for example because an earlier version made its evaluation.
        UserError: the file is damaged.
    """
    path = folder_of(run, split) / "frames.npz"
    if not path.is_file():
        raise AbsentError(f"{path}: not there", f"run: {command_for(run, split)}")
    clips = []
    try:
        with np.load(path) as file:
            for n, name in enumerate(file["names"]):
                own = [key for key in file.files if key.startswith(f"{n}/") and key != f"{n}/frames"]
                rows = {key.partition("/")[2]: file[key] for key in own}
                clips.append(ClipFrames(str(name), file[f"{n}/frames"], rows))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error})", f"run again: {command_for(run, split)}") from None
    return clips
