"""Compares the weights of another program's file with those that a model needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError

SHOWN = 3  # number of entries named in a message


def check_fit(
    path: Path, state: Mapping[str, Any], expected: Mapping[str, Tensor], model: str, hint: str
) -> None:
    """Compare names, kinds and shapes of a file's entries with those of the model's state dict.

    Args:
        model: the model's name, for the message.
        hint: what to do if they differ.

    Raises:
        UserError: names the first few differences.
    """
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
        raise UserError(f"{path}: does not fit the {model} model: {'; '.join(faults)}", hint)


def _some(names: Sequence[str]) -> str:
    """The first few names, and the number of the others."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
