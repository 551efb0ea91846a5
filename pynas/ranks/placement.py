"""The ranks of a launch: who they are, how they exchange values, and where rank 0 can be reached.

Under srun and mpirun values go by MPI, under torchrun through the store of its agent.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import socket
import struct
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn, Protocol

from pynas.errors import PynasError
from pynas.ranks.launch import Launch
from pynas.ranks.lines import call
from pynas.ranks.startup import check_size
from pynas.ranks.supervisor import beat, parent

PROBE = 3.0  # seconds to reach rank 0 at one of its addresses
STORE = timedelta(minutes=10)  # for a value of another rank; a hang is noticed sooner, by the supervisors
SIOCGIFADDR = 0x8915


class Exchange(Protocol):
    """What carries values between ranks."""

    rank: int
    size: int
    comm: Any  # the communicator of MPI, None where there is none

    def broadcast(self, text: str) -> str: ...
    def gather(self, text: str) -> list[str]: ...
    def close(self) -> None: ...


class Placement:
    """A rank among the ranks. All ranks must make the same calls in the same order.

    Attributes:
        rank, size: of all ranks.
        local_rank, local_size: of those on this rank's host.
        nodes: how many hosts there are.
        hosts: the host of each rank.
        addresses: of rank 0, each one reached by all other ranks; the best first.
        launch: what started the ranks.
        comm: MPI's COMM_WORLD, or None under torchrun.
    """

    def __init__(self, launch: Launch, exchange: Exchange) -> None:
        self._exchange = exchange
        self.launch, self.comm = launch, exchange.comm
        self.rank, self.size = exchange.rank, exchange.size
        self.hosts: list[str] = self.gather(socket.gethostname())
        here = [rank for rank, host in enumerate(self.hosts) if host == self.hosts[self.rank]]
        self.local_rank, self.local_size = here.index(self.rank), len(here)
        self.nodes = len(set(self.hosts))
        self.addresses: list[str] = []

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, a JSON value, on every rank."""
        return json.loads(self._exchange.broadcast(json.dumps(value) if self.rank == 0 else ""))

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, by rank, on every rank."""
        return [json.loads(text) for text in self._exchange.gather(json.dumps(value))]

    def refuse(self, message: str) -> NoReturn:
        """End all ranks over a mistake that every rank has seen: a PynasError on rank 0, silently on the others."""
        if self.rank == 0:
            raise PynasError(message)
        raise SystemExit(2)

    def close(self) -> None:
        """Say goodbye to the other ranks, when all is well. After a failure do not: they may never answer."""
        self._exchange.close()


@functools.cache
def place(launch: Launch) -> Placement:
    """Find the other ranks and connect the supervisors; a second call returns the same.

    Call it early: until then a failure ends only its own rank.

    Raises:
        PynasError: MPI is missing, ranks find themselves alone, or rank 0 cannot be reached. One rank raises it, the
            others leave by SystemExit.
    """
    beat().mark("meeting the other ranks")
    exchange: Exchange = _Store(launch) if launch.launcher == "torchrun" else _MPI(launch)
    placement = Placement(launch, exchange)
    _connect(placement)
    beat().mark("all ranks have met")
    return placement


def _connect(placement: Placement) -> None:
    """Find addresses at which rank 0 can be reached, by reaching its supervisor, and connect the other supervisors."""
    supervisor = parent()
    port, secret, candidates = placement.broadcast(
        [supervisor.port if supervisor else 0, supervisor.secret if supervisor else "", own_addresses()]
        if placement.rank == 0
        else None
    )
    if placement.nodes == 1:
        candidates = ["127.0.0.1", *(address for address in candidates if address != "127.0.0.1")]
    if not all(placement.gather(supervisor is not None)):  # nothing to reach, and nobody to connect
        placement.addresses = candidates
        return
    assert supervisor is not None
    reached = placement.gather(_reachable(candidates, port, secret) if placement.rank else candidates)
    placement.addresses = [address for address in candidates if all(address in others for others in reached)]
    if not placement.addresses:
        deaf = next((rank for rank, others in enumerate(reached) if not others), None)
        who = "not all ranks reach" if deaf is None else f"rank {deaf} on {placement.hosts[deaf]} does not reach"
        placement.refuse(
            f"{who} rank 0 on {placement.hosts[0]} at the same of its addresses ({', '.join(candidates)}), "
            "on a free port: compute nodes must be let through to each other"
        )
    watchers = {host: rank for rank, host in reversed(list(enumerate(placement.hosts))) if rank}
    speaks = placement.rank in watchers.values()  # one rank a host tells of rank 0's loss
    connected = supervisor.connect(placement.rank, placement.hosts, placement.addresses[0], port, secret, speaks=speaks)
    missing = [rank for rank, is_there in enumerate(placement.gather(connected)) if not is_there]
    if missing:
        where = ", ".join(f"{rank} on {placement.hosts[rank]}" for rank in missing[:4])
        placement.refuse(f"the supervisors of ranks {where} could not connect to {placement.addresses[0]}:{port}")


def own_addresses() -> list[str]:
    """Names and addresses of this host that others may know it by, the likeliest first."""
    names = [os.environ.get("SLURMD_NODENAME", ""), socket.gethostname()]
    if "." not in names[1]:
        names.append(socket.getfqdn())
    found = [name for name in names if name and name != "localhost"]
    loopback: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # without an IPv4 address
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                address = socket.inet_ntoa(answer[20:24])
                (loopback if address.startswith("127.") else found).append(address)
    return list(dict.fromkeys(found + loopback))


def _reachable(candidates: list[str], port: int, secret: str) -> list[str]:
    reached: set[str] = set()

    def probe(address: str) -> None:
        line = call(address, port, secret, PROBE)
        if line is not None:
            line.close()
            reached.add(address)

    threads = [threading.Thread(target=probe, args=(address,), daemon=True) for address in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PROBE)  # looking up a name has no limit of its own
    return [address for address in candidates if address in reached]


class _MPI:
    def __init__(self, launch: Launch) -> None:
        try:
            import mpi4py

            # At exit MPI's finalize waits for all ranks, also for those that wait for this one: `close` calls it.
            mpi4py.rc.finalize = False
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            text = str(error).strip().splitlines()[0]
            needed = "pip install 'pynas-nars[mpi]' and an MPI library (your cluster's, or pip install mpich)"
            if launch.rank:
                raise SystemExit(2) from None
            raise PynasError(f"{launch.launcher} needs {needed}: {text}") from None
        self._mpi = MPI
        self.comm: Any = MPI.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        check_size(launch, self.size, MPI.Get_library_version())

    def broadcast(self, text: str) -> str:
        return self.comm.bcast(text, root=0)

    def gather(self, text: str) -> list[str]:
        return self.comm.allgather(text)

    def close(self) -> None:
        if not self._mpi.Is_finalized():
            self._mpi.Finalize()


class _Store:
    comm: Any = None

    def __init__(self, launch: Launch) -> None:
        import torch.distributed

        beat().mark("meeting the other ranks")
        try:
            store, self.rank, self.size = next(torch.distributed.rendezvous("env://", timeout=STORE))
        except (RuntimeError, ValueError, torch.distributed.DistError) as error:
            raise PynasError(f"the store of torchrun cannot be reached: {str(error).splitlines()[0]}") from None
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = torch.distributed.PrefixStore(f"pynas/{restarts}", store)
        self._calls = 0

    def broadcast(self, text: str) -> str:
        self._calls += 1
        if self.rank == 0:
            self._store.set(f"{self._calls}", text)
            return text
        return self._store.get(f"{self._calls}").decode()

    def gather(self, text: str) -> list[str]:
        self._calls += 1
        self._store.set(f"{self._calls}/{self.rank}", text)
        if self.rank:
            return json.loads(self._store.get(f"{self._calls}"))
        values = [self._store.get(f"{self._calls}/{rank}").decode() for rank in range(self.size)]
        self._store.set(f"{self._calls}", json.dumps(values))  # so that the store is asked twice a rank, not size times
        return values

    def close(self) -> None:
        """The agent keeps the store, and ends it."""
