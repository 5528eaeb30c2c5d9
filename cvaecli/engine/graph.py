"""CUDA graphs: a function of tensors of fixed shapes is recorded once, then replayed as one launch.

At batch 2 a step has hundreds of kernels of a few microseconds each, and a GPU finishes them faster than
Python can launch them. A recording reads and writes the same memory every time: arguments are copied into it,
and results are valid until the next call.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Recorder = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""Records a function without arguments. Returns a function that replays it, and the tensors that hold the
results after each replay."""

WARM_UP = 3
"""Plain calls before a recording, in which libraries choose their kernels and workspaces."""
MAX_RECORDINGS = 4
"""Most recordings of one function, each with its own memory; further kinds of arguments run unrecorded."""


class Replayed:
    """A function that is recorded once for each kind of arguments and then replayed.

    Arguments are of the same kind if their tensors agree in shape and type and everything else is equal. The
    function must not wait for the device or draw random numbers, and may depend only on its arguments and on
    tensors that keep their memory.

    Args:
        function: takes nested tuples, lists and dicts of tensors, numbers and None; always called in the same
            gradient and precision modes.
        record: ``record_cuda_graph`` by default; tests pass another one.
    """

    def __init__(self, function: Callable[..., Any], record: Recorder | None = None) -> None:
        self._function, self._record = function, record or record_cuda_graph
        self._calls: Counter[str] = Counter()
        self._recordings: dict[str, _Recording] = {}
        self._refused = False

    def __call__(self, *arguments: Any) -> Any:
        """The function's result; its tensors are overwritten by the next call."""
        leaves, spec = pytree.tree_flatten(arguments)
        kind = repr((spec, [_kind(leaf) for leaf in leaves]))
        if kind not in self._recordings:
            self._calls[kind] += 1
            if self._calls[kind] <= WARM_UP or len(self._recordings) == MAX_RECORDINGS or self._refused:
                return self._unrecorded(arguments)
            try:
                self._recordings[kind] = _Recording(self._function, leaves, spec, self._record)
            except RuntimeError as error:
                self._refused = True
                warnings.warn(
                    f"this model cannot run as a CUDA graph: {error}; continuing without one", stacklevel=2
                )
                return self._function(*arguments)
        return self._recordings[kind](leaves)

    def _unrecorded(self, arguments: Sequence[Any]) -> Any:
        """Call the function on a stream of its own, as the warm-up of a recording requires."""
        if not torch.cuda.is_available():
            return self._function(*arguments)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = self._function(*arguments)
        torch.cuda.current_stream().wait_stream(side)
        return result


class _Recording:
    """One recording, and the memory from which it reads its arguments."""

    def __init__(
        self, function: Callable[..., Any], leaves: Sequence[Any], spec: pytree.TreeSpec, record: Recorder
    ) -> None:
        self._held = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arguments = pytree.tree_unflatten(self._held, spec)
        self._replay, self._result = record(lambda: function(*arguments))

    def __call__(self, leaves: Sequence[Any]) -> Any:
        for held, leaf in zip(self._held, leaves, strict=True):
            if isinstance(leaf, Tensor):
                held.copy_(leaf, non_blocking=True)
        self._replay()
        return self._result


def record_cuda_graph(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """See ``Recorder``."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result


def _kind(leaf: Any) -> Any:
    return (tuple(leaf.shape), str(leaf.dtype)) if isinstance(leaf, Tensor) else leaf
