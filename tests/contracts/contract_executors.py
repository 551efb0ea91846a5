"""The executors that the contract is tested on. A new one is added here and is tested by all of `test_executors.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pynas.runtime.executor import Executor
from pynas.runtime.local import LocalExecutor


def local(folder: Path, slots: int) -> Executor:
    return LocalExecutor(folder, slots)


FACTORIES: dict[str, Callable[[Path, int], Executor]] = {"local": local}
