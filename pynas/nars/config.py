"""The configuration of a NARS study: typed, checked, and the one place where the search's defaults live."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pynas.nars.evolve import EvolutionSettings
from pynas.predict.settings import PredictorSettings
from pynas.search.config import Section, StudyConfig
from pynas.space.budget import Budget

SIZES = {"aimed": {"iterations": 8, "candidates": 8}, "paper": {"iterations": 4, "candidates": 48}}
"""How many candidates a search trains where the study does not say."""


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
    selection: Literal["aimed", "paper"] = "aimed"
    """How candidates are chosen and budgets answered. aimed: by a Gaussian process, for each budget in turns, and the
    best trained candidate is the answer. paper: by the MLP, one from each FLOP bin, and the answer is evolved."""

    iterations: int = Field(SIZES["aimed"]["iterations"], ge=1)
    """T, batches of candidates (aimed: 8; paper: 4, section 4.1, where joint search has 5)."""

    candidates: int = Field(SIZES["aimed"]["candidates"], ge=2)
    """m, candidates of each iteration (aimed: 8; paper: 48, one for each FLOP bin, section 4.1)."""

    caps: int | None = Field(None, ge=1)
    """aimed: aim at so many FLOP caps, spread over the pool's range, in place of the budgets: for budgets that are to
    be named after the search."""

    asynchronous: bool = False
    """aimed: choose the next candidate whenever a worker is free, rather than in batches; no worker waits for another
    then, but what is chosen depends on which training ends first."""

    early_stop: float = Field(0.92, gt=0, le=1)
    """Rank correlation with the final accuracy at which candidates stop after the first iteration (section 3.3)."""

    max_failed: float = Field(0.5, gt=0, le=1)
    """The search ends with an error once more than this share of an iteration's candidates has failed."""

    predictor: PredictorSettings = PredictorSettings()
    evolution: EvolutionSettings = EvolutionSettings()

    @model_validator(mode="before")
    @classmethod
    def _sizes(cls, values: Any) -> Any:
        return SIZES.get(str(values.get("selection")), {}) | values if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _of_aimed_selection(self) -> NARSConfig:
        for name in ("caps", "asynchronous"):
            if self.selection != "aimed" and getattr(self, name):
                raise ValueError(f"{name}: {getattr(self, name)!r}; allowed with selection: aimed alone")
        return self

    @model_validator(mode="after")
    def _one_network(self) -> NARSConfig:
        if self.model is not None and self.architecture is not None:
            raise ValueError("architecture and model both name the network; give one of them")
        if self.model is None and self.resolution is not None:
            raise ValueError("resolution is that of model; a table has its own (pin: {resolution: ...})")
        return self
