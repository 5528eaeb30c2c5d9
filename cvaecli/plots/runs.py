"""The runs of a figure: their folders, names and styles, and the facts from config and ``run.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..config.loading import parse_yaml
from ..config.schema import KLConfig, TeacherForcingConfig, TrainConfig
from ..errors import UserError
from ..files import read_json
from ..tables import AbsentError, Array, read_table
from . import style

S = TypeVar("S", bound=BaseModel)
T = TypeVar("T")

RECONSTRUCTIONS = {
    "mse": "mean squared error",
    "l1": "mean absolute error",
    "optimal_sigma": "½ log mean squared error",
}
"""``train.recon`` in words."""


@dataclass(frozen=True)
class Run:
    """A run folder and how it appears in a figure."""

    folder: Path
    label: str
    style: dict[str, Any]  # colour and line style in comparisons

    @property
    def colour(self) -> str:
        """The colour, as matplotlib names it."""
        return str(self.style["color"])

    def table(self, name: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Array]:
        """Columns of one of the files that training writes; see ``read_table``."""
        remedy = "`cvae train` writes it from the first epoch on"
        return read_table(self.folder / name, required, optional, remedy=remedy)

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.yaml`` as plain data, not validated; empty if there is none."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            return {}
        content = parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds no settings", "copy the run's own config.yaml back")
        return content

    @cached_property
    def info(self) -> dict[str, Any]:
        """``run.json``; empty if there is none."""
        path = self.folder / "run.json"
        return read_json(path) if path.is_file() else {}

    def section(self, name: str, schema: type[S]) -> S | None:
        """A section of the config; None if it is absent or does not fit this version's schema."""
        raw = self.config.get(name)
        try:
            return schema.model_validate(raw) if isinstance(raw, dict) else None
        except ValidationError:
            return None

    @property
    def parallel(self) -> bool:
        """Whether the model predicts all frames at once, without teacher forcing."""
        return "teacher_forcing" in self.config and self.config["teacher_forcing"] is None

    @property
    def reconstruction(self) -> str:
        """``train.recon``; empty if unknown."""
        train = self.section("train", TrainConfig)
        return train.recon if train else ""

    @property
    def rescheduled(self) -> bool:
        """Whether a resume changed the schedules, so that config.yaml does not describe the whole
        training."""
        return bool(self.info.get("schedule_changes"))

    @cached_property
    def steps(self) -> int | None:
        """Training steps done, from run.json or else from the logs; None if unknown."""
        if isinstance(self.info.get("steps"), int) and self.info.get("status") == "finished":
            return int(self.info["steps"])
        return self.logged_steps

    @cached_property
    def logged_steps(self) -> int | None:
        """The last step in the logs; None if there are none."""
        last = []
        for name in ("steps.csv", "metrics.csv"):
            try:
                last.append(int(self.table(name, ["step"])["step"][-1]))
            except UserError:
                continue
        return max(last, default=None)

    @property
    def remark(self) -> str:
        """How this run differs from a normal finished one: its status and step, a changed schedule; or
        empty."""
        status = self.info.get("status", "finished")
        remarks = []
        if status != "finished":
            remarks.append(f"{status} at step {self.steps}" if self.steps is not None else str(status))
        if self.rescheduled:
            remarks.append("schedule changed by a resume")
        return ", ".join(remarks)

    @cached_property
    def description(self) -> dict[str, str]:
        """Model, KL schedule, teacher forcing and data in a few words each; unknown parts are left out."""
        words = {"model": _model(self.config), "kl": _kl(self.section("kl", KLConfig))}
        forcing = self.section("teacher_forcing", TeacherForcingConfig)
        train = self.section("train", TrainConfig)
        words["forcing"] = _forcing(forcing, train.epochs if train else 1)
        if self.parallel:
            words["forcing"] = "all frames at once"
        words["data"] = _data(self.config)
        return {key: text for key, text in words.items() if text}

    @property
    def title(self) -> str:
        """The label, the description and the remark."""
        parts = [", ".join(self.description.values()), self.remark]
        return ": ".join([self.label, "; ".join(part for part in parts if part)]).removesuffix(": ")


def _model(config: dict[str, Any]) -> str:
    model = config.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    return f"{name} model" if name else ""


