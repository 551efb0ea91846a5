"""What can be wrong with ranks at the start: each alone, another environment on a node, a folder that is not shared."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pynas.errors import PynasError
from pynas.ranks.launch import Launch

if TYPE_CHECKING:
    from pynas.ranks.placement import Placement

CACHES = 5.0  # seconds for a network file system to show a new file on another host
PACKAGES = ("numpy", "torch", "mpi4py", "pynas-nars")
# Of the environment what changes results, the libraries that are loaded, or how ranks talk to each other.
VARIABLES = (
    "PYTHONPATH", "PYTHONHASHSEED", "LD_LIBRARY_PATH", "LD_PRELOAD", "CONDA_PREFIX", "VIRTUAL_ENV",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE",
    "CUBLAS_WORKSPACE_CONFIG", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip


def check(placement: Placement, shared: Sequence[str | os.PathLike[str]] = (), readable: Sequence[str] = ()) -> None:
    """Make sure that the ranks run the same program and see the same files.

    Args:
        shared: folders that exist on rank 0 and that all ranks write to or read what is written.
        readable: files and folders, such as those of the images, that each host must have, not necessarily in common.

    Raises:
        PynasError: one line with what differs, on which hosts. Rank 0 raises it, the others leave by SystemExit.
    """
    _same_program(placement)
    for folder in shared:
        _is_shared(placement, Path(folder).absolute())
    for path in readable:
        _is_readable(placement, path)


def check_size(launch: Launch, size: int, library: str) -> None:
    """Compare the size of MPI's world with the launcher's. Needs no other rank: there may be none to ask.

    Raises:
        PynasError: they differ; on the task that the launcher calls 0, the others leave by SystemExit.
    """
    if size == launch.size:
        return
    if launch.rank:
        raise SystemExit(2)
    alone = "each finds itself alone" if size == 1 else f"MPI finds {size}"
    name = " ".join(library.replace("\0", "").splitlines()[0].split(",")[0].split())
    advice = f"this mpirun does not belong to this MPI library ({name}); use that of the library"
    if launch.launcher == "srun":
        plugin = os.environ.get("SLURM_MPI_TYPE")
        came = f"srun's --mpi={plugin}" if plugin else "srun's --mpi"
        advice = f"{came} does not fit this MPI library ({name}); try --mpi=pmi2 or --mpi=pmix (see srun --mpi=list)"
    raise PynasError(f"{launch.launcher} started {launch.size} tasks, but {alone}: {advice}")


def _same_program(placement: Placement) -> None:
    kept = placement.gather(_program())
    for name in kept[0]:
        values: dict[str, list[int]] = {}
        for rank, program in enumerate(kept):
            values.setdefault(program[name], []).append(rank)
        if len(values) > 1:
            told = "; ".join(f"{value} on {_hosts(placement, ranks)}" for value, ranks in values.items())
            placement.refuse(f"the ranks do not run the same program: {name} is {told}")


def _program() -> dict[str, str]:
    package = Path(__file__).resolve().parents[1]
    found: dict[str, Any] = {
        "Python": f"{platform.python_version()} ({sys.executable})",
        "the pynas package": str(package),
        "the source of pynas": f"of hash {_hash(package)}",
    }
    for name in PACKAGES:
        try:
            found[f"the version of {name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[f"the version of {name}"] = "none"
    for name in VARIABLES:
        value = os.environ.get(name)
        found[name] = "not set" if value is None else repr(value)
    return found


def _hash(package: Path) -> str:
    """Of all sources: the same version may be an edited checkout on one node."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".yaml", ".so"):
            digest.update(str(path.relative_to(package)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _is_shared(placement: Placement, folder: Path) -> None:
    """Rank 0 writes a file of a name that nobody can guess, and all look for it."""
    name, error = "", ""
    if placement.rank == 0:
        name = f".pynas-{secrets.token_hex(8)}"
        try:
            (folder / name).write_text("", encoding="utf-8")
        except OSError as problem:
            error = problem.strerror or str(problem)
    name, error, theirs = placement.broadcast([name, error, str(folder)])
    if error:
        placement.refuse(f"{theirs}: rank 0 on {placement.hosts[0]} cannot write there: {error}")
    until = time.monotonic() + CACHES
    seen = _sees(Path(theirs), name)
    while not seen and time.monotonic() < until:
        time.sleep(0.1)
        seen = _sees(Path(theirs), name)
    blind = [rank for rank, sees in enumerate(placement.gather(seen)) if not sees]
    if placement.rank == 0:
        (folder / name).unlink(missing_ok=True)
    if blind:
        placement.refuse(
            f"{theirs} is not shared: {_hosts(placement, blind)} cannot see what {placement.hosts[0]} writes there; "
            "name a folder on a file system that all nodes share"
        )


def _sees(folder: Path, name: str) -> bool:
    try:
        return name in os.listdir(folder)  # listing asks the server, where a look for the one name may be cached
    except OSError:
        return False


def _is_readable(placement: Placement, path: str) -> None:
    blind = [rank for rank, reads in enumerate(placement.gather(os.access(path, os.R_OK))) if not reads]
    if blind:
        placement.refuse(f"{os.path.abspath(path)} cannot be read on {_hosts(placement, blind)}")


def _hosts(placement: Placement, ranks: list[int]) -> str:
    hosts = list(dict.fromkeys(placement.hosts[rank] for rank in ranks))
    text = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more hosts" if len(hosts) > 4 else "")
    if any(placement.hosts[rank] in hosts for rank in range(placement.size) if rank not in ranks):
        text += f" (rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))})"
    return text
