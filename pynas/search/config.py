"""The configuration of a study, `study.yaml`: typed, checked; what it holds whatever the method, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pynas.data.config import DataConfig
from pynas.errors import PynasError
from pynas.sections import checked, read_mapping
from pynas.space.budget import Budget
from pynas.space.table import find_table
from pynas.train.config import TrainingConfig

METHODS = {"nars": "pynas.nars.config:NARSConfig", "fpnas": "pynas.fpnas.config:FPNASConfig"}
"""Methods of search by the name that a study gives them, and their configurations."""

FINAL, ANSWERS = LATER = ("final", "answers")
"""Further studies of a journal: the winners' own trainings, and those that `pynas evolve` has asked for."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FinalConfig(Section):
    """What happens to the winner of each budget after the search."""

    epochs: int = Field(0, ge=0)
    """Epochs of the winner's own training; 0 leaves it untrained."""

    baseline: bool = True
    """Train a random network of the same budget beside it: the best of the first iteration (NARS), or one (FP-NAS)."""

    data: DataConfig | None = None
    """Images of the final trainings; those of the search where not given."""


class ExecutorConfig(Section):
    """Where candidates train (docs/clusters.md). May change from one run of a study to the next.

    A word stands for its kind: ``executor: slurm``.
    """

    kind: Literal["local", "slurm", "mpi"] = "local"
    """local: worker processes; slurm: job arrays; mpi: the ranks that srun or mpirun has started."""

    workers: int | None = Field(None, ge=1)
    """Candidates at once. None takes one a core (local), all ranks but the first (mpi), or 64 jobs (slurm)."""

    threads: int | None = Field(None, ge=1)
    """Torch threads of each worker; None shares the cores out, or takes the cores that Slurm gave."""

    retries: int = Field(2, ge=0)
    """How often a candidate is submitted again that Slurm lost (node failure, preemption)."""

    slurm: dict[str, Any] = {}
    """Parameters of submitit's AutoExecutor by name, for instance ``{slurm_partition: gpu, timeout_min: 60}``."""


class StudyConfig(Section):
    """What the study of any method depends on. Relative paths are read from the folder of the file."""

    PATHS: ClassVar[tuple[str, ...]] = ("space",)
    """Keys whose value may be the path of a file, which the study then keeps a copy of."""

    SEARCH: ClassVar[str]
    """``package.module:function`` that runs or goes on with a study of this method; see `pynas.nars.search.search`."""

    JOURNAL: ClassVar[str] = "candidates"
    """The journal's study of the search itself; those of what comes after it are `LATER`."""

    method: str
    """The method of search; see METHODS."""

    space: str
    """A shipped table's name or the path of a user's."""

    pin: dict[str, Any] = {}
    """Variables fixed by name, for instance ``{ema: true}``."""

    seed: int = Field(0, ge=0)
    budgets: dict[str, dict[str, Any]] = Field(min_length=1)
    """One answer each: name -> bounds, for instance ``small: {flops: 400M:450M}``."""

    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    final: FinalConfig = FinalConfig()
    executor: ExecutorConfig = ExecutorConfig()

    @field_validator("executor", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("budgets")
    @classmethod
    def _check(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, bounds in value.items():
            if not name or any(not (c.isalnum() or c in "-_.") for c in name) or name.startswith("."):
                raise ValueError(f"{name!r}; allowed in a budget's name: letters, digits, '-', '_' and '.'")
            Budget(**bounds)
        return value

    @property
    def final_data(self) -> DataConfig:
        """The images of the final trainings."""
        return self.final.data or self.data

    def sources(self) -> dict[str, Path]:
        """The files that PATHS name, by key. Raises PynasError where one is not there."""
        return {key: find_table(value) for key in self.PATHS if (value := getattr(self, key)) is not None}

    def lasting(self) -> dict[str, Any]:
        """What may not change from one run of a study to the next. Files may have moved: of PATHS only whether there
        is one; the study compares their text.
        """
        values = self.model_dump(mode="json", by_alias=True, exclude={"executor"})
        return values | {key: "none" if values[key] is None else "a file" for key in self.PATHS}


Config = TypeVar("Config", bound=StudyConfig)


def read_config(path: str | Path) -> StudyConfig:
    """Read and check a `study.yaml`. Raises PynasError naming file, key, value and what is allowed."""
    path = Path(path)
    values = read_mapping(path, "a study is a mapping; it needs at least the keys space and budgets")
    method = values.get("method", "nars")
    if method not in METHODS:
        raise PynasError(f"{path}: method: {method!r}; allowed: {', '.join(METHODS)}")
    kind: type[StudyConfig] = _named(METHODS[method])
    for key in kind.PATHS:  # a user's own files, next to the study
        if isinstance(values.get(key), str) and (near := path.parent / values[key]).is_file():
            values[key] = str(near.resolve())
    config = checked(kind, values, path)
    final = config.final.data and config.final.data.located(path.parent)
    final_config = config.final.model_copy(update={"data": final})
    return config.model_copy(update={"data": config.data.located(path.parent), "final": final_config})


def search_of(config: StudyConfig) -> Callable[..., dict[str, Any] | None]:
    """The function (config, path, *, listener) that runs or goes on with a study; see `pynas.nars.search.search`."""
    return _named(config.SEARCH)


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def with_executor(config: Config, kind: str | None) -> Config:
    """The configuration with an executor of another kind; unchanged for None. Raises PynasError for an unknown kind."""
    if kind is None:
        return config
    executor = checked(ExecutorConfig, {**config.executor.model_dump(), "kind": kind}, "--executor")
    return config.model_copy(update={"executor": executor})


def dump_config(config: StudyConfig) -> str:
    """The configuration with every default written out, as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False)


def check_unchanged(config: StudyConfig, recorded: StudyConfig, where: Path) -> None:
    """A study goes on only with the settings it began with; the executor alone may change. Raises PynasError."""
    new, old = config.lasting(), recorded.lasting()
    changed = [f"{key} ({old.get(key)!r} -> {new.get(key)!r})" for key in old | new if new.get(key) != old.get(key)]
    if changed:
        raise PynasError(
            f"{where}: this study began with other settings: {'; '.join(changed)}. "
            "Name another directory with --dir to start anew, or put the settings back; only executor may change"
        )
