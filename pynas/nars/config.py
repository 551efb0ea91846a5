"""The configuration of a NARS study: typed, checked, and the one place where the search's defaults live."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pynas.nars.evolve import EvolutionSettings
from pynas.predict.settings import PredictorSettings
from pynas.search.config import Section, StudyConfig
from pynas.space.budget import Budget


class PoolConfig(Section):
    """The candidate pool of stage 1."""

    size: int = Field(20_000, ge=1)
    """n, genomes in the pool (section 4.1)."""

    budget: dict[str, Any] = Field(default_factory=dict)
    """Bounds on the pool, for instance ``{flops: 400M:800M}`` (A.3); bins are taken from the FLOP bounds."""

    @field_validator("budget")
    @classmethod
    def _check(cls, value: dict[str, Any]) -> dict[str, Any]:
        Budget(**value)
        return value


class NARSConfig(StudyConfig):
    """Everything a NARS search depends on."""

    PATHS: ClassVar[tuple[str, ...]] = ("space", "architecture")
    SEARCH: ClassVar[str] = "pynas.nars.search:search"

    method: Literal["nars"] = "nars"

    architecture: str | None = None
    """A network whose stages replace the space's: recipe-only search (section 4.1)."""

    model: str | None = None
    """Any torch model in place of an architecture, as ``package.module:function`` or ``resnet18``: recipe-only search
    for a network that no table describes (Table 3). Its costs are not counted."""

    resolution: int | None = Field(None, ge=1)
    """Input size of `model` in pixels; None takes that of the images, or 224 for image files."""

    pool: PoolConfig = PoolConfig()
    iterations: int = Field(4, ge=1)
    """T, batches of candidates (section 4.1: 4; joint search: 5)."""

    candidates: int = Field(48, ge=2)
    """m, candidates of each iteration, one for each FLOP bin (section 4.1)."""

    early_stop: float = Field(0.92, gt=0, le=1)
    """Rank correlation with the final accuracy at which candidates stop after the first iteration (section 3.3)."""

    max_failed: float = Field(0.5, gt=0, le=1)
    """The search ends with an error once more than this share of an iteration's candidates has failed."""

    predictor: PredictorSettings = PredictorSettings()
    evolution: EvolutionSettings = EvolutionSettings()

    @model_validator(mode="after")
    def _one_network(self) -> NARSConfig:
        if self.model is not None and self.architecture is not None:
            raise ValueError("architecture and model both name the network; give one of them")
        if self.model is None and self.resolution is not None:
            raise ValueError("resolution is that of model; a table has its own (pin: {resolution: ...})")
        return self
