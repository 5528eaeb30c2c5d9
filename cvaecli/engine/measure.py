"""What a device can do and what a computation costs: measured peak speed, counted FLOPs, memory, time."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .device import Device

CHANNELS = 192
"""Channels of the convolution whose speed is measured: those of the course architecture's generator."""


class Peak(NamedTuple):
    """Measured speeds in GFLOP/s; a multiplication and an addition are two operations."""

    matmul: float
    conv: float


def measure_peak(device: Device, seconds: float = 0.5) -> Peak:
    """The best speed of a square matrix product and of a 3x3 convolution (192 to 192 channels,
    channels-last, 32x64), in the device's precision and with the process's settings.

    Args:
        seconds: time to spend on each of the two operations.
    """
    dtype = torch.bfloat16 if device.bf16 else torch.float32
    # Large enough that the cost of launching a kernel is small; smaller on a CPU, to finish in seconds.
    n, batch = (2048, 8) if device.torch.type == "cpu" else (8192, 256)
    a, b = (torch.randn(n, n, device=device.torch, dtype=dtype) for _ in range(2))
    x = torch.randn(batch, CHANNELS, 32, 64, device=device.torch, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    conv = device.place(torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).to(dtype))
    with torch.inference_mode():
        return Peak(_speed(lambda: a @ b, device, seconds), _speed(lambda: conv(x), device, seconds))


def _speed(work: Callable[[], object], device: Device, seconds: float) -> float:
    """GFLOP/s of the fastest of many calls."""
    flops = count_flops(work)  # also lets libraries choose their kernels
    work()
    device.synchronize()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        work()
        device.synchronize()
        best = min(best, time.perf_counter() - began)
    return flops / best / 1e9


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions, matrix products and attentions in one call, forward and
    backward. Elementwise operations and compiled code are not counted.
    """
    from torch.utils.flop_counter import FlopCounterMode  # late: it imports a compiler

    backward = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=backward) as counter:
        work()
    return int(counter.get_total_flops())


def _convolution_backward(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """As many operations as the forward pass for the input's gradient, and as many for the weight's.

    PyTorch's own formula counts the weight gradient of a depth-wise convolution as that of a full one.
    """
    per_value = prod(w_shape[1:])  # multiplications for each value of the narrower side
    return 2 * prod(x_shape if transposed else grad_shape) * per_value * sum(wanted[:2])


def peak_memory(device: Device) -> float:
    """Most bytes in use so far. On CUDA those of tensors on the device, elsewhere this process's memory
    (the largest resident set, with Python and the libraries); NaN where the system does not say.
    """
    if device.torch.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device.torch))
    try:
        # Not getrusage: its peak survives exec, so a child process may show its parent's.
        status = Path("/proc/self/status").read_text()
        return 1024.0 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # not a POSIX system
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def memory_gb(device: Device) -> dict[str, float]:
    """``peak_memory_gb``, see ``peak_memory``; on CUDA also ``reserved_memory_gb``, the most that PyTorch has
    taken from the device so far: for tensors and recorded graphs, and what it keeps for later."""
    found = {"peak_memory_gb": round(peak_memory(device) / 1e9, 3)}
    if device.torch.type == "cuda":
        found["reserved_memory_gb"] = round(torch.cuda.max_memory_reserved(device.torch) / 1e9, 3)
    return found


def reset_peak_memory(device: Device) -> None:
    """Let ``memory_gb`` count from now on: on CUDA, and on Linux."""
    if device.torch.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device.torch)
    with contextlib.suppress(OSError):  # another system, or not allowed
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes what is in use now; see proc(5)


def process_age() -> float | None:
    """Seconds since this process was started, to a hundredth; None where the system does not say."""
    try:
        # Field 22 of proc(5), in clock ticks since the boot; the name before it may contain blanks.
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None
