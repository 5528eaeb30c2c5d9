"""Activation checkpointing over time: inner results of few steps are kept, all others computed again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recomputed(model: nn.Module, function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)``; the backward pass runs it again instead of keeping what happens inside
    (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

    Args:
        model: what ``function`` computes with; its running statistics are updated the first time only.
        function: draws no random numbers.
    """

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _statistics_kept(model)

    result: T = checkpoint(
        function, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )
    return result


@contextlib.contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Whatever happens to the model's buffers inside is undone at the end."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                # .data: autograd may have noted the buffer's version, and its values are what they were.
                buffer.data.copy_(value)
