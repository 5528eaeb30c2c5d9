"""Find and read run folders. A run that lacks a file is still a run; a damaged file is an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..evaluations import read_summary
from ..files import read_json
from ..tables import AbsentError

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class RunFolder:
    """One run: its settings, what ``run.json`` says, and its evaluation on one split."""

    path: Path
    name: str
    config: dict[str, Any]  # config.yaml, nested
    info: dict[str, Any]  # run.json
    split: str
    summary: dict[str, Any] | None  # eval/<split>/metrics.json; None = not evaluated

    @property
    def seed(self) -> int | str:
        """The seed of the training."""
        seed = self.config.get("seed", self.info.get("seed", "?"))
        return seed if isinstance(seed, int) else str(seed)

    @property
    def protocol(self) -> dict[str, Any]:
        """The protocol of the evaluation; empty if there is none."""
        return dict((self.summary or {}).get("protocol") or {})

    @property
    def frames(self) -> Any:
        """The number of predicted frames of the evaluation."""
        return (self.summary or {}).get("frames", "?")

    @property
    def config_text(self) -> str:
        """The text of ``config.yaml``."""
        return (self.path / "config.yaml").read_text(encoding="utf-8")

    @property
    def flaw(self) -> str:
        """Why the run is not averaged with others; empty for a finished, evaluated run."""
        status = self.info.get("status")
        if status == "failed":
            return f"failed: {self.info.get('error', 'no reason recorded')}"
        if status != "finished":
            return f"not finished ({status or 'no run.json'})"
        if self.info.get("schedule_changes"):
            return "its schedules were changed during training"
        if self.summary is None:
            return f"not evaluated on {self.split}"
        if not math.isfinite(self.number("psnr")):
            return "PSNR is not finite"
        return ""

    def number(self, name: str) -> float:
        """A number of the evaluation, or ``minutes`` of training; NaN if missing."""
        if name == "minutes":
            seconds = self.info.get("train_seconds")
            return seconds / 60 if isinstance(seconds, int | float) else math.nan
        value = (self.summary or {}).get(name)
        return float(value) if isinstance(value, int | float) else math.nan

    def trivial(self, name: str) -> float:
        """PSNR of a trivial predictor, ``repeat_last_past`` or ``mean_frame``; NaN if unknown."""
        value = ((self.summary or {}).get("baselines") or {}).get(name, {}).get("psnr")
        return float(value) if isinstance(value, int | float) else math.nan


def find_runs(specs: Sequence[str | Path], root: Path = Path("runs")) -> list[Path]:
    """The run folders that the arguments mean, each once, in order.

    Args:
        specs: run folders, folders of runs, or names of either under ``root``.

    Raises:
        UserError: no such folder, or one without runs.
    """
    if not specs:
        raise UserError("no runs to compare", "name run folders, or the folder of a sweep")
    found: dict[Path, Path] = {}
    for spec in specs:
        folder = next((p for p in (Path(spec), root / spec) if p.is_dir()), None)
        if folder is None:
            raise UserError(f"{spec}: no such run or folder of runs", f"there is none under {root}/ either")
        inside = [folder] if _is_run(folder) else sorted(filter(_is_run, folder.iterdir()))
        if not inside:
            raise UserError(f"{folder}: holds no runs", "a run's folder has a config.yaml")
        for path in inside:
            if path == folder or not path.is_symlink():  # `latest` is a link to a run that is found anyway
                found.setdefault(path.resolve(), path)
    return list(found.values())


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def choose_split(paths: Sequence[Path], asked: str | None) -> str:
    """The given split; else val if any run has it, else the one that most runs have."""
    if asked is not None:
        return asked
    have = [file.parent.name for path in paths for file in path.glob("eval/*/metrics.json")]
    return "val" if "val" in have or not have else max(sorted(set(have)), key=have.count)


def read_runs(paths: Sequence[Path], split: str) -> list[RunFolder]:
    """Read the runs; names are as short as possible while they differ.

    Raises:
        UserError: a damaged config.yaml, run.json or metrics.json.
    """
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [_read(path, name, split) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str, split: str) -> RunFolder:
    try:
        summary = read_summary(path, split)
    except AbsentError:
        summary = None
    return RunFolder(path, name, _config(path / "config.yaml"), _info(path / "run.json"), split, summary)


def _config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader)):
            raise ValueError("aliases (*name) are not allowed")  # a few lines of them expand to gigabytes
        content = yaml.load(text, Loader)  # a safe loader
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no settings")
    return content


def _info(path: Path) -> dict[str, Any]:
    """``run.json``; empty if there is none."""
    return read_json(path) if path.is_file() else {}
