"""The settings of runs: groups with the same protocol, and in each the settings with their runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluations import COMPARABLE
from .folders import RunFolder

NO_SETTING = (
    *("seed", "runtime", "data.root", "eval.batch_size", "eval.chunk", "eval.sample_strips"),
    *("train.log_every", "train.save_every", "train.save_minutes", "train.tensorboard"),
)
"""Keys and sections that may differ between runs of one setting: they change no result. Data are
compared by fingerprint."""

PLAIN = {
    "kl.schedule": "KL annealing",
    "kl.weight": "the KL weight",
    "model.name": "the model",
    "optim.lr": "the learning rate",
    "train.batch_size": "the batch size",
    "train.epochs": "the number of epochs",
}
"""Words for the keys that are compared most often; other keys are shown as they are."""

MOST_KEYS = 4
"""With up to this many differing keys a setting is named by their values, else by its first run."""


@dataclass(frozen=True)
class Setting:
    """Runs whose configs agree in everything but the seed (and ``NO_SETTING``)."""

    label: str
    values: dict[str, str]  # the keys that differ within the group, with this setting's values
    runs: list[RunFolder]

    @property
    def counted(self) -> list[RunFolder]:
        """The runs whose numbers are averaged."""
        return [run for run in self.runs if not run.flaw]

    @property
    def left_out(self) -> list[RunFolder]:
        """The runs whose numbers are not."""
        return [run for run in self.runs if run.flaw]

    def numbers(self, name: str) -> np.ndarray:
        """One number for each counted run, ``[runs]``; NaN if it has none."""
        return np.array([run.number(name) for run in self.counted], float)

    def mean(self, name: str) -> float:
        """Mean over the counted runs; NaN if there are none."""
        values = self.numbers(name)
        return float(values.mean()) if len(values) else np.nan

    def by_seed(self, name: str) -> dict[int | str, float]:
        """One number for each seed: the mean if a seed was run more than once."""
        return {
            seed: float(np.mean([run.number(name) for run in self.counted if run.seed == seed]))
            for seed in dict.fromkeys(run.seed for run in self.counted)
        }


@dataclass(frozen=True)
class Group:
    """Settings that were measured with the same protocol, best mean PSNR first."""

    protocol: dict[str, Any]  # empty for runs without an evaluation
    keys: list[str]  # keys that differ between the settings
    settings: list[Setting]

    @property
    def ranked(self) -> list[Setting]:
        """The settings with at least one counted run."""
        return [setting for setting in self.settings if setting.counted]


def groups_of(runs: Sequence[RunFolder]) -> list[Group]:
    """Runs grouped by protocol and then by setting.

    A run without an evaluation joins the group that has its setting, or the only group.
    """
    by_protocol: dict[str, list[RunFolder]] = {}
    for run in runs:
        if run.summary is not None:
            by_protocol.setdefault(_protocol_key(run), []).append(run)
    without: list[RunFolder] = []
    for run in runs:
        if run.summary is None:
            same = [g for g in by_protocol.values() if any(identity(run) == identity(r) for r in g)]
            only = list(by_protocol.values()) if len(by_protocol) == 1 else []
            next(iter(same + only), without).append(run)
    members = [*by_protocol.values(), *([without] if without else [])]
    return [_group(each) for each in members]


def _protocol_key(run: RunFolder) -> str:
    protocol = run.protocol
    return json.dumps([*(protocol.get(key) for key in COMPARABLE), run.frames])


def _group(runs: list[RunFolder]) -> Group:
    together: dict[str, list[RunFolder]] = {}
    for run in runs:
        together.setdefault(identity(run), []).append(run)
    firsts = [members[0] for members in together.values()]
    keys = differing(firsts)
    settings = []
    for members in together.values():
        flat = flatten(members[0].config)
        values = {key: shown(flat.get(key, "–")) for key in keys}
        settings.append(Setting(_label(values) or members[0].name, values, members))
    settings.sort(key=lambda setting: -np.nan_to_num(setting.mean("psnr"), nan=-np.inf))
    measured = next((run for run in runs if run.summary is not None), None)
    protocol = {} if measured is None else measured.protocol | {"frames": measured.frames}
    return Group(protocol, keys, settings)


def _label(values: Mapping[str, str]) -> str:
    if len(values) > MOST_KEYS:
        return ""
    names = short_names(list(values))
    return ", ".join(f"{names[key]} {value}" for key, value in values.items())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or the whole key if two have the same last part."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def identity(run: RunFolder) -> str:
    """A key that is equal for runs of one setting."""
    return json.dumps(flatten(run.config), sort_keys=True, default=str)


def differing(runs: Sequence[RunFolder]) -> list[str]:
    """The keys whose values differ between the runs, in the order of the configs."""
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each)
    return [key for key in keys if len({json.dumps(each.get(key), default=str) for each in flat}) > 1]


def flatten(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """``{"section.key": value}`` of a nested config, without ``NO_SETTING``.

    The keys that make the teacher-forcing ratio's schedule are one key, ``teacher forcing``, in words.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{path}{name}"
        if key in NO_SETTING:
            continue
        if key == "teacher_forcing" and isinstance(value, dict):
            flat["teacher forcing"] = forcing_words(value)
            value = {name: value[name] for name in value if name not in FORCING}
        flat |= flatten(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return flat


FORCING = ("ratio", "decay_start", "decay", "every", "floor")
"""Keys of ``teacher_forcing`` that make the schedule of its ratio."""


def forcing_words(section: Mapping[str, Any]) -> str:
    """The schedule of the teacher-forcing ratio: never, always, a constant ratio, or how it falls."""
    values = [section.get(key, 0) for key in FORCING]
    if not all(isinstance(value, int | float) for value in values):
        return ", ".join(map(shown, values))  # not a config that was ever trained
    ratio, start, decay, every, floor = values
    if not decay or ratio <= floor:
        return {0: "never", 1: "always"}.get(ratio, shown(ratio))
    words = f"falls by {shown(decay)} " + (f"every {every} epochs" if every > 1 else "an epoch")
    words += f" from {shown(ratio)}" if ratio != 1 else ""
    words += f" to {shown(floor)}" if floor else ""
    return words + (f" after epoch {start - 1}" if start > 1 else "")


def shown(value: Any) -> str:
    """A config value as text for a table."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def in_order(values: Iterable[str]) -> list[str]:
    """Numbers by size, then words in alphabetical order; never is 0, always is 1."""

    def key(value: str) -> tuple[float, str]:
        try:
            return float({"never": 0, "always": 1}.get(value, value)), ""
        except ValueError:
            return math.inf, value

    return sorted(values, key=key)


def signed(decibels: float) -> str:
    """A difference with its sign and two digits; no minus before zero."""
    return f"{round(decibels, 2) + 0.0:+.2f}".replace("-", "−")


def question(runs: Sequence[RunFolder]) -> str:
    """The question that a comparison of these runs answers, in one line."""
    by_setting = {identity(run): run for run in runs}
    keys = differing(list(by_setting.values()))
    if len(runs) == 1:
        return f"How well does {runs[0].name} predict?"
    if not keys:
        return f"How far do {len(runs)} runs of one setting differ?"
    if len(keys) > MOST_KEYS:
        return f"How do {len(by_setting)} settings compare that differ in {len(keys)} keys?"
    flat = [flatten(run.config) for run in by_setting.values()]
    parts = []
    for key in keys:
        values = in_order({shown(each.get(key, "–")) for each in flat})
        parts.append(f"{PLAIN.get(key, key)} ({_listed(values, 'or')})")
    return f"What {'does' if len(parts) == 1 else 'do'} {_listed(parts, 'and')} change?"


def _listed(words: Sequence[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
