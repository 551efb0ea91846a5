"""Sums over ranks: of what kind, `SyncBatchNorm` does not care."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

SPINS = 200  # looks at a sum before the first pause: some 100 us, a sum's usual time
PAUSE = 50e-6  # seconds


class Reducer(Protocol):
    """All ranks call `all_reduce` with tensors of one shape and dtype, in one order."""

    @property
    def size(self) -> int:
        """The number of ranks."""

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over all ranks; on CUDA in the current stream, without waiting."""


class ProcessGroupReducer:
    """Over torch.distributed: gloo, NCCL, or what the group has for the tensor's device. None: the default group."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.size = dist.get_world_size(group)

    def all_reduce(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor, group=self._group)


class MPIReducer:
    """Over an mpi4py communicator, for tensors on the CPU.

    MPI's own waiting spins, which where ranks outnumber cores keeps those from computing that are waited for. This one
    spins briefly and then sleeps.

    `comm`: an `mpi4py.MPI.Intracomm` of its own (`COMM_WORLD.Dup()`), so that no other message gets between.
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.size: int = comm.Get_size()

    def all_reduce(self, tensor: Tensor) -> None:
        if tensor.device.type != "cpu":
            raise ValueError(f"MPIReducer: got a tensor on {tensor.device}, allowed: cpu")
        with torch.no_grad():
            request = self._comm.Iallreduce(None, tensor.numpy())  # None is mpi4py's IN_PLACE; the sum is the default
        tests = 0
        while not request.Test():
            tests += 1
            if tests > SPINS:
                time.sleep(PAUSE)
