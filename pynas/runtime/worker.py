"""The worker process of LocalExecutor: ``python -m pynas.runtime.worker CHANNEL LIFELINE DRIVER``.

CHANNEL is a socket over which orders come and news go, LIFELINE a pipe the driver never writes to and whose end means
that the driver is gone, DRIVER the driver's process id. Messages are JSON.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from multiprocessing import connection
from pathlib import Path
from typing import Any

from pynas.runtime.task import TaskFolder, describe, redirect_output, run_task


def main(arguments: list[str]) -> None:
    channel_descriptor, lifeline, driver = (int(argument) for argument in arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which decides what becomes of the tasks
    faulthandler.enable()  # the stack of a segmentation fault goes to the task's log
    for descriptor in (channel_descriptor, lifeline):
        os.set_inheritable(descriptor, False)
    threading.Thread(target=end_with_driver, args=(lifeline, driver), daemon=True).start()

    channel: connection.Connection = connection.Connection(channel_descriptor)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        with lock:  # a task may report from threads of its own
            channel.send_bytes(data)

    sys.path[:] = json.loads(channel.recv_bytes())
    while True:
        try:
            order = json.loads(channel.recv_bytes())
        except (EOFError, ConnectionError):
            return
        folder = TaskFolder(Path(order["tasks"]), order["key"])
        send(work(folder, order["function"], send))


def work(folder: TaskFolder, function: str, send: Any) -> dict[str, Any]:
    """Run one task; returns the last message about it."""
    try:
        redirect_output(folder.log)  # until the next task: what a thread of this one prints late is still its own
        send({"news": "started"})
        run_task(folder, function, folder.read_payload(), lambda value: send({"news": "progress", "value": value}))
        return {"news": "done"}
    except BaseException as error:  # sys.exit() in a task is a failure of that task, not the end of the worker
        traceback.print_exc()
        return {"news": "failed", "reason": describe(error)}
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def end_with_driver(lifeline: int, driver: int) -> None:
    """End this process, and all it has started, once the driver is gone, however it went."""
    # The look at the parent is for a lifeline that outlives the driver in a process which the driver forked.
    while not connection.wait([lifeline], 1.0) and os.getppid() == driver:
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
