"""Reading a run's evaluations, ``eval/<split>/``: metrics.json, per_frame.csv and frames.npz."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from .runs import Run
from .tables import AbsentError, Array, read_table

PROTOCOL = (
    *("split", "n_past", "n_future", "predicted", "samples", "prior", "conditions", "batch_norm", "psnr"),
    *("frame_size", "data_fingerprint", "checkpoint"),
)
"""What must agree before decibels are compared. Device, precision, seed and training step may differ."""

_OPTIONAL = (
    *("psnr_one_step", "psnr_best", "psnr_worst", "psnr_per_channel", "psnr_posterior", "kl"),
    *("repeat_last_past", "mean_frame"),
)


def read_summary(run: Path, split: str) -> dict[str, Any]:
    """``metrics.json``.

    Raises:
        AbsentError: the run has no such evaluation.
        UserError: the file is damaged.
    """
    path = run / "eval" / split / "metrics.json"
    if not path.is_file():
        raise AbsentError(f"there is no {path}", f"run: {command_for(run, split)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        float(content["psnr"] or 0), float(content["baselines"]["repeat_last_past"]["psnr"] or 0)
        dict(content["protocol"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error!r})", f"run again: {command_for(run, split)}") from error
    return dict(content)


def read_per_frame(run: Path, split: str) -> dict[str, Array]:
    """``per_frame.csv``: float64 ``[rows]`` for each column; ``clip`` is the index of the row's clip."""
    path = run / "eval" / split / "per_frame.csv"
    return read_table(
        path, ["frame", "psnr"], _OPTIONAL, text="clip", remedy=f"run: {command_for(run, split)}"
    )


def command_for(run: Path, split: str) -> str:
    """The command that makes this evaluation."""
    split, _, swapped = split.partition("-swapped")
    return f"cvae validate {run} --split {split}" + (" --swap-conditions" if swapped or _ else "")


class ClipFrames(NamedTuple):
    """Evenly spaced frames of one clip.

    Attributes:
        numbers: of the frames, ``[K]``.
        rows: uint8 ``[K, H, W, 3]`` by name: truth, posterior, rollout, ``best sample``, condition.
    """

    name: str
    numbers: npt.NDArray[np.int64]
    rows: dict[str, npt.NDArray[np.uint8]]


def read_frames(run: Path, split: str) -> list[ClipFrames]:
    """``frames.npz``: the first clips' pictures.

    Raises:
        AbsentError: the run has none (an evaluation of an earlier version).
        UserError: the file is damaged.
    """
    path = run / "eval" / split / "frames.npz"
    if not path.is_file():
        raise AbsentError(f"there is no {path}", f"run: {command_for(run, split)}")
    try:
        with np.load(path) as file:
            clips = []
            for n, name in enumerate(file["names"]):
                own = [key for key in file.files if key.startswith(f"{n}/") and key != f"{n}/frames"]
                rows = {key.partition("/")[2]: file[key] for key in own}
                clips.append(ClipFrames(str(name), file[f"{n}/frames"], rows))
            return clips
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is damaged ({error})", f"run again: {command_for(run, split)}") from error


def best_split(runs: Sequence[Run], file: str = "per_frame.csv") -> str:
    """The split that most runs were evaluated on; val where several are, or none."""
    have = Counter(path.parent.name for run in runs for path in run.folder.glob(f"eval/*/{file}"))
    most = max(have.values(), default=0)
    return min(
        (split for split, n in have.items() if n == most), key=lambda s: (s != "val", s), default="val"
    )


# ---------------------------------------------------------------- protocol


def protocol_of(summary: dict[str, Any]) -> dict[str, Any]:
    """How an evaluation was made: ``protocol`` of metrics.json, and ``predicted``: its frames and clips."""
    clips = summary.get("clips")
    return {
        **summary["protocol"],
        "predicted": [summary.get("frames"), len(clips) if isinstance(clips, list) else None],
    }


def read_protocol(run: Run, split: str) -> dict[str, Any]:
    """See ``protocol_of``; empty where the run has no metrics.json."""
    try:
        return protocol_of(read_summary(run.folder, split))
    except AbsentError:
        return {}


def differing(protocols: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The parts of ``PROTOCOL`` that are not the same in all that are known, with their distinct values."""
    known = [each for each in protocols if each]
    values = {key: [each.get(key) for each in known] for key in PROTOCOL}
    return {key: _distinct(found) for key, found in values.items() if len(_distinct(found)) > 1}


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for n, value in enumerate(values) if value not in values[:n]]


_WORDS = {"predicted": "predicted frames, clips", "data_fingerprint": "data", "psnr": "definition of PSNR"}


def in_words(key: str, value: Any) -> str:
    """One part of a protocol: ``samples 16``."""
    if isinstance(value, list):
        value = " x ".join(str(part) for part in value if part is not None)
    return f"{_WORDS.get(key, key.replace('_', ' '))} {str(value)[:40]}"


def describe(split: str, protocol: dict[str, Any], frames: int, clips: int) -> str:
    """What was measured and how, in one line."""
    words = [f"{split}: {frames} predicted frames" + (f" of {clips} clips" if clips > 1 else "")]
    if "prior" in protocol:
        words.append("z at the prior's mean" if protocol["prior"] == "mean" else "z sampled from the prior")
    if "samples" in protocol:
        n = protocol["samples"]
        words.append(f"mean of {n} samples" if n != 1 else "1 sample")
    if protocol.get("conditions", "the clip's own") != "the clip's own":
        words.append(f"conditions: {protocol['conditions']}")
    return ", ".join(words)
