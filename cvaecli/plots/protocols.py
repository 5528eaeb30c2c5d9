"""The protocols of evaluations: which are comparable, and their description in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..evaluations import COMPARABLE, read_summary
from ..tables import AbsentError
from .runs import Run

PROTOCOL = (*COMPARABLE, "predicted")
"""What must agree for PSNRs to be comparable; ``predicted`` is the number of predicted frames."""


def best_split(runs: Sequence[Run], file: str = "per_frame.csv") -> str:
    """The split that most runs were evaluated on; val in case of a tie, or if there is none."""
    have = Counter(path.parent.name for run in runs for path in run.folder.glob(f"eval/*/{file}"))
    most = max(have.values(), default=0)
    return min(
        (split for split, n in have.items() if n == most), key=lambda s: (s != "val", s), default="val"
    )


def protocol_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The ``protocol`` of metrics.json, with its numbers of frames and clips under ``predicted``."""
    clips = summary.get("clips")
    frames = (
        f"{summary.get('frames')} in {len(clips)} clip{'s' * (len(clips) != 1)}"
        if isinstance(clips, list)
        else None
    )
    return {**summary["protocol"], "predicted": frames}


def read_protocol(run: Run, split: str) -> dict[str, Any]:
    """See ``protocol_of``; empty if the run has no metrics.json."""
    try:
        return protocol_of(read_summary(run.folder, split))
    except AbsentError:
        return {}


def differing(protocols: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The parts of ``PROTOCOL`` that differ among the known protocols, with their distinct values."""
    known = [each for each in protocols if each]
    values = {key: [each.get(key) for each in known] for key in PROTOCOL}
    return {key: _distinct(found) for key, found in values.items() if len(_distinct(found)) > 1}


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for n, value in enumerate(values) if value not in values[:n]]


_WORDS = {"predicted": "predicted frames", "data_fingerprint": "data", "psnr": "definition of PSNR"}


def in_words(key: str, value: Any) -> str:
    """One part of a protocol: ``samples 16``."""
    return f"{_WORDS.get(key, key.replace('_', ' '))} {_plain(value)}"


def against(key: str, values: Sequence[Any]) -> str:
    """A part with several values: ``samples 1 / 16``."""
    return " / ".join([in_words(key, values[0]), *map(_plain, values[1:])])


def _plain(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)[:40]


def describe(split: str, protocol: dict[str, Any], frames: int, clips: int) -> str:
    """What was measured and how, in one line."""
    words = [f"{split}: {frames} predicted frames" + (f" of {clips} clips" if clips > 1 else "")]
    if "prior" in protocol:
        words.append("z at the prior's mean" if protocol["prior"] == "mean" else "z sampled from the prior")
    if "samples" in protocol:
        n = protocol["samples"]
        words.append(f"mean of {n} samples" if n != 1 else "1 sample")
    if protocol.get("average_flips"):
        words.append("averaged over flips")
    if protocol.get("conditions", "the clip's own") != "the clip's own":
        words.append(f"conditions: {protocol['conditions']}")
    return ", ".join(words)
