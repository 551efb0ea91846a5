"""The configuration of a study, `study.yaml`: typed, checked, and the one place where the search's defaults live."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pynas.data.config import DataConfig
from pynas.errors import PynasError
from pynas.nars.evolve import EvolutionSettings
from pynas.predict.settings import PredictorSettings
from pynas.sections import checked, read_mapping
from pynas.space.budget import Budget
from pynas.train.config import TrainingConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolConfig(_Section):
    """The candidate pool of stage 1."""

    size: int = Field(20_000, ge=1)
    """n, genomes in the pool (section 4.1)."""

    budget: dict[str, Any] = {}
    """Bounds on the pool, for instance ``{flops: 400M:800M}`` (A.3); bins are taken from the FLOP bounds."""

    @field_validator("budget")
    @classmethod
    def _check(cls, value: dict[str, Any]) -> dict[str, Any]:
        Budget(**value)
        return value


class FinalConfig(_Section):
    """What happens to the winner of each budget after the search."""

    epochs: int = Field(0, ge=0)
    """Epochs of the winner's own training; 0 leaves it untrained."""

    baseline: bool = True
    """Train the best random candidate of the first iteration within the same budget beside it."""

    data: DataConfig | None = None
    """Images of the final trainings; those of the search where not given."""


class ExecutorConfig(_Section):
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


class StudyConfig(_Section):
    """Everything a search depends on. Relative paths are read from the folder of the file."""

    space: str
    """A shipped table's name or the path of a user's."""

    pin: dict[str, Any] = {}
    """Variables fixed by name, for instance ``{ema: true}``."""

    architecture: str | None = None
    """A network whose stages replace the space's: recipe-only search (section 4.1)."""

    model: str | None = None
    """Any torch model in place of an architecture, as ``package.module:function`` or ``resnet18``: recipe-only search
    for a network that no table describes (Table 3). Its costs are not counted."""

    resolution: int | None = Field(None, ge=1)
    """Input size of `model` in pixels; None takes that of the images, or 224 for image files."""

    seed: int = Field(0, ge=0)
    pool: PoolConfig = PoolConfig()
    iterations: int = Field(4, ge=1)
    """T, batches of candidates (section 4.1: 4; joint search: 5)."""

    candidates: int = Field(48, ge=2)
    """m, candidates of each iteration, one for each FLOP bin (section 4.1)."""

    early_stop: float = Field(0.92, gt=0, le=1)
    """Rank correlation with the final accuracy at which candidates stop after the first iteration (section 3.3)."""

    budgets: dict[str, dict[str, Any]] = Field(min_length=1)
    """One answer each: name -> bounds, for instance ``small: {flops: 400M:450M}``."""

    max_failed: float = Field(0.5, gt=0, le=1)
    """The search ends with an error once more than this share of an iteration's candidates has failed."""

    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    predictor: PredictorSettings = PredictorSettings()
    evolution: EvolutionSettings = EvolutionSettings()
    final: FinalConfig = FinalConfig()
    executor: ExecutorConfig = ExecutorConfig()

    @model_validator(mode="after")
    def _one_network(self) -> StudyConfig:
        if self.model is not None and self.architecture is not None:
            raise ValueError("architecture and model both name the network; give one of them")
        if self.model is None and self.resolution is not None:
            raise ValueError("resolution is that of model; a table has its own (pin: {resolution: ...})")
        return self

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


def read_config(path: str | Path) -> StudyConfig:
    """Read and check a `study.yaml`. Raises PynasError naming file, key, value and what is allowed."""
    path = Path(path)
    values = read_mapping(path, "a study is a mapping; it needs at least the keys space and budgets")
    for key in ("space", "architecture"):  # a user's own files, next to the study
        if isinstance(values.get(key), str) and (near := path.parent / values[key]).is_file():
            values[key] = str(near.resolve())
    config = checked(StudyConfig, values, path)
    final = config.final.data and config.final.data.located(path.parent)
    final_config = config.final.model_copy(update={"data": final})
    return config.model_copy(update={"data": config.data.located(path.parent), "final": final_config})


def with_executor(config: StudyConfig, kind: str | None) -> StudyConfig:
    """The configuration with an executor of another kind; unchanged for None. Raises PynasError for an unknown kind."""
    if kind is None:
        return config
    executor = checked(ExecutorConfig, {**config.executor.model_dump(), "kind": kind}, "--executor")
    return config.model_copy(update={"executor": executor})


def dump_config(config: StudyConfig) -> str:
    """The configuration with every default written out, as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def check_unchanged(config: StudyConfig, recorded: StudyConfig, where: Path) -> None:
    """A study goes on only with the settings it began with; the executor alone may change. Raises PynasError.

    Tables may have moved with the study: their text is compared, not where they lie.
    """
    new, old = (c.model_dump(mode="json", exclude={"executor", "space", "architecture"}) for c in (config, recorded))
    for values, source in ((new, config), (old, recorded)):
        values["architecture"] = "searched" if source.architecture is None else "fixed"
    changed = [f"{key} ({old[key]!r} -> {new[key]!r})" for key in new if new[key] != old[key]]
    if changed:
        raise PynasError(
            f"{where}: this study began with other settings: {'; '.join(changed)}. "
            "Name another directory with --dir to start anew, or put the settings back; only executor may change"
        )
