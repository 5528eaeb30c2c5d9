"""The device of a run: its choice, precision, compilation, and what stays in memory."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch.utils.checkpoint import checkpoint

from ..config.schema import RuntimeConfig
from ..errors import UserError
from ..models.base import VideoCVAE

Model = TypeVar("Model", bound=torch.nn.Module)
T = TypeVar("T")

COMPILING_PAYS = 5000
"""Number of steps from which compiling, which takes a minute or two, is assumed to pay on CUDA: a choice, not
a measurement. On a CPU a compiled step of the course architecture was as fast as a plain one, after 87 s of
compiling."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h; a threshold of -1 is "never"


@dataclass(frozen=True)
class Device:
    """A device and the precision of its matrix work.

    Attributes:
        torch: the PyTorch device.
        bf16: convolutions and matrix products in bfloat16 (autocast); weights, losses and
            statistics stay in float32.
    """

    torch: torch.device
    bf16: bool

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The precision's context. Enter it around computation only, never across a ``yield``."""
        return torch.autocast(self.torch.type, dtype=torch.bfloat16, enabled=self.bf16)

    def synchronize(self) -> None:
        """Wait until all queued work is done: for timing, and for errors that surface late."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)
        elif self.torch.type == "mps":
            torch.mps.synchronize()

    def place(self, model: Model) -> Model:
        """Move a model here, with convolution weights channels-last, which was faster on every device
        tried."""
        return model.to(self.torch).to(memory_format=torch.channels_last)

    def for_inference(self, model: Model) -> Model:
        """The model, or under bf16 a copy whose convolutions hold their weights in bf16.

        The results are the same: autocast would cast the weights too, but at every step. The given model
        does not change, so that training can continue with it.
        """
        if not self.bf16:
            return model
        copied = copy.deepcopy(model)
        for part in copied.modules():
            if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                part.to(torch.bfloat16)
        return copied

    @property
    def name(self) -> str:
        """The accelerator's or processor's name, for display."""
        if self.torch.type == "cuda":
            return torch.cuda.get_device_name(self.torch)
        threads = f", {torch.get_num_threads()} threads" if self.torch.type == "cpu" else ""
        return f"{self.torch.type} ({platform.machine()}{threads})"

    @property
    def precision(self) -> str:
        """``bf16`` or ``fp32``."""
        return "bf16" if self.bf16 else "fp32"


def prepare(runtime: RuntimeConfig) -> Device:
    """Set up the process for a run and return its device.

    Raises:
        UserError: the device does not exist here.
    """
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    _keep_freed_memory()
    if runtime.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports a compiler
        torch.use_deterministic_algorithms(runtime.deterministic)
    if runtime.deterministic:  # cuBLAS refuses to work deterministically without it; read when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = not runtime.deterministic
    device = _choose(runtime.device)
    bf16 = runtime.precision == "bf16" or (runtime.precision == "auto" and _has_bf16_units(device))
    return Device(device, bf16)


def _choose(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"runtime.device: {name!r} is not a device", "auto, cpu, cuda, cuda:1 or mps"
        ) from None
    found = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= found:
        raise UserError(f"runtime.device: there is no {name} on this machine", "use runtime.device=auto")
    return device


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step instead of giving it back to the system.

    Otherwise tensors of tens of megabytes get new pages at every step, which the system zeroes one by one:
    10 % of a training step in bf16, up to 40 % in fp32. Other C libraries are left as they are.
    """
    libc, _ = platform.libc_ver()
    if libc != "glibc" or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        mallopt(option, value)


def _has_bf16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


# --- compiled parts -----------------------------------------------------------------------------------


class _Compiled:
    """The methods of a model that a training step calls, compiled. Copies of the model are not compiled."""

    def __init__(self, model: VideoCVAE) -> None:
        self.parallel, self.buffers = model.parallel, model.buffers
        for name in ("encode", "burn_in", "step", "unroll"):
            setattr(self, name, torch.compile(getattr(model, name), dynamic=False))


def compiled(model: VideoCVAE, runtime: RuntimeConfig, device: Device, total_steps: int) -> VideoCVAE:
    """The model for training steps, compiled where ``runtime.compile`` says so.

    Args:
        total_steps: steps of the whole run, so that a resumed run makes the same choice.
    """
    pays = device.torch.type == "cuda" and total_steps >= COMPILING_PAYS
    if runtime.compile == "on" or (runtime.compile == "auto" and pays):
        return cast(VideoCVAE, _Compiled(model))
    return model


# --- activation checkpointing -------------------------------------------------------------------------


def recomputed(model: VideoCVAE, function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)``, run again in the backward pass instead of keeping its intermediate results
    (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

    Args:
        model: the model that ``function`` uses; only the first run updates its running statistics.
        function: draws no random numbers.
    """

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _buffers_restored(model)

    result: T = checkpoint(
        function, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )
    return result


@contextlib.contextmanager
def _buffers_restored(model: VideoCVAE) -> Iterator[None]:
    """Restore the model's buffers at the end of the context."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                # .data: autograd may have noted the buffer's version, and its values do not change.
                buffer.data.copy_(value)
