"""One training in several processes: their ranks, what they add up, what they decide together.

A step is the same whatever the number of processes: each computes its rows of the global batch, and
DistributedDataParallel adds up the gradients. PyTorch's launcher starts the processes and gives each its
number in the environment. A process started without the launcher is alone; then nothing here has an effect.

Decisions (a stop, an error) go through a gloo group of their own on the CPU, so that they wait for no device.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import CvaeError, ReportedElsewhereError, UserError

T = TypeVar("T")

PATIENCE = datetime.timedelta(hours=12)
"""How long processes wait for one that works alone: decoding data, or validating."""

AGREE_EVERY = 1.0
"""Seconds between two agreements of several processes within an epoch."""


@dataclass(frozen=True)
class World:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: this process's number; process 0 leads.
        size: the number of processes.
        local_rank: this process's number on its machine.
        decisions: the group that ``greatest``, ``agreeing``, ``once`` and ``gather`` use; None when alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    decisions: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that logs, saves and reports."""
        return self.rank == 0

    # --- computing --------------------------------------------------------------------------------

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as DistributedDataParallel; the module itself when alone.

        Every parameter must take part in every step. Buffers are not exchanged: batch norm computes the
        statistics of all rows on every process (``models.layers.BatchNorm``).
        """
        if self.size == 1:
            return module
        # PyTorch 2.15 renamed it.
        names = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        settings: dict[str, Any] = {sync: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(module, **settings)

    def accumulating(self, module: nn.Module, more: bool) -> contextlib.AbstractContextManager[Any]:
        """The context of a backward pass. If ``more`` micro-batches of the step follow, gradients add up in
        this process and are not exchanged yet."""
        if more and isinstance(module, DistributedDataParallel):
            return module.no_sync()
        return contextlib.nullcontext()

    def add(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place, on the device; the host does not wait for it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    # --- deciding ---------------------------------------------------------------------------------

    def greatest(self, *values: float) -> list[float]:
        """The maximum of each value over the processes; all processes get it."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.decisions)
        return shared.tolist()

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """All processes finish the block before any continues. A ``CvaeError`` in one is raised in all: as it
        is in the first process, as ``ReportedElsewhereError`` in the others."""
        if self.size == 1:
            yield
            return
        error: CvaeError | None = None
        try:
            yield
        except CvaeError as raised:
            error = raised
        errors: list[CvaeError | None] = [None] * self.size
        dist.all_gather_object(errors, error, group=self.decisions)
        for rank, found in enumerate(errors):
            if found is not None:
                if rank > 0:  # the first process, which reports it, has no error of its own
                    found.message = f"process {rank}: {found.message}"
                raise self.reported_once(found)

    def reported_once(self, error: CvaeError) -> CvaeError:
        """The error to raise in this process when all raise it: only the first reports it."""
        return error if self.leads else ReportedElsewhereError(error.exit_code)

    def once(self, make: Callable[[], T]) -> T:
        """The first process calls ``make``; all get its result, or its ``CvaeError``."""
        if self.size == 1:
            return make()
        made: list[Any] = [None]
        with self.agreeing():
            if self.leads:
                made[0] = make()
        dist.broadcast_object_list(made, src=0, group=self.decisions)
        return made[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T] | None:
        """The values of all processes, in the first process; None in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(value, values, dst=0, group=self.decisions)
        return values


ALONE = World()


class Agreement:
    """What the processes of a training must decide together between steps: how much time counts as spent,
    and whether to stop. Several processes agree about every ``AGREE_EVERY`` seconds.

    Attributes:
        seconds: seconds of training, as last agreed; the same in all processes.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.restart(0, 0.0)

    def restart(self, step: int, seconds: float) -> None:
        """Continue after ``step`` steps and ``seconds`` seconds of training."""
        self.seconds, self._since = seconds, 0.0
        self._next_step, self._last = step, (step, time.perf_counter())

    @contextlib.contextmanager
    def timing(self) -> Iterator[None]:
        """Count the block's time as spent on training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    @property
    def total_seconds(self) -> float:
        """Seconds of training, including this process's time since the last agreement."""
        return self.seconds + self._since

    def due(self, step: int) -> bool:
        """Whether to agree after this step."""
        return self._world.size == 1 or step >= self._next_step

    def agree(self, step: int, stop: int) -> int:
        """Agree on the time spent, the next step to agree after, and a stop.

        Args:
            stop: 0, or this process's reason to stop, such as a signal's number.

        Returns:
            The greatest ``stop`` of all processes.
        """
        (last_step, last_time), now = self._last, time.perf_counter()
        pace = (step - last_step) * AGREE_EVERY / max(now - last_time, 1e-9)  # steps until the next agreement
        since, agreed, slowest = self._world.greatest(self._since, stop, -pace)
        self.seconds, self._since = self.seconds + since, 0.0
        self._next_step, self._last = step + max(1, int(-slowest)), (step, now)
        return int(agreed)


@contextlib.contextmanager
def join(device: str) -> Iterator[World]:
    """Connect to the other processes that PyTorch's launcher started, for the duration of the context.

    Args:
        device: ``runtime.device`` of the config.

    Raises:
        UserError: the device cannot be shared out among this machine's processes.
        LostProcessError: another process ended.
    """
    size = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if size == 1 or dist.is_initialized():  # a caller's own process group is left alone
        yield ALONE
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", 0))
    try:
        cuda = _take_device(device, local_rank)
    except UserError as error:
        raise error if local_rank == 0 else ReportedElsewhereError(error.exit_code) from None
    with detecting_lost_processes():
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size)
        decisions = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield World(rank, size, local_rank, decisions)
    # Not after an error: it would wait for processes that may be gone.
    dist.destroy_process_group()


def _take_device(name: str, local_rank: int) -> bool:
    """Make the GPU with this process's number the current one; True where the processes use CUDA."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not found and not torch.backends.mps.is_available()):
        return False
    if name not in ("auto", "cuda") or not found:
        raise UserError(
            f"runtime.device: {name} cannot be shared by {here} processes", "use runtime.device=cuda or cpu"
        )
    if here > found:
        raise UserError(
            f"{here} processes on this machine, which has {found} GPUs",
            "at most one process per GPU; lower the number",
        )
    torch.cuda.set_device(local_rank)
    return True


class LostProcessError(CvaeError):
    """Another process of the training is gone, and the others cannot go on without it."""


@contextlib.contextmanager
def detecting_lost_processes() -> Iterator[None]:
    """Raise ``LostProcessError`` for what a collective operation raises when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no error class of its own.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)):
            raise
        raise LostProcessError("another process of this training ended, or cannot be reached") from error
