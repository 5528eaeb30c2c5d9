"""Reads a course checkpoint (``.ckpt``) for the pose model, without running any code stored in it."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .pose import MIN_SIZE, PoseConfig, PoseCVAE

SIZE_ENTRIES = {
    "frame_dim": "frame_transformation.6.bias",
    "label_dim": "label_transformation.4.conv2.bias",
    "z_dim": "Gaussian_Predictor.4.conv2.bias",
    "fusion_dim": "Decoder_Fusion.5.bias",
}
"""For each size of `PoseConfig` an entry whose length it is."""

SHOWN = 3  # entries named in a message


@dataclass(frozen=True)
class CourseCheckpoint:
    """What of a course checkpoint is of use.

    Attributes:
        state_dict: for ``PoseCVAE.load_state_dict``; tensors on the CPU.
        lr: learning rate when it was saved; None where the file does not say (so below).
        tfr: teacher-forcing ratio.
        last_epoch: the epoch after which it was saved.
        notes: what was odd but harmless, one line each.
    """

    state_dict: dict[str, Tensor]
    lr: float | None
    tfr: float | None
    last_epoch: int | None
    notes: list[str]


def load_course_checkpoint(path: str | Path, config: PoseConfig | None = None) -> CourseCheckpoint:
    """Read a checkpoint written by the course template or by a report that kept its architecture.

    Its ``optimizer`` entry is left alone: in many copies of the template it is the model's weights
    once more, by mistake.

    Args:
        path: the file.
        config: the model it is meant for; the course's sizes if None.

    Raises:
        UserError: the file cannot be read, is damaged, stores code, or does not fit the model.
    """
    path, config = Path(path), config or PoseConfig()
    content = _read(path)
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise UserError(
            f"{path}: not a course checkpoint, it has no 'state_dict'", "expected a dict with that key"
        )
    assert isinstance(content, dict)
    state = {str(name).removeprefix("module."): value for name, value in weights.items()}
    _check(path, state, config)
    last_epoch = _number(content.get("last_epoch"))
    return CourseCheckpoint(
        state_dict=state,
        lr=_number(content.get("lr")),
        tfr=_number(content.get("tfr")),
        last_epoch=None if last_epoch is None else int(last_epoch),
        notes=_notes(path, content.get("optimizer"), set(weights)),
    )


def _read(path: Path) -> object:
    """The file's content; plain containers, numbers and tensors only."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters is raised
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can fail inside the unpickler in any way whatever
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


def _check(path: Path, state: dict[str, Any], config: PoseConfig) -> None:
    """Names, kinds and shapes of the entries against the model's."""
    with torch.device("meta"):
        expected = PoseCVAE(config, (3, MIN_SIZE, MIN_SIZE)).state_dict()
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
        sizes = {key: len(state[name]) for key, name in SIZE_ENTRIES.items() if _is_vector(state.get(name))}
        other = [f"model.{key}={size}" for key, size in sizes.items() if size != getattr(config, key)]
        hint = f"its sizes are {' '.join(other)}" if other else "is it another architecture?"
        raise UserError(f"{path}: does not fit the pose model: {'; '.join(faults)}", hint)


def _is_vector(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1


def _some(names: list[str]) -> str:
    """The first few and how many more."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _number(value: object) -> float | None:
    """A number, also from a tensor of one element; None for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return float(value) if isinstance(value, int | float) else None


def _notes(path: Path, optimizer: object, names: set[object]) -> list[str]:
    if not isinstance(optimizer, dict):
        return []
    if names & set(optimizer):
        return [f"{path}: its 'optimizer' holds the model's weights again, no optimiser state; ignored"]
    return [f"{path}: its optimiser state is ignored; training goes on with a fresh one"]
