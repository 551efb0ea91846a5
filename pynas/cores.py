"""How many cores there are for this process, and how many the algebra of numpy and scipy takes."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any


def available_cores() -> int:
    """The cores this process may use, which on a shared machine are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(threads: int) -> int:
    """`threads`, or all available cores for 0."""
    return threads or available_cores()


def one_blas_thread() -> AbstractContextManager[Any]:
    """One thread of BLAS inside: the order of its sums, and so the last bits, depend on their number."""
    return _blas().limit(limits=1, user_api="blas")


@lru_cache
def _blas() -> Any:
    import scipy.linalg  # noqa: F401  # brings a BLAS of its own beside numpy's
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
