"""What a sweep trains: the keys that vary, their values, and one cell for each run.

A plan is a base config, overrides for all runs, and axes. In a grid every combination of the axes' values is
a cell. In a search a cell is a numbered trial, and Optuna chooses its values.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..config.loading import changes, from_dict, load, parse_yaml, sections
from ..config.schema import RunConfig
from ..errors import UserError
from ..files import write_text

FILE = "sweep.yaml"
"""The plan's file in the sweep's folder."""

LIMIT = 1000
"""Most cells of a sweep."""

DATA = "runs are compared on the same data; make one sweep for each"
PROTOCOL = "it is part of the evaluation protocol, and numbers of different protocols are not comparable"
MACHINE = "it describes the machine, not the experiment"
FIXED = {
    "data": DATA,
    "data.n_past": PROTOCOL,
    "data.n_future": PROTOCOL,
    "eval": PROTOCOL,
    "runtime": MACHINE,
}
"""Keys and sections that are the same in every run of a sweep, and why."""

MAY_VARY = ("data.partial",)
"""The exceptions: the share of the training frames does not affect the validation."""


class Range(NamedTuple):
    """An interval that a search draws from; integers if the key takes integers."""

    low: float
    high: float
    log: bool


class Axis(NamedTuple):
    """One thing that varies: a key, or several keys that change together."""

    keys: tuple[str, ...]
    values: tuple[str, ...]
    """As typed; for several keys their parts are joined by ``+``. The two ends if it is a range."""
    range: Range | None = None

    @property
    def name(self) -> str:
        """The keys as typed on the command line."""
        return "+".join(self.keys)

    def overrides(self, value: str) -> list[str]:
        """The config overrides for this value."""
        parts = [value] if len(self.keys) == 1 else value.split("+")
        return [f"{key}={part}" for key, part in zip(self.keys, parts, strict=True)]


class Cell(NamedTuple):
    """One run of the sweep."""

    name: str
    overrides: tuple[str, ...]


class Plan(BaseModel):
    """The content of ``sweep.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["grid", "search"]
    source: str
    """The base config's file or built-in name, as given."""
    vary: list[str]
    """The arguments that vary, as typed: ``kl.schedule=cyclical,none``."""
    fixed: list[str]
    """Overrides for every run."""
    trials: int | None = Field(None, ge=1, le=LIMIT)
    """Number of runs of a search."""
    storage: str = "journal"
    """``journal``, or the storage's URL without its password."""
    config: dict[str, Any]
    """The base config's sections when the sweep was started: later edits of the file change no run."""

    # --- axes and cells ---------------------------------------------------------------------------

    @cached_property
    def axes(self) -> list[Axis]:
        """The axes in the order given."""
        return [self._with_range(_axis(argument)) for argument in self.vary]

    @cached_property
    def cells(self) -> list[Cell]:
        """Every run; the last axis changes fastest. Runs of a search have no overrides yet."""
        if self.kind == "search":
            return [Cell(f"{number:03d}", ()) for number in range(self.trials or 0)]
        return [
            Cell(self.folder_name(values), self.overrides(values))
            for values in itertools.product(*(axis.values for axis in self.axes))
        ]

    def overrides(self, values: Sequence[str]) -> tuple[str, ...]:
        """The overrides of the run with these values, one per axis."""
        pairs = zip(self.axes, values, strict=True)
        return tuple(itertools.chain.from_iterable(axis.overrides(value) for axis, value in pairs))

    def folder_name(self, values: Sequence[str]) -> str:
        """A folder name from the varying keys and values: ``schedule-none_ratio-0.5_seed-1``."""
        keys = [key for axis in self.axes for key in axis.keys]
        last = [key.rpartition(".")[2] for key in keys]
        short = {key: part if last.count(part) == 1 else key for key, part in zip(keys, last, strict=True)}
        parts = [override.split("=", 1) for override in self.overrides(values)]
        lists = str.maketrans({"[": "", "]": "", " ": "", ",": "-"})
        exact = "_".join(f"{short[key]}-{value.translate(lists)}" for key, value in parts)
        safe = re.sub(r"[^\w.+-]+", "-", exact)[:120]
        # Two values may become equal when they are cut and cleaned.
        return safe if safe == exact else f"{safe}-{hashlib.sha256(exact.encode()).hexdigest()[:6]}"

    def config_of(self, overrides: Sequence[str]) -> RunConfig:
        """The config of one run.

        Raises:
            UserError: names the key.
        """
        return from_dict(self.config, [*self.fixed, *overrides], where=self.source)

    def example(self) -> RunConfig:
        """The config of the first run; in a search, with the lower end of each range."""
        return self.config_of(self.overrides([axis.values[0] for axis in self.axes]))

    def _with_range(self, axis: Axis) -> Axis:
        """The axis with its range, if ``low..high`` is its one value."""
        if len(axis.keys) > 1 or len(axis.values) > 1 or ".." not in axis.values[0]:
            return axis
        key, (low, _, high) = axis.keys[0], axis.values[0].partition("..")
        start, end = (
            _number(self.config_of([f"{key}={text}"]), key) if text else None for text in (low, high)
        )
        if start is None or end is None:
            raise UserError(
                f"{key}={axis.values[0]}: not a range of numbers", "write e.g. optim.lr=1e-4..1e-2"
            )
        if start >= end:
            raise UserError(f"{key}={axis.values[0]}: an empty range", "the lower end comes first")
        log = start > 0 and end >= 10 * start
        return axis._replace(values=(low, high), range=Range(start, end, log))

    # --- checks -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse a plan that is not a valid sweep.

        Raises:
            UserError: nothing varies, there are too many cells, a key cannot vary, a value does not fit its
                key, or two cells are the same run.
        """
        if not self.axes:
            raise UserError("nothing varies", "give a key several values, e.g. seed=0,1,2")
        keys = [argument.partition("=")[0].strip() for argument in self.fixed]
        keys += [key for axis in self.axes for key in axis.keys]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{key}: is given twice", "give each key once, with all its values")
        for axis in self.axes:
            if self.kind == "grid" and axis.range is not None:
                raise UserError(f"{axis.name}: a range needs --search", "or list its values: a,b,c")
        count = math.prod(len(axis.values) for axis in self.axes)
        if self.kind == "grid" and count > LIMIT:
            raise UserError(f"{count:,} cells: a sweep has at most {LIMIT:,}", "vary less, or use --search")
        if self.kind == "search":
            for axis in self.axes:
                for value in axis.values:
                    self.config_of(axis.overrides(value))
            return
        seen: dict[str, str] = {}
        for cell in self.cells:
            config = self.config_of(cell.overrides).model_dump_json()
            if config in seen:
                raise UserError(
                    f"{seen[config]} and {cell.name}: are the same run", "remove the repeated value"
                )
            seen[config] = cell.name

    def refuse_another(self, old: Plan, name: str) -> None:
        """Refuse to continue a sweep that was started with ``old``, unless this plan only adds to it.

        Raises:
            UserError: names the first difference.
        """
        difference = self._difference(old)
        if difference:
            raise UserError(
                f"{name}: this sweep was started with other settings: {difference}",
                "choose another --name, or repeat the first command",
            )

    def _difference(self, old: Plan) -> str:
        for what in ("kind", "storage"):
            if getattr(self, what) != getattr(old, what):
                return f"{what} was {getattr(old, what)}, is now {getattr(self, what)}"
        before, now = [axis.name for axis in old.axes], [axis.name for axis in self.axes]
        if before != now:
            return f"what varied was {', '.join(before)}, is now {', '.join(now)}"
        for was, axis in zip(old.axes, self.axes, strict=True):
            added = self.kind == "grid" and set(was.values) <= set(axis.values)
            if was.values != axis.values and not added:
                return f"{axis.name} was {','.join(was.values)}, is now {','.join(axis.values)}"
        if (self.trials or 0) < (old.trials or 0):
            return f"--trials was {old.trials}, is now {self.trials}"
        if self.kind == "search":
            return difference(old.example(), self.example())
        pairs = ((old.config_of(cell.overrides), self.config_of(cell.overrides)) for cell in old.cells)
        return next((text for one, other in pairs if (text := difference(one, other))), "")

    # --- making, reading, writing -----------------------------------------------------------------

    @classmethod
    def of(
        cls, config: str, arguments: Sequence[str], trials: int | None = None, storage: str | None = None
    ) -> Plan:
        """The plan of a command, checked.

        Args:
            config: a config's file or built-in name.
            arguments: ``key=value`` for every run, ``key=a,b`` for an axis, ``key=low..high`` in a search.
            trials: number of runs of a search; None for a grid.
            storage: a storage's URL.

        Raises:
            UserError: see ``check``.
        """
        vary = [argument for argument in arguments if _varies(argument)]
        fixed = [argument for argument in arguments if argument not in vary]
        load(config)  # raises if the file itself is wrong
        plan = cls(
            kind="grid" if trials is None else "search",
            source=config,
            vary=vary,
            fixed=fixed,
            trials=trials,
            storage=without_password(storage) if storage else "journal",
            config=sections(config)[0],
        )
        plan.check()
        return plan

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan of a sweep's folder.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / FILE
        try:
            return cls.model_validate(
                parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
            )
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise UserError(
                f"{path}: is damaged at {where or 'its start'}", "restore it, or choose another --name"
            ) from None

    def write(self, folder: Path) -> None:
        """Save as ``sweep.yaml``."""
        write_text(folder / FILE, yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True))


def difference(before: RunConfig, now: RunConfig) -> str:
    """The first key in which two configs differ, with both values; empty if only ``runtime`` does."""
    for key, (old, new) in changes(before, now).items():
        if not key.startswith("runtime."):
            return f"{key} was {old}, is now {new}"
    return ""


def without_password(url: str) -> str:
    """A storage's URL without its user name and password, so that it can be shown and saved."""
    return re.sub(r"//[^/@]*@", "//", url)


