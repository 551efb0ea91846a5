"""What a task reports, on its way through the file system: ``TASKS/KEY/progress.jsonl``, one JSON value a line.

The worker calls `begin` and then `append`; the driver looks with a `Tail` from time to time. For executors whose
workers cannot be heard directly.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any

from pynas.files import write_whole
from pynas.runtime.task import TaskFolder

_lock = threading.Lock()  # a task may report from threads of its own


def begin(folder: TaskFolder) -> None:
    """Worker side: the task has begun and has reported nothing yet; what an earlier run reported is dropped.

    Raises:
        PynasError: the folder does not take the file.
    """
    write_whole(folder.progress, "")  # a new file, so that a Tail can tell it from the one it replaces


def append(folder: TaskFolder, value: Any) -> None:
    """Worker side: report a JSON value.

    Raises:
        TypeError, ValueError: the value is not JSON.
        OSError: the file cannot be written.
    """
    data = json.dumps(value).encode() + b"\n"
    # Opened anew each time: network file systems promise to show on other machines what was closed.
    with _lock, open(folder.progress, "ab", buffering=0) as file:
        while data:
            data = data[file.write(data) :]


class Tail:
    """Driver side: reads what was appended since the last look."""

    def __init__(self, folder: TaskFolder) -> None:
        self.begun = False  # whether the worker has called `begin`
        self._path = folder.progress
        self._file = 0  # the inode read last
        self._offset = 0  # bytes of it that were read, all of them whole lines

    def new(self) -> list[Any]:
        """The values of the whole lines since; a line that is half written is left for the next look.

        After another `begin` (the task runs anew) the values start over.
        """
        try:
            with open(self._path, "rb", buffering=0) as file:
                self.begun = True
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._offset:
                    self._file, self._offset = status.st_ino, 0
                if status.st_size == self._offset:
                    return []
                file.seek(self._offset)
                data = file.read()
        except OSError:  # not there yet, or a network file system that is just replacing it (ESTALE)
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
