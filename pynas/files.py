"""Files that nobody ever sees half of, and the lock that makes sure of a single writer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from pynas.errors import PynasError


@contextlib.contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; moved into place, and on disk, when the block ends well.

    Raises PynasError where the folder does not take the file.
    """
    if not path.parent.is_dir():
        raise PynasError(f"{path}: cannot be written: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # torch.export.save looks at the suffix
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name is an entry of the folder, which has a cache of its own
        finally:
            os.close(folder)
    except OSError as error:
        raise PynasError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is complete or absent whatever happens meanwhile, and on disk when this returns."""
    with placed(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class Locked(PynasError):
    """Another process has the lock."""


class FileLock:
    """The kernel's lock (`fcntl.flock`) on a file: it ends with its process, however that ends. A context manager."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what  # begins the message for whoever comes second
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def holder(self) -> str | None:
        """What the process that has the lock says of itself; None where none has it. Takes nothing."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # A lock let go of in order leaves an empty file; what a killed holder left is told by the kernel.
            name = os.read(descriptor, 200).decode(errors="replace").strip()
            if name:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except OSError:
            return name or "another process"
        finally:
            os.close(descriptor)

    def acquire(self) -> None:
        """Take the lock. Raises Locked where another process has it, PynasError where the file cannot be written."""
        if self._descriptor is not None:
            raise RuntimeError(f"{self.what} is held by this object already")
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise PynasError(f"{self.what}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise Locked(
                f"{self.what} is being driven by {holder}; wait for it or end it, or use another directory"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                os.close(descriptor)
                raise PynasError(f"{self.what}: {error.strerror}") from error
            # Some cluster file systems keep no locks. That is no reason not to work on them.
            warnings.warn(
                f"the file system of {self.path} keeps no locks: see to it that only one process runs there",
                stacklevel=2,
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go of the lock; the file stays, since removing it would race with whoever opens it next."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
