"""Reads the original SVG code's files, pickles of whole modules, without running anything in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ..base import ForeignSettings, ForeignWeights
from ..foreign import check_fit
from ..inert_pickle import InertFile, mapping

MODULES = ("encoder", "decoder", "frame_predictor", "posterior")
PREDICTOR_INPUT = "frame_predictor.embed.weight"
PREDICTOR_NORM = "frame_predictor.output.1"
EPSILON = 1e-5  # PyTorch's default for batch norm


def original_settings(path: Path) -> ForeignSettings:
    """What an original file says about its model: the tensors' sizes, and the options it was trained with.

    Raises:
        UserError: the file cannot be read, is damaged, or is not of the original code.
    """
    content, state = _read(path)
    options = next((found for key in ("opt", "args") if (found := mapping(content.get(key)))), {})
    last_frame_skip = bool(options.get("last_frame_skip", False))
    vgg = "encoder.c1.0.main.0.weight" in state
    g, z = _length(state, "encoder.c5.0.bias"), _length(state, "posterior.mu_net.bias")
    predictor = state.get(PREDICTOR_INPUT)
    model = {
        "name": "svg",
        "backbone": "vgg" if vgg else "dcgan",
        "width": _length(state, f"encoder.c1.{'0.' if vgg else ''}main.0.bias"),
        "g_dim": g,
        "z_dim": z,
        "rnn_size": _length(state, "frame_predictor.embed.bias"),
        "predictor_layers": _layers(state, "frame_predictor"),
        "posterior_layers": _layers(state, "posterior"),
        "prior_layers": _layers(state, "prior"),
        "prior": "learned" if "prior.embed.weight" in state else "fixed",
        "normalise": False,
        "last_frame_skip": last_frame_skip,
        "legacy_skip": not last_frame_skip,
    }
    numbers = {"n_past": "n_past", "n_future": "n_future", "height": "image_width", "width": "image_width"}
    data = {key: options[name] for key, name in numbers.items() if isinstance(options.get(name), int)}
    last = content.get("last_epoch")
    return ForeignSettings(
        model=model,
        data=data,
        condition=max(predictor.shape[1] - g - z, 0) if predictor is not None and predictor.dim() == 2 else 0,
        epochs=last + 1 if isinstance(last, int) and last >= 0 else 0,
    )


def load_original(path: Path, expected: Mapping[str, Tensor]) -> ForeignWeights:
    """Read the weights of an original file.

    Some versions have no conditions, or no batch norm in the predictor's output. The missing columns of the
    predictor's first layer are added with zeros, and the missing norm as one that changes nothing. So the
    model predicts what the original predicts.

    Args:
        expected: the model's ``state_dict``; names and shapes must agree.

    Raises:
        UserError: the file cannot be read, is damaged, is not of the original code, or does not fit.
    """
    _, state = _read(path)
    notes = []
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros_like(value))  # absent before PyTorch 0.4.1, and not used
    state |= {name: expected[name] for name in ("condition_mean", "condition_std")}
    if f"{PREDICTOR_NORM}.weight" not in state:
        state |= _identity(expected)
    embed, wanted = state.get(PREDICTOR_INPUT), expected[PREDICTOR_INPUT].shape[1]
    known = expected["encoder.c5.0.bias"].numel() + expected["posterior.mu_net.bias"].numel()
    if embed is not None and embed.dim() == 2 and embed.shape[1] == known < wanted:
        state[PREDICTOR_INPUT] = torch.cat((embed, embed.new_zeros(len(embed), wanted - known)), 1)
        notes.append(f"{path}: its model has no condition; here it ignores the data's")
    check_fit(path, state, expected, "svg", "is it another architecture, frame size or number of channels?")
    return ForeignWeights(state, notes)


def _read(path: Path) -> tuple[Mapping[Any, Any], dict[str, Tensor]]:
    """The content of a file, and the state dict of its modules together."""
    file = InertFile(path)
    content = mapping(file.content)
    if content is None or not set(MODULES) <= set(content):
        raise UserError(
            f"{path}: not a file of the SVG code",
            f"expected a dict with {', '.join(MODULES)} and perhaps prior",
        )
    modules = [name for name in (*MODULES, "prior") if name in content]
    state = {
        f"{module}.{name.removeprefix('module.')}": value
        for module in modules
        for name, value in file.state_dict(content[module]).items()
    }
    return content, state


def _identity(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch norm after the predictor that, in evaluation, changes nothing."""
    like = expected[f"{PREDICTOR_NORM}.weight"]
    values = {
        "weight": torch.full_like(like, math.sqrt(1 + EPSILON)),
        "bias": torch.zeros_like(like),
        "running_mean": torch.zeros_like(like),
        "running_var": torch.ones_like(like),
    }
    return {f"{PREDICTOR_NORM}.{name}": value for name, value in values.items()}


def _length(state: Mapping[str, Tensor], name: str) -> int:
    """Length of a vector in the file; 1, which no model has, if it is not there."""
    return state[name].numel() if name in state else 1


def _layers(state: Mapping[str, Tensor], module: str) -> int:
    return max(1, sum(name.startswith(f"{module}.lstm.") and name.endswith("weight_ih") for name in state))
