"""How many cores there are for this process."""

from __future__ import annotations

import os


def available_cores() -> int:
    """The cores this process may use, which on a shared machine are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(threads: int) -> int:
    """`threads`, or all available cores for 0."""
    return threads or available_cores()
