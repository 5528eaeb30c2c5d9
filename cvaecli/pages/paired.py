"""Differences between settings over equal seeds, and which of them are settled.

The seed is the unit: runs with the same seed share their initial weights and the order of their batches, so
their difference has less noise than their values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .settings import Group, Setting, short_names, signed

ENOUGH = 3
"""With fewer equal seeds no difference is settled."""
SMALL = 0.1
"""dB; settings whose difference is certainly smaller are called equal."""
ALL_PAIRS = 5
"""Up to this many settings every pair is compared; with more, only the best with each of the others."""

RULE = (
    "Every difference is taken between runs of the same seed, so n is the number of seeds that both sides "
    "have. Its 95 % interval is the paired t interval with n − 1 degrees of freedom. "
    f"Settled: n is at least {ENOUGH} and the interval excludes zero. "
    f"Equal: n is at least {ENOUGH} and the whole interval lies within {SMALL} dB of zero. "
    f"Leaning: n is at least {ENOUGH} and every seed agrees in sign, but the interval includes zero. "
    f"Noise: n is at least {ENOUGH} and none of these. "
    f"Open: fewer than {ENOUGH} equal seeds. "
    "There is no correction for the number of comparisons: of twenty differences that are all noise, one "
    "looks settled by chance."
)

_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""97.5 % quantiles of Student's t for 1 to 20 degrees of freedom."""


@dataclass(frozen=True)
class Difference:
    """``left`` minus ``right``, one value for each equal seed, dB."""

    left: str
    right: str
    seeds: list[int | str]
    values: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN if there are none."""
        return float(self.values.mean()) if len(self.values) else np.nan

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval; NaN for fewer than two seeds."""
        n = len(self.values)
        if n < 2:
            return np.nan
        # Above 20 degrees of freedom the quantile for 20 is slightly too large.
        return float(_T[min(n - 1, len(_T)) - 1] * self.values.std(ddof=1) / np.sqrt(n))

    @property
    def verdict(self) -> str:
        """settled, equal, leaning, noise or open; see ``RULE``."""
        if len(self.values) < ENOUGH:
            return "open"
        if abs(self.mean) + self.margin <= SMALL:
            return "equal"
        if abs(self.mean) > self.margin:
            return "settled"
        same_sign = bool((self.values > 0).all() or (self.values < 0).all())
        return "leaning" if same_sign else "noise"

    @property
    def sentence(self) -> str:
        """The difference in words, with its numbers."""
        n = len(self.values)
        if n == 0:
            return f"{self.left} and {self.right} have no seed in common: they cannot be paired."
        if n < ENOUGH:
            count = "one equal seed" if n == 1 else f"{n} equal seeds"
            return f"{self.left} against {self.right}: {signed(self.mean)} dB over {count}, too few to tell."
        numbers = f"{signed(self.mean)} dB, 95 % interval {self._interval}, n = {n}"
        if self.verdict == "settled":
            sign = "better" if self.mean > 0 else "worse"
            return f"{self.left} is {sign} than {self.right} ({numbers})."
        if self.verdict == "equal":
            return f"{self.left} and {self.right} are equal to within {SMALL} dB ({numbers})."
        if self.verdict == "leaning":
            sign = "above" if self.mean > 0 else "below"
            seeds = f"in every seed, but {n} seeds do not settle it"
            return f"{self.left} was {sign} {self.right} {seeds} ({numbers})."
        return f"{self.left} and {self.right} cannot be told apart with {n} seeds ({numbers})."

    @property
    def _interval(self) -> str:
        return f"{signed(self.mean - self.margin)} to {signed(self.mean + self.margin)}"


def between_settings(group: Group) -> list[Difference]:
    """Every pair of settings; with more than ``ALL_PAIRS``, only the best with each of the others."""
    settings = group.ranked
    if len(settings) <= ALL_PAIRS:
        pairs = list(itertools.combinations(settings, 2))
    else:
        pairs = [(settings[0], other) for other in settings[1:]]
    return [_difference(left.label, right.label, [(left, right)]) for left, right in pairs]


def one_key_at_a_time(group: Group) -> list[Difference]:
    """For two or more keys: one value against another of the same key, all other keys equal.

    The differences are averaged over the values of the other keys within each seed: seeds are independent,
    the cells of one seed are not. Empty if no key has two such pairs of settings: then
    ``between_settings`` has all of it.
    """
    if len(group.keys) < 2:
        return []
    names, found, pooled = short_names(group.keys), [], False
    for key in group.keys:
        values = list(dict.fromkeys(setting.values[key] for setting in group.ranked))
        for a, b in itertools.combinations(values, 2):
            pairs = [
                (left, right)
                for left, right in itertools.product(group.ranked, group.ranked)
                if (left.values[key], right.values[key]) == (a, b) and _differ_only_in(left, right, key)
            ]
            if pairs:
                pooled = pooled or len(pairs) > 1
                difference = _difference(f"{names[key]} {a}", f"{names[key]} {b}", pairs)
                found.append(difference if not difference.mean < 0 else _sides_swapped(difference))
    return found if pooled else []


def _differ_only_in(left: Setting, right: Setting, key: str) -> bool:
    return all(value == right.values[other] for other, value in left.values.items() if other != key)


def _sides_swapped(difference: Difference) -> Difference:
    return Difference(difference.right, difference.left, difference.seeds, -difference.values)


def _difference(left: str, right: str, pairs: Sequence[tuple[Setting, Setting]]) -> Difference:
    """One value per seed: the mean over the pairs of settings in which both sides have that seed."""
    found: dict[int | str, list[float]] = {}
    for a, b in ((a.by_seed("psnr"), b.by_seed("psnr")) for a, b in pairs):
        for seed in a.keys() & b.keys():
            found.setdefault(seed, []).append(a[seed] - b[seed])
    seeds = sorted(found, key=str)
    return Difference(left, right, seeds, np.array([np.mean(found[seed]) for seed in seeds], float))
