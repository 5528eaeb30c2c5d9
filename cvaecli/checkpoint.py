"""Checkpoints: dicts of tensors, numbers and text. Reading one never runs code from the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import tensor_files
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
    run.make_latest()


def save(run: Run, name: str, checkpoint: Mapping[str, Any]) -> None:
    """Write ``checkpoints/<name>.pt``; the old file stays until the new one is complete."""
    path = run.checkpoint_path(name)
    with replacing(path) as part:
        _write(part, path, checkpoint)
    run.make_latest()


def _write(part: Path, path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write ``part``, the file that will replace ``path``, and wait until it is on the disk."""
    try:
        with part.open("wb") as file:  # given a path, PyTorch would store its random name
            torch.save(dict(checkpoint), file)
        flush(part)
    except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) else "not all of it could be stored"
        raise CvaeError(
            f"{path}: cannot be written: {reason}", "is the disk full? the old file is untouched"
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
        checkpoint: dict[str, Any] = tensor_files.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (tensor_files.DamagedError, OSError):
        raise UserError(
            f"{path}: damaged, or not a checkpoint of plain tensors", "use previous.pt or best.pt beside it"
        ) from None
    if not _is_ours(checkpoint):
        raise UserError(
            f"{path}: not a checkpoint of this tool", "give a file from a run's checkpoints folder"
        )
    if checkpoint["format"] > FORMAT:
        raise UserError(f"{path}: written by a newer version of this tool", "update cvae")
    return checkpoint


ENTRIES = {"format": int, "config": str, "model": dict, "condition_shape": list, "epoch": int, "step": int}
"""What every checkpoint holds, and of which type."""


def _is_ours(content: Any) -> bool:
    """Whether a file's content has the entries of a checkpoint, and values for all elements of its tensors:
    one with stride 0 can claim any size."""
    if not isinstance(content, dict):
        return False
    if not all(isinstance(content.get(key), kind) for key, kind in ENTRIES.items()):
        return False
    shape = content["condition_shape"]
    sizes = all(isinstance(n, int) and 0 < n <= 2**16 for n in shape) and len(shape) in (1, 3)
    return sizes and all(
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.nbytes <= value.untyped_storage().nbytes()
        for name, value in content["model"].items()
    )


def is_foreign(path: Path) -> bool:
    """Whether another program wrote this file (it may be a course checkpoint)."""
    try:
        content = tensor_files.read(path, "meta")
    except (tensor_files.DamagedError, OSError):
        return True  # the next reader reports the fault
    return not (isinstance(content, dict) and "format" in content)


def config_of(checkpoint: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """The config a checkpoint was trained with, with overrides."""
    raw = parse_yaml(checkpoint["config"], "checkpoint")
    if not isinstance(raw, dict):
        raise UserError("the checkpoint holds no config", "give a file from a run's checkpoints folder")
    return from_dict(raw, overrides, where="the run's config")


def fingerprint(checkpoint: Mapping[str, Any]) -> str:
    """A digest of a checkpoint's weights."""
    weights = checkpoint["model"]
    return digest(*((name, bytes(weights[name].float().contiguous().numpy())) for name in sorted(weights)))
