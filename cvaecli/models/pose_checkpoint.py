"""Reads a course checkpoint (``.ckpt``) for the pose model, without running code from the file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import tensor_files
from ..errors import UserError
from .base import ForeignSettings, ForeignWeights
from .foreign import check_fit

SIZE_ENTRIES = {
    "frame_dim": "frame_transformation.6.bias",
    "label_dim": "label_transformation.4.conv2.bias",
    "z_dim": "Gaussian_Predictor.4.conv2.bias",
    "fusion_dim": "Decoder_Fusion.5.bias",
}
"""For each size in the pose model's settings, an entry of the checkpoint with this length."""

FIRST_LABEL_CONVOLUTION = "label_transformation.1.weight"


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
    content, state = _weights(path)
    check_fit(path, state, expected, "pose", _hint(state, sizes))
    notes = [
        *_saved_when(path, content),
        *_optimiser_notes(path, content.get("optimizer"), set(content["state_dict"])),
    ]
    return ForeignWeights(state, notes)


def course_settings(path: Path) -> ForeignSettings:
    """What a course checkpoint says about its model: its sizes. Everything else is as in the course's code.

    Raises:
        UserError: the file cannot be read, is damaged, or stores code.
    """
    content, state = _weights(path)
    first, epoch = state.get(FIRST_LABEL_CONVOLUTION), _number(content.get("last_epoch"))
    return ForeignSettings(
        model={"name": "pose", **_sizes(state)},
        data={},
        condition=first.shape[1] if isinstance(first, Tensor) and first.dim() == 4 else 3,
        epochs=int(epoch) + 1 if epoch is not None and 0 <= epoch < math.inf else 0,
    )


def _weights(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a course checkpoint, and its state dict under the names of a single process."""
    content = _read(path)
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(weights, dict):
        raise UserError(
            f"{path}: not a course checkpoint, it has no 'state_dict'", "expected a dict with that key"
        )
    return content, {str(name).removeprefix("module."): value for name, value in weights.items()}


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
                "save it again with tensors, numbers and dicts only; for SVG's own files use model.name=svg",
            ) from error
        if is_zip:
            raise UserError(f"{path}: damaged or incomplete checkpoint", "copy it again") from error
        raise UserError(f"{path}: not a checkpoint", "expected a file written by torch.save") from error
    return content


def _hint(state: Mapping[str, Any], sizes: Mapping[str, object]) -> str:
    """What to do about a file that does not fit: its sizes, where they differ from the model's."""
    other = [f"model.{key}={size}" for key, size in _sizes(state).items() if size != sizes[key]]
    return f"its sizes are {' '.join(other)}" if other else "is it another architecture?"


def _sizes(state: Mapping[str, Any]) -> dict[str, int]:
    """The sizes in the pose model's settings that the entries of a checkpoint imply."""
    return {key: len(state[name]) for key, name in SIZE_ENTRIES.items() if _is_vector(state.get(name))}


def _is_vector(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1


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