def _kl(kl: KLConfig | None) -> str:
    if kl is None:
        return ""
    return {
        "none": f"no annealing (β = {kl.stop:g})",
        "monotonic": "monotonic β",
        "cyclical": "cyclical β" + (f" ({kl.cycles} cycles)" if kl.period is None else ""),
        "values": "listed β",
    }[kl.schedule]


def _forcing(forcing: TeacherForcingConfig | None, epochs: int) -> str:
    from ..schedules import tfr

    if forcing is None:
        return ""
    last = tfr(forcing, epochs - 1)
    if last != forcing.ratio:
        return f"teacher forcing {forcing.ratio:g} to {last:g}"
    return f"teacher forcing {last:g}" if last else "free-running"


def _data(config: dict[str, Any]) -> str:
    data = config.get("data")
    if not isinstance(data, dict):
        return ""
    root = data.get("root")
    return f"data {Path(str(root)).name}" if root else "built-in data"


def _ignore(text: str) -> None:
    """The default of ``Request.warn``."""


@dataclass(frozen=True)
class Request:
    """The arguments of ``plot``.

    Attributes:
        split: which evaluation; None: the split that most runs have.
        log: logarithmic y axis; None: if the values span a factor of 10.
        warn: receives one line for each run that is left out.
    """

    runs: Sequence[Run]
    split: str | None = None
    log: bool | None = None
    warn: Callable[[str], None] = field(default=_ignore, compare=False)

    @property
    def comparison(self) -> bool:
        """Whether there are several runs in one figure."""
        return len(self.runs) > 1

    def title(self, *lines: str) -> str:
        """The title of a single run, then the given lines; a comparison names its runs in the legend."""
        first = [] if self.comparison else [self.runs[0].title]
        return "\n".join(line for line in [*first, *lines] if line)

    def each(self, read: Callable[[Run], T]) -> list[tuple[Run, T]]:
        """Call ``read`` for every run. A run that lacks the file is left out with a warning.

        Raises:
            AbsentError: no run has it.
        """
        found, absent = [], []
        for run in self.runs:
            try:
                found.append((run, read(run)))
            except AbsentError as error:
                absent.append((run, error))
        if not found:
            raise absent[0][1]
        for run, why in absent:
            self.warn(f"{run.label} is left out: {why}")
        return found


def differing(runs: Sequence[Run], *properties: Callable[[Run], Any]) -> list[list[Any]]:
    """For each property that differs among the runs where it is known, its distinct values."""
    values = [
        list(dict.fromkeys(value for run in runs if (value := read(run)) not in ("", None)))
        for read in properties
    ]
    return [each for each in values if len(each) > 1]


def make_runs(folders: Sequence[str | Path], labels: Sequence[str] | None = None) -> list[Run]:
    """Runs with a label, a colour and a line style each.

    Args:
        folders: run folders.
        labels: one per run. Default: the folder's name; in comparisons also how the runs differ.

    Raises:
        UserError: no folder, one that does not exist, or a wrong number of labels.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise UserError("no run to plot", "name one or more run folders")
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no run folder {path}", "`cvae train` makes one under runs/")
    if labels is not None and len(labels) != len(paths):
        raise UserError(f"{len(paths)} runs, but {len(labels)} labels", "give --label once for each run")
    names = [path.resolve().name for path in paths]  # resolved, because runs/latest is a link
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    runs = [Run(path, name, style.of(n)) for n, (path, name) in enumerate(zip(paths, names, strict=True))]
    if labels is None and len(runs) > 1:
        labels = [_with_differences(run, runs) for run in runs]
    if labels is not None:
        runs = [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]
    return runs


def _with_differences(run: Run, runs: Sequence[Run]) -> str:
    """The label with the run's differences from the others, unless the label names them, and its remark."""
    differ = [key for key in run.description if len({other.description.get(key) for other in runs}) > 1]
    apart = len({tuple(other.description.get(key) for key in differ) for other in runs})
    while (
        differ and len({tuple(other.description.get(key) for key in differ[:-1]) for other in runs}) == apart
    ):
        differ.pop()  # the remaining ones suffice
    words = [run.description[key] for key in differ if not _says(run.label, run.description[key])]
    words += [run.remark] if run.remark else []
    return f"{run.label} ({', '.join(words)})" if words else run.label


def _says(label: str, text: str) -> bool:
    """Whether a label contains the first word of a description: "cyclical-001", "cyclical β (4 cycles)"."""
    return text.split()[0].lower() in label.lower()
