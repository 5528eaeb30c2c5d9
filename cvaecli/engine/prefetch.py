"""Host work that overlaps with the device's: items prepared ahead in a thread, asynchronous copies."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

T = TypeVar("T")

AHEAD = 3
"""Number of items that are prepared before they are requested."""


def ahead(items: Iterable[T], depth: int = AHEAD) -> Iterator[T]:
    """The same items in the same order, prepared in a thread up to ``depth`` items ahead.

    The thread starts when the first item is requested. It ends after the last item, or when this generator is
    closed or deleted. An exception of ``items`` is raised here, in its place in the order.
    """
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
    unwanted = threading.Event()

    def make() -> None:
        try:
            for item in items:
                ready.put((item,))
                if unwanted.is_set():
                    return
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while isinstance(made := ready.get(), tuple):
            yield made[0]
        if made is not None:
            raise made
    finally:
        unwanted.set()
        while not ready.empty():  # lets a thread that is waiting to put an item end
            ready.get_nowait()
        thread.join()


def empty_on_host(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor on the host that can be copied to and from ``device`` without waiting (pinned
    memory for CUDA)."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def to_device(values: npt.NDArray[np.generic] | Tensor, device: torch.device) -> Tensor:
    """A writable array, or a tensor of the host, on the device; the host does not wait for it."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def on_host(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same tensors on the host.

    On CUDA each piece is yielded one piece late, when the work for the next one is already queued on the
    device: device and host work at the same time.
    """
    waiting: tuple[Tensor, torch.cuda.Event] | None = None
    for piece in pieces:
        if piece.device.type != "cuda":
            yield piece.cpu()
            continue
        copy = empty_on_host(tuple(piece.shape), piece.dtype, piece.device)
        copy.copy_(piece, non_blocking=True)
        copied = torch.cuda.current_stream(piece.device).record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = copy, copied
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(copy: Tensor, copied: torch.cuda.Event) -> Tensor:
    copied.synchronize()
    return copy
