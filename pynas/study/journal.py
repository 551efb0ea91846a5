"""Optuna's journal file, made fit for drivers that are killed: repair on opening, several entries in one write.

The format stays Optuna's to the letter: one JSON object a line, so that all of its tools open the file. The one driver
writes here under the study's lock. Others may append a line now and then (optuna-dashboard does, for notes), so
Optuna's own lock, a symbolic link beside the file, is still taken for every write.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from pynas.errors import PynasError

STALE = 1.0  # seconds; Optuna holds its lock for the milliseconds of one write


class Journal(JournalFileBackend):
    """Optuna's file backend whose entries within ``with journal.batch():`` reach the disk in one write.

    Raises:
        PynasError: from any write, if the disk is full or the file may not be written; the file is then as before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # a relative link would dangle, and Optuna then waits for a stale lock for ever
        self._file_lock = JournalFileSymlinkLock(str(self.path))
        super().__init__(str(self.path), lock_obj=self._file_lock)
        self._pending: list[dict[str, Any]] | None = None
        self._count = 0  # entries known to be in the file
        self._behind = False  # a batch was lost after the storage in memory had seen it

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        if self._pending is None:
            number = log_number_from
            for log in super().read_logs(log_number_from):
                number += 1
                yield log
            self._count = max(self._count, number)
        else:  # the file cannot grow meanwhile, for the batch holds its lock
            if log_number_from < self._count:
                yield from super().read_logs(log_number_from)
            yield from self._pending[max(0, log_number_from - self._count) :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        # Through JSON, as the file would give them back: the storage keeps parts of what it reads.
        if self._pending is not None:
            self._pending.extend(json.loads(json.dumps(log)) for log in logs)
        else:
            with self._locked():
                self._write(logs)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Collect the entries made inside and write them at the end, also if an error ends it: they were applied.

        A driver killed in the middle of that one write leaves the first few of them, in order.
        """
        with self._locked():
            self._catch_up()
            self._pending = []
            try:
                yield
            finally:
                pending, self._pending = self._pending, None
                if pending:
                    try:
                        self._write(pending)
                    except BaseException:
                        self._behind = True
                        raise
                    self._catch_up()

    def _catch_up(self) -> None:
        """Learn how many entries the file holds. Optuna's class learns where they begin; else it reads from the top."""
        for _ in super().read_logs(self._count):
            self._count += 1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with _interrupt_held_back():
            self._file_lock.acquire()
            try:
                yield
            finally:
                self._file_lock.release()

    def _write(self, logs: list[dict[str, Any]]) -> None:
        if self._behind:
            raise PynasError(f"{self.path}: an earlier write failed; open the study again")
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        try:
            with open(self.path, "ab") as file:
                size = file.tell()
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                except BaseException:
                    os.ftruncate(file.fileno(), size)  # half a line would spoil the next one, too
                    raise
        except OSError as error:
            raise PynasError(f"{self.path} cannot be written: {error.strerror}") from error


@contextmanager
def _interrupt_held_back() -> Iterator[None]:
    """Have Ctrl-C wait for the end of the block, a few milliseconds.

    Optuna's lock does not stand a KeyboardInterrupt: where one comes just before the link is made or after it is gone,
    it raises RuntimeError("did not possess lock") in its place.
    """
    python_hears = callable(signal.getsignal(signal.SIGINT))
    if not python_hears or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


class ReadOnlyJournal(JournalFileBackend):
    """Reads along while a driver writes; a last line that is not whole yet is left for the next reading."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path.absolute()))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise RuntimeError("the study was opened for reading only")


def load(journal: JournalFileBackend, path: Path) -> JournalStorage:
    """Optuna's storage on a journal.

    Raises:
        PynasError: a line in the middle is not Optuna's, which no interrupted write can bring about.
    """
    try:
        return JournalStorage(journal)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise PynasError(f"{path} is damaged, or not a journal of Optuna: {type(error).__name__}: {error}") from error


def repair(path: Path, torn: Path) -> int:
    """Mend what a killed writer can leave; returns the bytes moved from the end of the journal to the end of `torn`.

    Call it only while holding the study's lock. Removes a stale lock of Optuna's and cuts off a last line that is not
    whole: no write that was acknowledged ends like that.

    Raises:
        PynasError: a line that is not the last is not JSON; its number is named, nothing is changed.
    """
    path = path.absolute()
    _remove_stale_lock(path)
    if not path.exists():
        return 0
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        whole, bad_line = 0, 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if bad_line:
                    raise PynasError(
                        f"{path}: line {bad_line} is not an entry of Optuna's journal: the file is damaged"
                    )
                if _is_entry(line):
                    whole += len(line)
                else:
                    bad_line = number
        if not bad_line:
            return 0
        with open(path, "r+b") as file:
            file.seek(whole)
            rest = file.read()
            with open(torn, "ab") as keep:
                keep.write(rest + b"\n")
                keep.flush()
                os.fsync(keep.fileno())
            file.truncate(whole)
            os.fsync(file.fileno())
        return len(rest)
    finally:
        lock.release()


def _is_entry(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and "op_code" in entry


def _remove_stale_lock(path: Path) -> None:
    """Remove the lock of a writer that is dead: one older than any write takes (Optuna itself waits 30 seconds)."""
    lock = Path(f"{path}.lock")
    for debris in path.parent.glob(f"{lock.name}*.rename"):
        debris.unlink(missing_ok=True)
    while True:
        try:
            age = time.time() - lock.lstat().st_mtime
        except FileNotFoundError:
            return
        if not 0 <= age < STALE:
            lock.unlink(missing_ok=True)
            return
        time.sleep(0.01)
