"""Divides one machine among several trainings."""

from __future__ import annotations

import os

from ..config.schema import RunConfig


def shares(config: RunConfig, workers: int) -> list[tuple[dict[str, str], list[str]]]:
    """The environment and the overrides of each worker on this machine: a GPU, or a share of the cores.

    Two trainings that both use all cores are several times slower, because their threads spin while they
    wait. A single worker uses the whole machine, as ``cvae train`` does.
    """
    if workers == 1:
        return [({}, [])]
    threads = config.runtime.threads or max(1, cores() // workers)
    common = {"OMP_NUM_THREADS": str(threads)}, [f"runtime.threads={threads}"]
    gpus = _gpus(config.runtime.device)
    masks = [{"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {} for place in range(workers)]
    return [({**common[0], **mask}, common[1]) for mask in masks]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(device: str) -> list[str]:
    """The CUDA devices to divide, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
