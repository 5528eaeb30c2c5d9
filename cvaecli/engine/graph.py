"""CUDA graphs: a function of tensors of fixed shapes is recorded once, then replayed as one launch.

At batch 2 a step has hundreds of kernels of a few microseconds each, and a GPU finishes them faster than
Python can launch them. A recording reads and writes the same memory every time: arguments are copied into it,
and results are valid until the next call.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Call = Callable[[], Any]
"""A function without arguments."""

WARM_UP = 3
"""Plain calls before a recording, in which libraries choose their kernels and workspaces."""
MAX_RECORDINGS = 4
"""Most recordings of one function; further kinds of arguments run unrecorded."""


class Recorder(Protocol):
    """What records functions: ``CudaGraphs``, or a stand-in for it in tests."""

    def warm_up(self, function: Call) -> Any:
        """Call the function without a recording, and return its result."""

    def record(self, function: Call) -> tuple[Call, Any]:
        """Record the function.

        Returns:
            A function that replays the recording, and the tensors that hold the results after each replay.

        Raises:
            RuntimeError: the function cannot be recorded.
        """

    def clean_up(self) -> None:
        """Give back the memory that no recording and no tensor uses."""


class Replayed:
    """A function that is recorded once for each kind of arguments and then replayed.

    Arguments are of the same kind if their tensors agree in shape and type and everything else is equal. The
    function must not wait for the device or draw random numbers, and may depend only on its arguments and on
    tensors that keep their memory.

    Args:
        function: takes nested tuples, lists and dicts of tensors, numbers and None; always called in the same
            gradient and precision modes.
        recorder: a new ``CudaGraphs`` by default.
    """

    def __init__(self, function: Callable[..., Any], recorder: Recorder | None = None) -> None:
        self._function, self._recorder = function, recorder or CudaGraphs()
        self._calls: Counter[str] = Counter()
        self._recordings: dict[str, _Recording] = {}
        self._refused = False

    def __call__(self, *arguments: Any) -> Any:
        """The function's result; its tensors are overwritten by the next call."""
        leaves, spec = pytree.tree_flatten(arguments)
        kind = repr((spec, [_kind(leaf) for leaf in leaves]))
        if self._due(kind):
            self._record(kind, leaves, spec)
        if kind in self._recordings:
            return self._recordings[kind](leaves)
        if self._refused:
            return self._function(*arguments)
        return self._recorder.warm_up(lambda: self._function(*arguments))

    def release(self) -> None:
        """Drop all recordings and give back their memory. Later calls record anew."""
        self._recordings.clear()
        self._calls.clear()
        self._recorder.clean_up()

    def _due(self, kind: str) -> bool:
        """Count a call; returns whether to record this kind of arguments now."""
        if kind in self._recordings or self._refused or len(self._recordings) == MAX_RECORDINGS:
            return False
        self._calls[kind] += 1
        return self._calls[kind] > WARM_UP

    def _record(self, kind: str, leaves: Sequence[Any], spec: pytree.TreeSpec) -> None:
        """Add a recording, or record nothing from now on if that fails."""
        try:
            self._recordings[kind] = _Recording(self._function, leaves, spec, self._recorder)
            return
        except RuntimeError as error:
            reason = str(error)
        # After the handler: the error's traceback holds the intermediate results of the call that failed.
        self._refused = True
        self._recorder.clean_up()
        warnings.warn(
            f"this model cannot run as a CUDA graph: {reason}; continuing without one", stacklevel=3
        )


class _Recording:
    """One recording, and the memory from which it reads its arguments."""

    def __init__(
        self,
        function: Callable[..., Any],
        leaves: Sequence[Any],
        spec: pytree.TreeSpec,
        recorder: Recorder,
    ) -> None:
        self._held = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arguments = pytree.tree_unflatten(self._held, spec)
        self._replay, self._result = recorder.record(lambda: function(*arguments))

    def __call__(self, leaves: Sequence[Any]) -> Any:
        for held, leaf in zip(self._held, leaves, strict=True):
            if isinstance(leaf, Tensor):
                held.copy_(leaf, non_blocking=True)
        self._replay()
        return self._result


class CudaGraphs:
    """Records functions as CUDA graphs on the current device, all on one stream and in one pool of memory.

    The graphs may share memory: only one runs at a time, and nobody reads what one has left there once
    another has run.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Call) -> Any:
        """See ``Recorder``. On the stream of the recordings, as these require."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = function()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def record(self, function: Call) -> tuple[Call, Any]:
        """See ``Recorder``."""
        gc.collect()  # what waits for the collector would keep its memory from the recording
        graph = torch.cuda.CUDAGraph()
        # thread_local: meanwhile the prefetch thread may allocate pinned memory.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            result = function()
        return graph.replay, result

    def clean_up(self) -> None:
        """See ``Recorder``."""
        gc.collect()
        torch.cuda.empty_cache()
        # PyTorch refuses a pool whose recordings are gone while a tensor in it is still in use.
        self._pool = torch.cuda.graph_pool_handle()


def _kind(leaf: Any) -> Any:
    return (tuple(leaf.shape), str(leaf.dtype)) if isinstance(leaf, Tensor) else leaf
