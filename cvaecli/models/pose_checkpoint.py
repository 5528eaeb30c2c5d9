"""Reads a course checkpoint (``.ckpt``) for the pose model, without running code from the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import tensor_files
from ..errors import UserError
from .base import ForeignWeights

SIZE_ENTRIES = {
    "frame_dim": "frame_transformation.6.bias",
    "label_dim": "label_transformation.4.conv2.bias",
    "z_dim": "Gaussian_Predictor.4.conv2.bias",
    "fusion_dim": "Decoder_Fusion.5.bias",
}
"""For each size in the pose model's settings, an entry of the checkpoint with this length."""

SHOWN = 3  # number of entries named in a message


def load_course_checkpoint(
    path: Path, expected: Mapping[str, Tensor], sizes: Mapping[str, object]
) -> ForeignWeights:
    """Read a checkpoint written by the course template, or by a report that kept its architecture.

    The ``optimizer`` entry is not used: in many copies of the template it holds the model's weights a second
    time, by mistake.

    Args:
        path: the file.
        expected: the model's ``state_dict``; names and shapes must agree.
        sizes: the model's settings, for a hint if the file does not fit.

    Raises:
        UserError: the file cannot be read, is damaged, stores code, or does not fit the model.
    """
    content = _read(path)
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise UserError(
            f"{path}: not a course checkpoint, it has no 'state_dict'", "expected a dict with that key"
        )
    assert isinstance(content, dict)
    state = {str(name).removeprefix("module."): value for name, value in weights.items()}
    _check(path, state, expected, sizes)
    notes = [*_saved_when(path, content), *_optimiser_notes(path, content.get("optimizer"), set(weights))]
    return ForeignWeights(state, notes)


def _read(path: Path) -> object:
    """The file's content: plain containers, numbers and tensors only."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        content: object = tensor_files.read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except tensor_files.DamagedError as error:
        refused = re.search(r"[Uu]nsupported (?:global|class):? *(?:GLOBAL )?([\w.]+)", str(error))
        if refused:
            raise UserError(
                f"{path}: holds a Python object ({refused[1]}) that only running code from the file could"
                " restore, which is refused",
                "save it again with tensors, numbers and dicts only",
            ) from error
        if is_zip:
            raise UserError(f"{path}: damaged or incomplete checkpoint", "copy it again") from error
        raise UserError(f"{path}: not a checkpoint", "expected a file written by torch.save") from error
    return content


def _check(
    path: Path, state: dict[str, Any], expected: Mapping[str, Tensor], sizes: Mapping[str, object]
) -> None:
    """Compare names, kinds and shapes of the entries with the model's."""
    not_tensors = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise UserError(f"{path}: entries that are not tensors: {_some(not_tensors)}")
    faults = []
    if missing := [name for name in expected if name not in state]:
        faults.append(f"missing {_some(missing)}")
    if unexpected := [name for name in state if name not in expected]:
        faults.append(f"unexpected {_some(unexpected)}")
    if not faults:
        wrong = [
            f"{name} is {list(state[name].shape)} instead of {list(value.shape)}"
            for name, value in expected.items()
            if state[name].shape != value.shape
        ]
        if wrong:
            faults.append(_some(wrong))
    if faults:
        found = {key: len(state[name]) for key, name in SIZE_ENTRIES.items() if _is_vector(state.get(name))}
        other = [f"model.{key}={size}" for key, size in found.items() if size != sizes[key]]
        hint = f"its sizes are {' '.join(other)}" if other else "is it another architecture?"
        raise UserError(f"{path}: does not fit the pose model: {'; '.join(faults)}", hint)


def _is_vector(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1


def _some(names: list[str]) -> str:
    """The first few names, and the number of the others."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _saved_when(path: Path, content: Mapping[str, object]) -> list[str]:
    """A line about the training that wrote the file, as far as the file says."""
    words = {"last_epoch": "epoch", "lr": "learning rate", "tfr": "tfr"}
    numbers = {word: _number(content.get(key)) for key, word in words.items()}
    known = [f"{word} {number:g}" for word, number in numbers.items() if number is not None]
    return [f"{path}: saved at {', '.join(known)}"] if known else []


def _number(value: object) -> float | None:
    """A number, also from a tensor of one element; None for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return float(value) if isinstance(value, int | float) else None


def _optimiser_notes(path: Path, optimizer: object, names: set[object]) -> list[str]:
    if not isinstance(optimizer, dict):
        return []
    if names & set(optimizer):
        return [
            f"{path}: its 'optimizer' holds the model's weights again instead of an optimiser state; ignored"
        ]
    return [f"{path}: its optimiser state is ignored; training continues with a new one"]
