"""The directory of a study: where everything lies, and the lock that makes sure of a single driver."""

from __future__ import annotations

import os
from pathlib import Path

from pynas.errors import PynasError
from pynas.files import FileLock


class StudyDirectory:
    """The paths of a study, and its lock: ``with StudyDirectory.create(path) as directory: ...`` holds it.

    The lock ends with the driver, however that ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Only names the directory; see `create` and `open`."""
        self.path = Path(path).absolute()
        self._holder = FileLock(self.lock, f"study {self.path}")

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
        return self.kept("space")

    def kept(self, key: str) -> Path:
        """The study's copy of the file that a key of its configuration names: space.yaml, architecture.yaml..."""
        return self.path / f"{key}{'.json' if key == 'latency' else '.yaml'}"

    @property
    def searches(self) -> Path:
        """One folder for each search in a supernet, see `pynas.fpnas.run`."""
        return self.path / "searches"

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
        return self._holder.held

    def holder(self) -> str | None:
        """The driver of this study, as "process 12 on host"; None where there is none."""
        return self._holder.holder()

    def acquire(self) -> None:
        """Become the one driver of this study.

        Raises:
            PynasError: another process is; or the lock file cannot be written.
        """
        self._holder.acquire()

    def release(self) -> None:
        """Let go of the lock."""
        self._holder.release()

    def __enter__(self) -> StudyDirectory:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"StudyDirectory({str(self.path)!r})"
