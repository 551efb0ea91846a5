"""What a training knows of the other processes it trains with: its ranks.

Every rank makes the same calls in the same order. A `World()` of one rank is the default: it communicates with nobody,
and every method then is what one would have written without it.
"""

from __future__ import annotations

import inspect
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pynas.cores import available_cores
from pynas.errors import PynasError
from pynas.ops import mbconv_choice
from pynas.ops.reduce import ProcessGroupReducer, Reducer
from pynas.ops.sync_batch_norm import convert_sync_batchnorm

Value = TypeVar("Value")

ORDERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGUSR1)
"""The signals that ranks tell each other; of several that came the first counts."""

POSITIONS = 1 << 52
"""More than a training has positions."""

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others, which may still be listing their images, before gloo and NCCL give up."""


class World:
    """One rank of `size`, of which `size // nodes` run on each node.

    `device`: where this rank computes; None leaves that to the recipe. `cores`: those that are this rank's share; None
    for all there are. `advance(position, what)` is called wherever the training has got on: positions grow, and the
    rank with the lowest is the one that others wait for. `unhurried()` is entered where it gets on by no steps.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        nodes: int = 1,
        *,
        device: torch.device | None = None,
        reducer: Reducer | None = None,
        advance: Callable[[int, str], None] | None = None,
        unhurried: Callable[[], AbstractContextManager[None]] = nullcontext,
        cores: int | None = None,
    ) -> None:
        if not 0 <= rank < size or nodes < 1 or size % nodes:
            raise PynasError(f"rank {rank} of {size} on {nodes} nodes: allowed: as many ranks on every node")
        self.rank, self.size, self.local_rank, self.nodes = rank, size, local_rank, nodes
        self.device, self.cores = device, cores
        self._advance, self._unhurried = advance, unhurried
        self._before = 0  # what the positions of the trainings before came to at most
        self._reducer = reducer

    @classmethod
    def join(
        cls,
        *,
        rank: int,
        size: int,
        local_rank: int,
        nodes: int,
        store: dist.Store,
        device: torch.device,
        reducer: Reducer | None = None,
        advance: Callable[[int, str], None] | None = None,
        unhurried: Callable[[], AbstractContextManager[None]] = nullcontext,
        timeout: timedelta = TIMEOUT,
    ) -> World:
        """Meet the other ranks at `store`: NCCL on CUDA devices, where rank `local_rank` takes the device of that
        number, and gloo on CPUs.

        reducer: sums CPU tensors over the ranks in place of gloo, for instance an `MPIReducer`. One rank meets nobody.
        Raises PynasError where the device is not there, and torch.distributed's errors.
        """
        cuda = device.type == "cuda"
        if cuda:
            if local_rank >= torch.cuda.device_count():
                raise PynasError(
                    f"rank {rank}: local rank {local_rank}, but this node has {torch.cuda.device_count()} CUDA devices;"
                    " start one rank a device"
                )
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        if size == 1:
            return cls(rank, size, local_rank, nodes, device=device, advance=advance, unhurried=unhurried)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        if reducer is None:
            # A group of its own on CPUs: batch-norm's small sums would otherwise queue behind buckets of gradients.
            reducer = ProcessGroupReducer(None if cuda else dist.new_group(timeout=timeout))
        return cls(
            rank,
            size,
            local_rank,
            nodes,
            device=device,
            reducer=reducer,
            advance=advance,
            unhurried=unhurried,
            cores=_share_of_cores(),
        )

    def advance(self, position: int, what: str) -> None:
        """This rank has got as far as `position` in the present training, and goes on with `what`."""
        if self._advance is not None:
            self._advance(self._before + position, what)

    def setting_up(self) -> AbstractContextManager[None]:
        """While the data are listed and the network is made, which has no progress to show and may take minutes."""
        return self._unhurried()

    def begin(self) -> None:
        """Another training begins, whose positions come after those of the ones before."""
        self._before += POSITIONS

    def leave(self) -> None:
        """Part from the others when all is done. A rank that failed ends without it: the others may not answer."""
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def ranks_per_node(self) -> int:
        return self.size // self.nodes

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def batch_of_rank(self, batch_size: int) -> int:
        """Images a step of this rank, for a node's batch. Raises PynasError where it cannot be shared out evenly."""
        if batch_size % self.ranks_per_node:
            raise PynasError(
                f"training.batch_size: got {batch_size}, allowed are multiples of the {self.ranks_per_node} ranks of a"
                " node, which share it"
            )
        return batch_size // self.ranks_per_node

    def synchronised(self, network: nn.Module) -> nn.Module:
        """The network with batch-norms that normalise by the images of all ranks; the same module, changed."""
        if self.size == 1:
            return network
        reducer = ProcessGroupReducer() if _on_cuda(self.device) else self._reducer
        assert reducer is not None
        if self.device is not None:
            mbconv_choice.agree(self.device, reducer)
        return convert_sync_batchnorm(network, reducer)

    def wrapped(self, network: nn.Module, *, may_leave_unused: bool = False) -> nn.Module:
        """What to call in place of `network`, so that backward leaves the mean of all ranks' gradients in its
        parameters. Begins with the weights of rank 0. may_leave_unused: some parameters may get no gradient.
        """
        if self.size == 1:
            return network
        # Buffers are not copied before each forward: SyncBatchNorm keeps them equal.
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.13
        buffers: dict[str, Any] = {name: False}
        return DistributedDataParallel(
            network,
            device_ids=[self.device] if _on_cuda(self.device) else None,
            gradient_as_bucket_view=True,
            find_unused_parameters=may_leave_unused,
            **buffers,
        )

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value's sum over all ranks, computed in float64; the same bits everywhere but with some MPIs."""
        if self.size == 1:
            return list(values)
        assert self._reducer is not None
        packed = torch.tensor(values, dtype=torch.float64)
        self._reducer.all_reduce(packed)
        return packed.tolist()

    def sum_tensor(self, values: Tensor) -> None:
        """Replace a floating-point tensor by its sum over all ranks, on CPUs computed in float64."""
        if self.size == 1:
            return
        assert self._reducer is not None
        if values.is_cpu:
            packed = values.double()
            self._reducer.all_reduce(packed)
            values.copy_(packed)
        else:
            dist.all_reduce(values)

    def agree(self, images: int, order: int | None = None) -> tuple[int, int | None]:
        """Before a step: how many images it has on all ranks, and the signal that any of them was given, if any.

        One sum of five numbers. Since every rank learns of an order at the same step, all heed it at the same step.
        """
        if self.size == 1:
            return images, order
        total, *given = self.sum([images, *(order == number for number in ORDERS)])
        return int(total), next((number for number, count in zip(ORDERS, given, strict=True) if count), None)

    def gather(self, value: Value) -> list[Value]:
        """The plain values of all ranks, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        self.sum([0.0])

    def by_first(self, function: Callable[[], Value]) -> Value:
        """What `function`, called by rank 0 alone, returns (a plain value) or raises; on every rank."""
        if self.size == 1:
            return function()
        outcome: list[Any] = [None]
        if self.first:
            try:
                outcome = [(function(), None)]
            except Exception as error:
                dist.broadcast_object_list([(None, _plain(error))])
                raise
        dist.broadcast_object_list(outcome)
        value, failed = outcome[0]
        if failed is not None:
            raise _raised(0, failed)
        return value

    def by_all(self, function: Callable[[], Value]) -> Value:
        """What `function` returns here; where it raises on any rank, all raise."""
        if self.size == 1:
            return function()
        try:
            value = function()
        except Exception as error:
            self.gather(_plain(error))
            raise
        for rank, failed in enumerate(self.gather(None)):
            if failed is not None:
                raise _raised(rank, failed)
        return value


def _plain(error: Exception) -> tuple[bool, str]:
    """Whether the user can mend it, and what it says: an exception itself may not survive the journey."""
    mine = isinstance(error, PynasError)
    return mine, str(error) if mine else f"{type(error).__name__}: {error}"


def _raised(rank: int, error: tuple[bool, str]) -> Exception:
    mine, text = error
    return PynasError(text) if mine else RuntimeError(f"rank {rank}: {text}")


def _on_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


def _share_of_cores() -> int:
    """This process's cores divided by the ranks on this host that may use any of the same."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(available_cores()))
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, (socket.gethostname(), sorted(mine)))
    sharing = sum(host == socket.gethostname() and not mine.isdisjoint(cores) for host, cores in every)
    return max(len(mine) // sharing, 1)
