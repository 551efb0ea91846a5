"""What a Slurm job of `SlurmExecutor` runs: one task, whose outcome goes to its folder."""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

from pynas.files import write_whole
from pynas.runtime import progress
from pynas.runtime.task import TaskFolder, describe, redirect_output, run_task


def run(tasks: str, key: str, function: str, array: str) -> None:
    """Run a task of the array with the token `array`, called by submitit in the job.

    Raises:
        SystemExit: the task raised; the reason is in its failure.json and the traceback in its log.
    """
    # A candidate has no checkpoint. Slurm's signals are to end it, and not what submitit would make of them, so that
    # the state of the job tells what happened: TIMEOUT, PREEMPTED, CANCELLED.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # submitit asks for it ahead of the time limit
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = TaskFolder(Path(tasks), key)
    sys.stdout.flush()
    redirect_output(folder.log)
    faulthandler.enable()  # the stack of a segmentation fault goes to the task's log
    folder.failure.unlink(missing_ok=True)  # of a run before Slurm requeued the job
    progress.begin(folder)
    try:
        run_task(folder, function, folder.read_payload(), partial(progress.append, folder))
    except BaseException as error:  # sys.exit() in a task is a failure of that task
        traceback.print_exc()
        failure = {"reason": describe(error), "kind": "exception", "array": array}
        write_whole(folder.failure, json.dumps(failure))
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
