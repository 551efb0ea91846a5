"""The directory of a study: where everything lies, and the lock that makes sure of a single driver."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from pathlib import Path
from types import TracebackType

from pynas.errors import PynasError


class StudyDirectory:
    """The paths of a study, and its lock: ``with StudyDirectory.create(path) as directory: ...`` holds it.

    The lock is the kernel's (`fcntl.flock`), so it ends with the driver, however that ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Only names the directory; see `create` and `open`."""
        self.path = Path(path).absolute()
        self._lock: int | None = None

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> StudyDirectory:
        """The directory of a new study or of one that is there already, made if absent.

        Raises:
            PynasError: the path is a file, cannot be made, or is a directory that holds something else than a study.
        """
        directory = cls(path)
        try:
            directory.path.mkdir(parents=True, exist_ok=True)
            strangers = sorted(entry.name for entry in directory.path.iterdir())
        except OSError as error:
            raise PynasError(f"study directory {directory.path}: {error.strerror}") from error
        if strangers and not directory.journal.exists() and not directory.lock.exists():
            raise PynasError(
                f"study directory {directory.path} holds no study but other things ({', '.join(strangers[:3])}); "
                "name a new or an empty directory"
            )
        return directory

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StudyDirectory:
        """The directory of a study that exists.

        Raises:
            PynasError: there is no study there.
        """
        directory = cls(path)
        if not directory.journal.is_file():
            raise PynasError(f"{directory.path} is not the directory of a study: it holds no {directory.journal.name}")
        return directory

    @property
    def journal(self) -> Path:
        """Optuna's JournalStorage: all trials."""
        return self.path / "journal.log"

    @property
    def torn(self) -> Path:
        """What a killed driver left half written at the end of the journal."""
        return self.path / "journal.torn"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def versions(self) -> Path:
        return self.path / "versions.json"

    @property
    def space(self) -> Path:
        """The search space's table as it was used."""
        return self.path / "space.yaml"

    @property
    def architecture(self) -> Path:
        """The network that a recipe-only search is fixed on, as a table; absent otherwise."""
        return self.path / "architecture.yaml"

    @property
    def results(self) -> Path:
        """What the search has derived from configuration and journal so far."""
        return self.path / "results.json"

    @property
    def predictor(self) -> Path:
        return self.path / "predictor.npz"

    @property
    def tasks(self) -> Path:
        """One folder per task, see `pynas.runtime.task`."""
        return self.path / "tasks"

    @property
    def winners(self) -> Path:
        return self.path / "winners"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def acquire(self) -> None:
        """Become the one driver of this study.

        Raises:
            PynasError: another process is; or the lock file cannot be written.
        """
        if self._lock is not None:
            raise RuntimeError(f"{self.path} is held by this object already")
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise PynasError(f"study directory {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise PynasError(
                f"study {self.path} is being driven by {holder}; wait for it or end it, or use another directory"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                os.close(descriptor)
                raise PynasError(f"study directory {self.path}: {error.strerror}") from error
            # Some cluster file systems keep no locks. That is no reason not to search on them.
            warnings.warn(
                f"the file system of {self.path} keeps no locks: see to it that only one driver runs there",
                stacklevel=2,
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._lock = descriptor

    def release(self) -> None:
        """Let go of the lock; the file stays, since removing it would race with whoever opens it next."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> StudyDirectory:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"StudyDirectory({str(self.path)!r})"
