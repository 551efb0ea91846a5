"""Memory that is freed stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from pynas.train.memory import keep_freed_memory
if {keep}: keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (9_000_000, 20_000_000, 30_000_000) * 3:
        torch.ones(size).mul_(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(keep: bool) -> int:
    """Pages mapped while tensors come and go that have come and gone before."""
    program = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    return int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc of glibc")
def test_pages_are_mapped_once() -> None:
    assert faults(keep=True) < 0.1 * faults(keep=False)