def _varies(argument: str) -> bool:
    """Whether an argument lists values or gives a range, and so is an axis."""
    key, _, text = argument.partition("=")
    is_range = re.fullmatch(r"(?=.*\d)[-+.\deE]*\.\.[-+.\deE]*", text) is not None
    return "+" in key or len(_split(text)) > 1 or is_range


def _axis(argument: str) -> Axis:
    """The axis of ``key=a,b`` or ``key+key=a+b,c+d``; a key without a section is in the previous key's.

    Raises:
        UserError: a value is empty, repeated or has too few parts, or a key cannot vary.
    """
    left, _, text = argument.partition("=")
    keys = [left.strip()] if "+" not in left else [part.strip() for part in left.split("+")]
    for place, key in enumerate(keys[1:], 1):
        if "." not in key:
            keys[place] = f"{keys[place - 1].rpartition('.')[0]}.{key}"
    for key in keys:
        for fixed, reason in FIXED.items():
            if (key == fixed or key.startswith(f"{fixed}.")) and key not in MAY_VARY:
                raise UserError(f"{key}: cannot vary within a sweep: {FIXED.get(key, reason)}")
    values = _split(text)
    for value in values:
        if not value:
            raise UserError(f"{argument}: has an empty value", "remove the extra comma")
        if values.count(value) > 1:
            raise UserError(f"{argument}: {value} is given twice")
        if len(keys) > 1 and len(value.split("+")) != len(keys):
            raise UserError(f"{argument}: {value} must have {len(keys)} parts joined by +, one per key")
    return Axis(tuple(keys), tuple(values))


def _split(text: str) -> list[str]:
    """The values between commas; commas within brackets or quotes belong to a value."""
    values, depth, quote = [""], 0, ""
    for sign in text:
        if sign == "," and not depth and not quote:
            values.append("")
            continue
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        depth += (sign in "[{") - (sign in "]}") if not quote else 0
        values[-1] += sign
    return [value.strip() for value in values]


def _number(config: RunConfig, key: str) -> int | float | None:
    """The value at a dotted key, if it is a number."""
    value: Any = config.to_dict()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
