"""One training in several processes: who they are, what they add up, what they agree on.

A step is the same step whatever the number of processes: each computes its rows of the global batch,
DistributedDataParallel adds the gradients up. The processes are started by PyTorch's launcher, which says
in the environment who is who; a process started by hand is alone, and then nothing here does anything.

Decisions (a stop, an error) go through a gloo group of their own on the CPU: they wait for no device.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import os
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
"""How long processes wait for each other where one may be at work alone: decoding, a validation."""


@dataclass(frozen=True)
class World:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: this process's number; 0 leads: it alone logs, saves and talks.
        size: how many there are.
        local_rank: this process's number on its machine.
        decisions: the group that ``greatest``, ``agreeing``, ``once`` and ``gather`` use; None when alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    decisions: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that logs, saves and talks."""
        return self.rank == 0

    # --- computing --------------------------------------------------------------------------------

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as DistributedDataParallel; itself when alone.

        Every parameter has to take part in every step. Buffers are not sent around: batch norm has the
        statistics of all rows on every process (``models.layers.BatchNorm``).
        """
        if self.size == 1:
            return module
        # PyTorch 2.15 renamed it.
        names = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        settings: dict[str, Any] = {sync: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(module, **settings)

    def unsynchronised(self, module: nn.Module, really: bool) -> contextlib.AbstractContextManager[Any]:
        """For all but the last backward pass of a step: gradients add up here and are not exchanged yet."""
        if really and isinstance(module, DistributedDataParallel):
            return module.no_sync()
        return contextlib.nullcontext()

    def add(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place, on the device; the host does not wait for it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    # --- deciding ---------------------------------------------------------------------------------

    def greatest(self, *values: float) -> list[float]:
        """The greatest of every value over the processes, known to all."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.decisions)
        return shared.tolist()

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """For work that all must have done before any goes on: one process's ``CvaeError`` is raised in
        all, as ``ReportedElsewhereError`` but in the first."""
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
                if rank > 0:  # the first has none of its own
                    found.message = f"process {rank}: {found.message}"
                raise self.told_once(found)

    def told_once(self, error: CvaeError) -> CvaeError:
        """An error that all processes have alike, silent in all but the first."""
        return error if self.leads else ReportedElsewhereError(error.exit_code)

    def once(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all. Its ``CvaeError`` is raised in all."""
        if self.size == 1:
            return make()
        made: list[Any] = [None]
        with self.agreeing():
            if self.leads:
                made[0] = make()
        dist.broadcast_object_list(made, src=0, group=self.decisions)
        return made[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T] | None:
        """Every process's value, in the first; None in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(value, values, dst=0, group=self.decisions)
        return values


ALONE = World()


@contextlib.contextmanager
def join(device: str) -> Iterator[World]:
    """Meet the other processes that PyTorch's launcher started, for the duration of the context.

    Args:
        device: ``runtime.device`` of the config.

    Raises:
        UserError: the device cannot be shared out among this machine's processes.
        LostProcessError: another process ended.
    """
    size = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if size == 1 or dist.is_initialized():  # who has set up processes of their own keeps them
        yield ALONE
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", 0))
    try:
        cuda = _take_device(device, local_rank)
    except UserError as error:
        raise error if local_rank == 0 else ReportedElsewhereError(error.exit_code) from None
    with losses():
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size)
        decisions = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield World(rank, size, local_rank, decisions)
    # Not where an error ends the context: it would wait for processes that may be gone.
    dist.destroy_process_group()


def _take_device(name: str, local_rank: int) -> bool:
    """Make the accelerator of this process's number the current one; True where it is CUDA."""
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
            f"{here} processes on this machine, which has {found} GPUs", "one process a GPU; lower the number"
        )
    torch.cuda.set_device(local_rank)
    return True


class LostProcessError(CvaeError):
    """Another process of the training is gone, and nothing can be computed without it."""


@contextlib.contextmanager
def losses() -> Iterator[None]:
    """Turn what a collective raises when another process is gone into ``LostProcessError``."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no error class of its own.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)):
            raise
        raise LostProcessError("another process of this training ended, or cannot be reached") from error
