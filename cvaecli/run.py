"""A run folder: its name, its small files and the paths of its checkpoints. runs/README.md describes them."""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config.schema import RunConfig
from .errors import CvaeError, UserError
from .files import csv_cells, read_json, write_bytes, write_csv, write_text
from .terms import TRAIN_TERMS, VAL_TERMS

METRIC_COLUMNS = [
    *("epoch", "step", "time", "lr"),
    *(f"train/{term}" for term in TRAIN_TERMS),
    *("beta", "tfr", "forced"),
    *(f"val/{term}" for term in VAL_TERMS),
]
STEP_COLUMNS = ["step", "epoch", *TRAIN_TERMS, "beta", "tfr", "forced", "lr", "frames_per_s"]


@dataclass(frozen=True)
class Run:
    """An existing run folder."""

    path: Path

    # --- making and finding -----------------------------------------------------------------------

    @classmethod
    def create(cls, root: Path, stem: str, name: str | None = None) -> Run:
        """A new, empty run folder ``root/name``, or ``root/stem-001``, ``-002``... when unnamed.

        Raises:
            UserError: the name exists, or is not a plain file name.
        """
        root.mkdir(parents=True, exist_ok=True)
        if name is not None:
            if name != Path(name).name or name in ("", ".", "..", "latest"):
                raise UserError(f"--name {name!r}: must be a plain folder name other than 'latest'")
            try:
                (root / name).mkdir()
            except FileExistsError:
                raise UserError(
                    f"{root / name}: a run of this name exists",
                    f"choose another, or cvae train --resume {name}",
                ) from None
            return cls(root / name)._made()
        taken = [
            int(m[1])
            for p in root.glob(f"{stem}-*")
            if (m := re.fullmatch(rf"{re.escape(stem)}-(\d+)", p.name))
        ]
        number = max(taken, default=0) + 1
        while True:  # another process may take the number first
            try:
                (root / f"{stem}-{number:03d}").mkdir()
            except FileExistsError:
                number += 1
                continue
            return cls(root / f"{stem}-{number:03d}")._made()

    def _made(self) -> Run:
        for folder in ("checkpoints", "samples"):
            (self.path / folder).mkdir()
        return self

    def make_latest(self) -> None:
        """Point ``runs/latest`` at this run (where the file system has symbolic links).

        Called when a checkpoint is written, so it is the run that RUN means if none is named.
        """
        link, temporary = self.path.parent / "latest", self.path.parent / f".latest-{os.getpid()}"
        if link.exists() and not link.is_symlink():
            return  # the user has a folder of that name
        try:
            temporary.symlink_to(self.path.name, target_is_directory=True)
            temporary.replace(link)
        except OSError:
            temporary.unlink(missing_ok=True)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    # --- one training at a time -------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock. The kernel releases it however the process ends, so none is ever stale.

        Raises:
            UserError: another process holds it.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.path}: another process is training this run",
                "wait for it or stop it",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def require(self) -> None:
        """Raise a `CvaeError` if the folder is gone: files would otherwise be written to a new one."""
        if not (self.path / "checkpoints").is_dir():
            raise CvaeError(
                f"{self.path}: the run folder is gone; was it moved or deleted while it was training?",
                "if it was moved: cvae train --resume NEW_PLACE",
            )

    # --- small files ------------------------------------------------------------------------------

    def write_config(self, config: RunConfig) -> None:
        """Save the resolved config."""
        write_text(self.path / "config.yaml", config.to_yaml())

    def update_info(self, **values: Any) -> None:
        """Change or add entries of ``run.json``."""
        self.require()
        path = self.path / "run.json"
        info = self.info()
        info.update(values, updated=_now())
        write_text(path, json.dumps(info, indent=2) + "\n")

    def info(self) -> dict[str, Any]:
        """The content of ``run.json``; empty if it does not exist yet."""
        path = self.path / "run.json"
        return read_json(path) if path.is_file() else {}

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row to ``metrics.csv``; an old row of this epoch or of a later one is replaced."""
        path = self.path / "metrics.csv"
        rows = [old for old in read_rows(path) if int(old["epoch"]) < row["epoch"]]
        write_csv(path, METRIC_COLUMNS, [*rows, row])

    def add_step(self, row: Mapping[str, Any]) -> None:
        """Append to ``steps.csv``."""
        path = self.path / "steps.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, STEP_COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(csv_cells(row))

    def keep_steps(self) -> None:
        """Copy ``steps.csv`` beside the checkpoint of the same moment: a file that is appended to may be cut
        short by a crash, the copy may not."""
        path = self.path / "steps.csv"
        if path.exists():
            write_bytes(self.path / "checkpoints" / path.name, path.read_bytes())

    def forget_after(self, step: int) -> None:
        """Drop the rows after ``step``: a resumed run repeats these steps."""
        for name, columns in (("steps.csv", STEP_COLUMNS), ("metrics.csv", METRIC_COLUMNS)):
            path, kept = self.path / name, self.path / "checkpoints" / name
            tables = [[row for row in read_rows(p) if int(row["step"]) <= step] for p in (path, kept)]
            if path.exists() or kept.exists():
                write_csv(path, columns, max(tables, key=len))

    # --- checkpoints ------------------------------------------------------------------------------

    def checkpoint_path(self, name: str) -> Path:
        """``checkpoints/<name>.pt``."""
        return self.path / "checkpoints" / f"{name}.pt"

    def for_prediction(self) -> Path:
        """The checkpoint to predict with: the best by validation, else the last."""
        for name in ("best", "last", "previous"):
            if self.checkpoint_path(name).is_file():
                return self.checkpoint_path(name)
        raise UserError(f"{self.path}: holds no checkpoint", "train it first, or name another run")


def find(spec: str | Path | None, root: Path = Path("runs")) -> tuple[Run, Path]:
    """The run and the checkpoint that the argument RUN means.

    Args:
        spec: a run folder, a name under ``root``, a checkpoint file, ``latest``, or None for the
            newest run under ``root`` that has a checkpoint.

    Raises:
        UserError: there is none.
    """
    run = find_run(spec, root)
    path = None if spec is None else Path(spec)
    return (run, path) if path is not None and path.is_file() else (run, run.for_prediction())


def find_run(spec: str | Path | None, root: Path = Path("runs")) -> Run:
    """The run that RUN means, see ``find``; it need not hold a checkpoint.

    Raises:
        UserError: there is none.
    """
    if spec is None or (str(spec) == "latest" and not Path("latest").exists()):
        return _newest(root)
    path = Path(spec)
    if path.is_file():
        run = path.resolve().parent.parent
        return Run(run if (run / "config.yaml").is_file() else path.resolve().parent)
    for folder in (path, root / path):
        if (folder / "config.yaml").is_file():
            return Run(folder)
    names = sorted(p.parent.name for p in root.glob("*/config.yaml") if not p.parent.is_symlink())
    there = f"runs here: {', '.join(names[:8])}" if names else f"there are no runs under {root}/ yet"
    raise UserError(f"{spec}: no such run", there)


def _newest(root: Path) -> Run:
    found = [p for p in root.glob("*/checkpoints/*.pt") if not p.parent.parent.is_symlink()]
    if not found:
        raise UserError(
            f"no run with a checkpoint under {root}/", "train one first: cvae train --config quickstart"
        )
    return Run(max(found, key=lambda p: p.stat().st_mtime).parent.parent)


def describe_environment() -> dict[str, Any]:
    """Versions, machine and git state for ``run.json``."""
    from importlib.metadata import version

    return {
        "versions": {
            "cvae": version("cvae"),
            "python": platform.python_version(),
            "torch": version("torch"),
            "platform": platform.platform(),
        },
        "git": _git_state(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": _now(),
    }


def _git_state() -> str | None:
    """Commit of the current folder, ``+changes`` if some are not committed; None outside a repository."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a run's CSV file. Lines without a step, and a last line cut short by a crash, are left out.

    Raises:
        UserError: the file is no such table.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    try:
        reader = csv.DictReader(lines)
        rows, columns = list(reader), reader.fieldnames or ()
    except csv.Error as error:
        raise UserError(f"{path}: damaged: {error}", "correct or delete the file") from None
    if rows and not {"step", "epoch"} <= set(columns):
        raise UserError(
            f"{path}: has no columns step and epoch, separated by commas", "correct or delete the file"
        )
    # After a power failure the end of a file may consist of zero bytes.
    return [row for row in rows if all((row[key] or "").isdecimal() for key in ("step", "epoch"))]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
