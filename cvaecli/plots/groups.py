"""Runs grouped for comparison: by protocol, then by setting. Runs of one setting differ only in the seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import evaluations
from ..evaluations import read_per_frame
from ..tables import AbsentError, Array
from . import protocols, style
from .psnr import over_clips
from .runs import Request, Run

NOT_SETTINGS = (
    *("seed", "runtime", "data.root", "eval.batch_size", "eval.chunk", "eval.sample_strips"),
    *("train.log_every", "train.save_every", "train.save_minutes"),
)
"""Keys that may differ between runs of one setting, because they are not meant to change results. Data are
compared by fingerprint, not by folder."""
_FEW_KEYS = 3  # number of differing keys that fit a label


class Scored(NamedTuple):
    """A run and its evaluation: metrics.json, and the rollout's PSNR curve as (frame, dB)."""

    run: Run
    summary: dict[str, Any]
    curve: tuple[Array, Array]

    def number(self, name: str) -> float:
        """A number of metrics.json; NaN if it is missing or not finite."""
        value = self.summary.get(name)
        return float("nan") if value is None else float(value)


class Group(NamedTuple):
    """Runs of one setting.

    Attributes:
        label: how the setting differs from the others.
        keys: config keys in which the settings differ, separated by commas.
        look: colour and line style.
    """

    label: str
    keys: str
    look: dict[str, Any]
    runs: list[Scored]

    def values(self, name: str) -> Array:
        """One number per run; NaN if it is missing."""
        return np.array([scored.number(name) for scored in self.runs])

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run."""
        return [scored.run.config.get("seed", "") for scored in self.runs]

    def curves(self) -> tuple[Array, Array]:
        """(frame numbers ``[K]``, PSNR in dB ``[runs, K]``); NaN where a run has no finite value."""
        frames = np.unique(np.concatenate([at for at, _ in (scored.curve for scored in self.runs)]))
        values = np.full((len(self.runs), len(frames)), np.nan)
        for row, scored in zip(values, self.runs, strict=True):
            row[np.searchsorted(frames, scored.curve[0])] = scored.curve[1]
        return frames, values


class Section(NamedTuple):
    """Settings that were scored with the same protocol, and so can be ranked.

    Attributes:
        heading: how this protocol differs from the others; empty if there is only one.
        protocol: the whole protocol in one line.
    """

    heading: str
    protocol: str
    groups: list[Group]


def sections(request: Request) -> list[Section]:
    """The runs by protocol and setting, both in the order of their first runs.

    A run that is not finished, or whose schedule was changed by a resume, is its own group.

    Raises:
        AbsentError: no run has an evaluation of the split.
        UserError: a damaged file.
    """
    split = request.split or protocols.best_split(request.runs)

    def read(run: Run) -> Scored:
        if not run.config:
            raise AbsentError(f"there is no {run.folder / 'config.yaml'}", "settings are identified by it")
        summary = evaluations.read_summary(run.folder, split)
        frames, _, mean, _ = over_clips(read_per_frame(run.folder, split), "psnr")
        return Scored(run, summary, (frames, mean))

    scored = [found for _, found in request.each(read)]
    labels = _with_labels(_by(scored, _setting))
    together = _by(scored, lambda one: json.dumps([protocol(one).get(key) for key in protocols.PROTOCOL]))
    differ = protocols.differing([protocol(one) for one in scored])
    found = []
    for members in together.values():
        own = protocol(members[0])
        heading = ", ".join(protocols.in_words(key, own.get(key)) for key in differ)
        groups = [labels[key]._replace(runs=runs) for key, runs in _by(members, _setting).items()]
        found.append(Section(heading, _describe(split, members), groups))
    return found


def protocol(scored: Scored) -> dict[str, Any]:
    """How the run was scored; see ``protocols.protocol_of``."""
    return protocols.protocol_of(scored.summary)


def _describe(split: str, members: Sequence[Scored]) -> str:
    own, summary = protocol(members[0]), members[0].summary
    frames, clips = summary.get("frames") or len(members[0].curve[0]), summary.get("clips") or [None]
    line = protocols.describe(split, own, frames, len(clips))
    if own.get("data"):
        line += f", data: {own['data']}"
    if own.get("data_fingerprint"):
        line += f" ({str(own['data_fingerprint'])[:8]})"
    if precisions := dict.fromkeys(str(p) for one in members if (p := protocol(one).get("precision"))):
        line += f", precision {' and '.join(precisions)}"
    return line


def _by(scored: Sequence[Scored], key: Any) -> dict[str, list[Scored]]:
    together: dict[str, list[Scored]] = {}
    for one in scored:
        together.setdefault(key(one), []).append(one)
    return together


# ---------------------------------------------------------------- settings


def _setting(scored: Scored) -> str:
    """A key that is equal for runs of one setting."""
    own = [str(scored.run.folder), scored.run.remark] if scored.run.remark else []
    return json.dumps([settings_of(scored.run), own], sort_keys=True)


def settings_of(run: Run) -> dict[str, Any]:
    """The settings that can change results, by dotted key: config, training data, number of steps trained."""
    leaves = {
        key: value
        for key, value in _leaves(run.config)
        if key not in NOT_SETTINGS and key.split(".")[0] not in NOT_SETTINGS
    }
    data = run.info.get("data")
    if isinstance(data, dict):
        leaves["data.fingerprint"] = str(data.get("fingerprint"))[:8]
    # With a time limit every run has a different number of steps.
    if run.steps is not None and leaves.get("train.max_minutes") is None:
        leaves["steps"] = run.steps
    return leaves


def _leaves(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _with_labels(together: Mapping[str, list[Scored]]) -> dict[str, Group]:
    """Each setting with its label and look, and its runs of every protocol."""
    firsts = [members[0].run for members in together.values()]
    settings = [settings_of(run) for run in firsts]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    differ = [key for key in keys if len({json.dumps(each.get(key)) for each in settings}) > 1]
    unfinished = any(run.remark for run in firsts)
    if unfinished and "steps" in differ:
        differ.remove("steps")  # the remark says so
    labels = _labels(firsts, settings, differ)
    found = {}
    for n, (key, run, label) in enumerate(zip(together, firsts, labels, strict=True)):
        remark = f" [{run.folder.resolve().name}: {run.remark}]" if run.remark else ""
        found[key] = Group(label + remark, ", ".join(differ), style.of(n), together[key])
    return found


def _labels(runs: Sequence[Run], settings: Sequence[Mapping[str, Any]], differ: Sequence[str]) -> list[str]:
    """The differing settings if they are few; otherwise the runs' descriptions, if these differ."""
    last = [key.split(".")[-1] for key in differ]
    names = [part if last.count(part) == 1 else key for key, part in zip(differ, last, strict=True)]
    exact = [
        ", ".join(f"{name} {_short(each.get(key))}" for key, name in zip(differ, names, strict=True))
        for each in settings
    ]
    words = [", ".join(_differences(run, runs)) for run in runs]
    if not differ or (len(differ) > _FEW_KEYS and len(set(words)) == len(set(exact))):
        return [
            text or ", ".join(run.description.values()) or run.label
            for text, run in zip(words, runs, strict=True)
        ]
    return exact


def _differences(run: Run, runs: Sequence[Run]) -> list[str]:
    """The parts of a run's description that are not the same in all runs."""
    return [
        text
        for key, text in run.description.items()
        if len({other.description.get(key) for other in runs}) > 1
    ]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
