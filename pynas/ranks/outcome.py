"""How a rank ended, and which of several ends is the cause of the others."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pynas.ranks.beat import Progress

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # what a supervisor hands on to its rank


@dataclass(frozen=True)
class Outcome:
    """The end of a rank.

    done     all is well
    stopped  it was told to, by a signal; `code` is 128 and the signal's number
    mistake  the user's; `cause` is the line to print, or empty where it has been printed
    raised   an exception, which may be the consequence of another rank's end
    died     a signal, a status, or a lost supervisor
    """

    kind: Literal["done", "stopped", "mistake", "raised", "died"]
    code: int
    cause: str = ""
    traceback: str = ""
    abrupt: bool = False  # of "stopped": without a word to the other ranks, which may be waiting for this one

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def of_status(status: int, handed_on: set[int], what: str) -> Outcome:
    """The outcome of a rank that has said nothing, from its exit code, or minus the signal that killed it."""
    if status == 0:
        return Outcome("done", 0)
    if status == 2:
        return Outcome("mistake", 2)
    if status - 128 in STOPS:
        return Outcome("stopped", status)
    if -status in handed_on:
        return Outcome("stopped", 128 - status, abrupt=True)
    during = f" while {what}" if what else ""
    if status > 0:
        return Outcome("died", 1, f"exited with status {status}{during}")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    memory = ", perhaps out of memory" if name == "SIGKILL" else ""
    return Outcome("died", 1, f"killed by signal {-status} ({name}{memory}){during}")


def root_cause(ends: dict[int, Outcome]) -> int | None:
    """The rank that brought the others down, of the ends in the order in which they became known."""
    for kinds in (("died",), ("mistake", "raised")):  # what dies drags others into errors about lost connections
        for rank, outcome in ends.items():
            if outcome.kind in kinds:
                if outcome.kind == "mistake" and 0 in ends and ends[0].kind == "mistake":
                    return 0  # ranks that all make the same mistake speak through the first
                return rank
    return None


def find_hang(running: dict[int, tuple[Progress, float]], now: float, limit: float) -> tuple[int, str] | None:
    """The rank that holds up the others and a line about it, where none has shown progress for too long.

    Args:
        running: each rank's progress, and the time at which it last changed.
        limit: seconds, where a rank has set none.
    """
    limits = [progress.limit for progress, _ in running.values()]
    limit = max(limits) if min(limits) > 0 else limit
    if not limit or min(now - changed for _, changed in running.values()) <= limit:
        return None
    least = min(progress.position for progress, _ in running.values())
    behind = [rank for rank, (progress, _) in running.items() if progress.position == least]
    cause = f"no progress for {limit:g} s, at {running[behind[0]][0].what}"
    ahead = sorted({progress.what for rank, (progress, _) in running.items() if rank not in behind})
    if ahead:
        cause += f"; the others wait at {', '.join(ahead[:3])}"
    elif len(behind) > 1:
        others = [f"rank {rank} at {running[rank][0].what}" for rank in behind[1:4]]
        cause += f"; nor in {', '.join(others)}" + (f" and {len(behind) - 4} more" if len(behind) > 4 else "")
    return behind[0], cause
