"""Checkpoints: dicts of tensors, numbers and text. Reading one never runs code from the file."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .config.loading import from_dict, parse_yaml
from .config.schema import RunConfig
from .data.clip import digest
from .errors import CvaeError, UserError
from .files import flush, remove_leftovers, replacing
from .run import Run

FORMAT = 1


def save_last(run: Run, checkpoint: Mapping[str, Any]) -> None:
    """Write ``last.pt``; the old ``last.pt`` becomes ``previous.pt``."""
    last = run.checkpoint_path("last")
    with replacing(last) as part:
        _write(part, last, checkpoint)
        if last.exists():
            last.replace(run.checkpoint_path("previous"))


def save(run: Run, name: str, checkpoint: Mapping[str, Any]) -> None:
    """Write ``checkpoints/<name>.pt``; the old file stays until the new one is complete."""
    path = run.checkpoint_path(name)
    with replacing(path) as part:
        _write(part, path, checkpoint)


def _write(part: Path, path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write ``part``, the file that will replace ``path``, and wait until it is on the disk."""
    try:
        with part.open("wb") as file:  # given a path, PyTorch would store its random name
            torch.save(dict(checkpoint), file)
        flush(part)
    except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as a RuntimeError
        raise CvaeError(
            f"{path}: cannot be written: {error}", "is the disk full? the old file is untouched"
        ) from None


def load_for_resume(run: Run) -> tuple[dict[str, Any], str | None]:
    """The newest intact checkpoint, and a warning if that is not ``last.pt``.

    A damaged ``last.pt`` is renamed, so that the next save does not move it over the intact ``previous.pt``.
    Half-written files of a killed process are removed.
    """
    remove_leftovers(run.checkpoint_path("last").parent)
    last, previous = run.checkpoint_path("last"), run.checkpoint_path("previous")
    if not last.is_file() and not previous.is_file():
        raise UserError(f"{run.path}: holds no checkpoint to resume from", "start a new training")
    try:
        return _load_state(last), None
    except UserError as error:
        if not previous.is_file():
            raise
        checkpoint = _load_state(previous)
        if last.is_file():
            last.replace(last.with_name("last.pt.damaged"))
        return checkpoint, f"{error.message}; continuing from previous.pt"


def _load_state(path: Path) -> dict[str, Any]:
    """A checkpoint that holds the state of the training, not only weights."""
    checkpoint = load(path)
    if "trainer" not in checkpoint:
        raise UserError(
            f"{path}: holds only weights, no training to resume", "start a new run from it with train.init"
        )
    return checkpoint


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint as plain tensors and numbers. No code in the file is run.

    Raises:
        UserError: missing, damaged, or not written by this tool.
    """
    try:
        checkpoint = _read(path, "cpu")
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None  # PyTorch does not notice a flipped bit
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception:  # damage can raise any error anywhere in the unpickler
        whole = False
    if not whole:
        raise UserError(
            f"{path}: damaged, or not a checkpoint of plain tensors", "use previous.pt or best.pt beside it"
        )
    known = {"format", "config", "model", "condition_shape", "epoch", "step"}
    if not isinstance(checkpoint, dict) or not known <= checkpoint.keys():
        raise UserError(
            f"{path}: not a checkpoint of this tool", "give a file from a run's checkpoints folder"
        )
    if checkpoint["format"] > FORMAT:
        raise UserError(f"{path}: written by a newer version of this tool", "update cvae")
    return checkpoint


def _read(path: Path, device: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols; real problems raise
        return torch.load(path, map_location=device, weights_only=True)


def is_foreign(path: Path) -> bool:
    """Whether another program wrote this file (it may be a course checkpoint)."""
    try:
        content = _read(path, "meta")
    except Exception:
        return True  # the next reader reports the fault
    return not (isinstance(content, dict) and "format" in content)


def config_of(checkpoint: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """The config a checkpoint was trained with, with overrides."""
    return from_dict(parse_yaml(checkpoint["config"], "checkpoint"), overrides, where="the run's config")


def fingerprint(checkpoint: Mapping[str, Any]) -> str:
    """A digest of a checkpoint's weights."""
    weights = checkpoint["model"]
    return digest(*((name, bytes(weights[name].float().contiguous().numpy())) for name in sorted(weights)))
