"""A trained model as graphs: functions from tensors to tensors, for programs without this tool.

A parallel model is one graph, ``model``: every row of a batch is a frame to predict, with the given frames
that belong to it. Any other model is two: ``start`` turns the given frames into a state, and ``step``
predicts one frame. A model without a state has no ``start``. z is drawn from the prior; its noise is an
input, so a graph has no randomness of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..models.base import VideoCVAE, slice_time
from ..models.layers import split_time
from .rollout import Noise

Floats = npt.NDArray[np.float32]
Call = Callable[[Mapping[str, Floats]], Mapping[str, Floats]]
"""Runs a graph: arrays by name in, arrays by name out."""

NEXT = "next_"
"""Begins the names of the outputs that are an input of the next step."""


class Graph(NamedTuple):
    """A function of tensors alone.

    Attributes:
        name: ``model``, ``start`` or ``step``.
        module: computes the outputs, a tuple, from the inputs in their order.
        inputs: an example of each input. Axis 0 is the batch.
        outputs: names of the outputs.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]

    def exported(self) -> torch.export.ExportedProgram:
        """The graph as a program of PyTorch operations, with any batch size."""
        batch = torch.export.Dim("batch")
        shapes = tuple({0: batch} for _ in self.inputs)
        with torch.no_grad():
            return torch.export.export(
                self.module, tuple(self.inputs.values()), dynamic_shapes=(shapes,), strict=False
            )


class _Whole(nn.Module):
    """``past [B, n_past, C, H, W]``, ``past_condition``, ``condition [B, ...]`` and noise to frames."""

    def __init__(self, model: VideoCVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        past, past_condition, condition, *noise = inputs
        state = self.model.start(past, past_condition)
        features = slice_time(self.model.encode(condition[:, None]), 0)
        step, _ = self.model.step(state, past[:, -1], features, noise, posterior=False)
        return (step.x_hat,)


class _Start(nn.Module):
    """``past`` and ``past_condition`` to the tensors of the state."""

    def __init__(self, model: VideoCVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(pytree.tree_leaves(self.model.start(*inputs)))


class _Step(nn.Module):
    """``previous [B, C, H, W]``, ``condition [B, ...]``, noise and state to the frame and the new state.

    Args:
        levels: number of latent levels, each with its noise.
        spec: structure of the state.
        changing: numbers of the state's tensors that a step changes; the others are no outputs.
    """

    def __init__(
        self, model: VideoCVAE, levels: int, spec: pytree.TreeSpec, changing: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.model, self.levels, self.spec, self.changing = model, levels, spec, changing

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        frame, state = self.run(*inputs)
        return (frame, *(state[number] for number in self.changing))

    def run(self, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The frame and all tensors of the new state."""
        previous, condition, *others = inputs
        noise, state = others[: self.levels], pytree.tree_unflatten(others[self.levels :], self.spec)
        features = slice_time(self.model.encode(condition[:, None]), 0)
        step, state = self.model.step(state, previous, features, noise, posterior=False)
        return step.x_hat, pytree.tree_leaves(state)


def graphs(model: VideoCVAE, past: Tensor, condition: Tensor) -> list[Graph]:
    """The graphs of a model.

    Args:
        model: in evaluation mode, in float32, on the CPU.
        past: an example of the given frames, ``[B, n_past, C, H, W]`` with B of two or more: PyTorch takes a
            length of one for a constant.
        condition: an example of the conditions, ``[B, n_past + 1, ...]``.
    """
    B, n_past, size = past.shape[0], past.shape[1], (past.shape[-2], past.shape[-1])
    given = {"past": past, "past_condition": condition[:, :n_past]}
    shapes = model.noise_shapes(size)
    noise = {f"noise_{level}": torch.randn(B, *shape) for level, shape in enumerate(shapes)}
    if model.parallel:
        inputs = {**given, "condition": condition[:, n_past], **noise}
        return [Graph("model", _Whole(model), inputs, ["frame"])]
    with torch.no_grad():
        leaves, spec = pytree.tree_flatten(model.start(*given.values()))
    state = {f"state_{number}": leaf for number, leaf in enumerate(leaves)}
    inputs = {"previous": past[:, -1], "condition": condition[:, n_past], **noise, **state}
    with torch.no_grad():
        _, after = _Step(model, len(shapes), spec).run(*inputs.values())
    changing = [number for number, leaf in enumerate(leaves) if after[number] is not leaf]
    outputs = ["frame", *(f"{NEXT}state_{number}" for number in changing)]
    step = Graph("step", _Step(model, len(shapes), spec, changing), inputs, outputs)
    return [*([Graph("start", _Start(model), given, list(state))] if state else []), step]


def played(
    calls: Mapping[str, Call],
    past: Tensor,
    past_condition: Tensor,
    conditions: Iterable[Tensor],
    noise: Noise,
) -> Iterator[Tensor]:
    """``rollout.rollout`` by the graphs of a model, with the same arguments and results.

    Args:
        calls: runs each graph, by its name.
        past, past_condition: the given frames ``[B, n_past, C, H, W]`` and their conditions, on the CPU.
        conditions: conditions of the steps to predict, in pieces ``[B, k, ...]``.
        noise: see ``rollout.Noise``.

    Yields:
        The predictions of each piece, ``[B, k, C, H, W]``, not clamped.
    """
    given = {"past": past.numpy(), "past_condition": past_condition.numpy()}
    state = dict(calls["start"](given)) if "start" in calls else {}
    frame, first = given["past"][:, -1], 0
    for piece in conditions:
        condition, K = piece.numpy(), piece.shape[1]
        drawn = {f"noise_{level}": values.numpy() for level, values in enumerate(noise(first, K))}
        first += K
        if "model" in calls:  # frames are rows
            rows = {name: np.repeat(values, K, 0) for name, values in given.items()}
            rows |= {name: values.reshape(-1, *values.shape[2:]) for name, values in drawn.items()}
            rows["condition"] = condition.reshape(-1, *condition.shape[2:])
            yield split_time(torch.from_numpy(calls["model"](rows)["frame"]), (-1, K))
            continue
        frames = []
        for k in range(K):
            now = {name: values[:, k] for name, values in drawn.items()}
            found = dict(calls["step"]({"previous": frame, "condition": condition[:, k], **now, **state}))
            frame = found.pop("frame")
            frames.append(frame)
            state |= {name.removeprefix(NEXT): value for name, value in found.items()}
        yield torch.from_numpy(np.stack(frames, 1))
