"""submitit's AutoExecutor for Slurm: its parameters by name, checked against what submitit takes."""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
import shutil
import sys
import sysconfig
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pynas.errors import PynasError


def auto_executor(
    folder: str | os.PathLike[str],
    parameters: Mapping[str, Any],
    *,
    where: str = "executor.slurm",
    reserved: Mapping[str, str] | None = None,
    **defaults: Any,
) -> Any:
    """A `submitit.AutoExecutor` for the Slurm at hand whose jobs import what this process can import.

    Where no parameter gives a time limit, the partition's own holds (submitit's is five minutes).

    Args:
        folder: where submitit keeps scripts, pickles and logs of the jobs; seen by all nodes.
        parameters: the user's, by AutoExecutor's names (``timeout_min``, ``slurm_partition``...).
        where: begins the messages about them.
        reserved: names that the user cannot set, each with the reason.
        defaults: parameters of the caller; the user's go before, but ``slurm_setup`` is added to and
            ``slurm_additional_parameters`` are merged.

    Raises:
        PynasError: submitit or sbatch is not there, an unknown parameter, a value of another type.
    """
    check_parameters(parameters, where=where, reserved=reserved)
    if shutil.which("sbatch") is None:
        raise PynasError(
            f"{where}: there is no sbatch on PATH here; Slurm jobs are submitted from a node of the cluster"
            + (" (or set executor: local)" if where == "executor.slurm" else "")
        )
    import submitit

    values = {**defaults, **parameters}
    setup = [*_environment(), *defaults.get("slurm_setup", []), *(parameters.get("slurm_setup") or [])]
    extra = {
        **defaults.get("slurm_additional_parameters", {}),
        **(parameters.get("slurm_additional_parameters") or {}),
    }
    executor = submitit.AutoExecutor(Path(folder), cluster="slurm")
    executor.update_parameters(**{**values, "slurm_setup": setup, "slurm_additional_parameters": extra})
    executor.parameters.setdefault("time", None)  # None: no --time, hence the partition's
    return executor


def check_parameters(
    parameters: Mapping[str, Any], *, where: str = "executor.slurm", reserved: Mapping[str, str] | None = None
) -> None:
    """Raises PynasError where submitit is missing, or would not take one of the parameters."""
    allowed = _allowed(where)
    for name, value in parameters.items():
        if reserved and name in reserved:
            raise PynasError(f"{where}.{name}: cannot be set, {reserved[name]}")
        if name not in allowed:
            near = [f"slurm_{name}"] if f"slurm_{name}" in allowed else difflib.get_close_matches(name, allowed, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            names = ", ".join(sorted(allowed.keys() - (reserved or {}).keys()))
            raise PynasError(f"{where}.{name}: unknown parameter{hint} Allowed: {names}")
        if value is None:
            continue  # for submitit too, as good as not given
        try:
            TypeAdapter(allowed[name], config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise PynasError(f"{where}.{name}: {value!r} came; {problem[0].lower()}{problem[1:]}") from None


@contextlib.contextmanager
def outside_job() -> Iterator[None]:
    """Without the variables of the Slurm job that this process is in: sbatch would hand them on to the new job."""
    inside = "SLURM_JOB_ID" in os.environ
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_")
    taken = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if inside and name.startswith(prefixes) and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(taken)


def refusal(error: BaseException) -> str:
    """What sbatch said when it would not take a job, in one line."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line) or type(error).__name__


def _allowed(where: str) -> dict[str, Any]:
    """Names and types of the parameters, read off submitit."""
    try:
        import submitit
        from submitit.slurm import slurm
    except ImportError as error:
        raise PynasError(f"{where}: Slurm jobs need submitit: pip install 'pynas-nars[slurm]' ({error})") from error
    common: dict[str, Any] = dict(submitit.AutoExecutor._typed_parameters())
    hints = typing.get_type_hints(slurm._make_sbatch_string)
    own = {name: hints[name] for name in submitit.SlurmExecutor._valid_parameters()}
    return {**common, **{f"slurm_{name}": kind for name, kind in {**own, **common}.items()}}


def _environment() -> list[str]:
    """Shell lines after which Python finds what it finds here, whatever Slurm hands on of this environment."""
    own = {os.path.realpath(path) for name, path in sysconfig.get_paths().items() if "lib" in name}
    entries = [str(Path(__file__).absolute().parents[2])]
    for entry in [os.path.abspath(entry) for entry in sys.path]:
        real = os.path.realpath(entry)
        inside = real.endswith((".zip", "lib-dynload")) or real in own
        if os.path.exists(entry) and not inside and entry not in entries:
            entries.append(entry)
    path = ":".join(shlex.quote(entry) for entry in entries)
    return [f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}", "export PYTHONUNBUFFERED=1"]
