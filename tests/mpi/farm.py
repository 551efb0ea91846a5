"""A small driver of an MPIExecutor for the tests: ``python farm.py FOLDER``, under mpiexec, with tasks on stdin.

Each line is a JSON list: key, name of a function in contract_tasks, payload. Events are printed as JSON lists.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import astuple

from pynas.ranks.launch import detect
from pynas.ranks.supervisor import supervise
from pynas.runtime.mpi import MPIExecutor, pool


def main() -> int:
    with pool(shared=[sys.argv[1]]) as ranks:
        if ranks is None:
            return 0
        tell("driver", os.getpid())
        with MPIExecutor(sys.argv[1], ranks) as executor:
            for line in sys.stdin:
                key, function, payload = json.loads(line)
                executor.submit(key, f"contract_tasks:{function}", payload)
            for event in executor.outcomes():
                tell(type(event).__name__, *astuple(event))
    return 0


def tell(*values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    launch = detect(os.environ)
    assert launch is not None
    sys.exit(supervise(main, launch))
