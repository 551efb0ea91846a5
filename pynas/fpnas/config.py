"""How a supernet is searched: the one place where the defaults of FP-NAS live (section 5.1 unless said otherwise)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pynas.data.config import Augmentation, DataConfig
from pynas.search.config import StudyConfig
from pynas.space.budget import Budget
from pynas.space.table import find_table
from pynas.train.config import TrainingRecipe


class SupernetConfig(BaseModel):
    """The settings of a probabilistic search in a supernet. The paper's, but for what depends on its eight GPUs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    epochs: int = Field(315, ge=1)
    """Epochs of the search, the warm-up included."""

    warmup_epochs: int = Field(45, ge=0)
    """Epochs at the beginning in which only the weights are trained."""

    batch_size: int = Field(256, ge=2)
    """Images of a step: of the half that trains the weights, and as many of the half that trains alpha."""

    sampling: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: K = max(1, floor(lambda H)) architectures a step (equation 4); fixed: `samples`, as PARSEC."""

    lambda_: float = Field(0.25, gt=0, alias="lambda")
    """lambda of equation 4, architectures a nat of the distribution's entropy."""

    samples: int = Field(14, ge=1)
    """K of the fixed sampling (section 5.2.1: 14; PARSEC: 8 or 16)."""

    distribution: Literal["mixed", "joint", "factorised"] = "mixed"
    """mixed: factorised until epoch `theta`, joint from then on (section 3.3)."""

    theta: int = Field(80, ge=0)
    """Epoch at which a mixed distribution becomes joint (section 5.3)."""

    beta: float = Field(0.3, ge=0)
    """Coefficient of the hinge on the cost (equation 6)."""

    likelihood: Literal["sum", "mean"] = "mean"
    """How the log-likelihoods of a batch's images make that of an architecture: PARSEC's sum, or their mean."""

    temperature: float = Field(0.1, gt=0)
    """What log-likelihoods are divided by before they make importance weights, in nats: see docs/fpnas.md."""

    baseline: bool = True
    """Subtract from importance weights what they are on average, 1 / K: the same gradient on average, with less noise.
    The paper does not; nor is it done for K = 1, where nothing would be left."""

    alpha_lr: float = Field(0.016, gt=0)
    """Learning rate of Adam on alpha, constant."""

    lr: float = Field(0.1, gt=0)
    """Initial learning rate of SGD on the weights, followed by half a cosine to zero: the paper's 0.8 for its 8 x 256
    images a step, scaled to 256."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD; the paper names none."""

    weight_decay: float = Field(4e-5, ge=0)
    """Of convolutions and linear layers; the paper names none, this is FBNetV2's."""

    gradient_clip: float | None = Field(None, gt=0)
    """Largest L2 norm of a step's gradients together; None does not clip."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Of the weights' loss. Likelihoods never have any."""

    augment: Augmentation = "basic"
    """Of the half that trains the weights."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    workers: int | None = Field(None, ge=0)
    """Processes that decode images where these are files, for each half; None takes as many as there are cores."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> SupernetConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: got {self.warmup_epochs}, allowed: fewer than epochs, {self.epochs}, since alpha is "
                "learned after them"
            )
        if self.distribution == "mixed" and self.theta >= self.epochs:
            raise ValueError(
                f"theta: got {self.theta}, allowed: fewer than epochs, {self.epochs}, for a mixed distribution to "
                "become joint (the paper's share is a quarter); or distribution: factorised"
            )
        return self


class FPNASConfig(StudyConfig):
    """Everything an FP-NAS study depends on. Each budget is a search of its own."""

    PATHS: ClassVar[tuple[str, ...]] = ("space", "latency")
    SEARCH: ClassVar[str] = "pynas.fpnas.study:search"
    JOURNAL: ClassVar[str] = "search"

    method: Literal["fpnas"]

    resolution: int | None = Field(None, ge=1)
    """Input size in pixels in place of the table's (section 5.1: 128 for the small models, 224 for the large ones)."""

    latency: str | None = None
    """The latency model of a device, a file that ``pynas latency SPACE`` wrote, for budgets of ``latency``."""

    data: DataConfig = DataConfig(withhold="half")
    """Training images train the weights, validation images alpha; `withhold` is half where it is not given."""

    search: SupernetConfig = SupernetConfig()

    training: TrainingRecipe = TrainingRecipe()
    """The whole recipe of final trainings, for instance ``{base: fpnas_final}``; a table's own is left out."""

    @field_validator("data", mode="before")
    @classmethod
    def _halves(cls, value: Any) -> Any:
        return {"withhold": "half", **value} if isinstance(value, dict) else value

    @field_validator("budgets")
    @classmethod
    def _upper_bounds(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, bounds in value.items():
            for cost, (low, high) in Budget(**bounds).bounds:
                if low is not None or high is None:
                    raise ValueError(
                        f"budgets.{name}.{cost}: got {bounds[cost]!r}, allowed: an upper bound alone, the target of "
                        "the hinge on the cost, for instance 60M"
                    )
        return value

    def sources(self) -> dict[str, Path]:
        latency = {} if self.latency is None else {"latency": Path(self.latency)}
        return {"space": find_table(self.space)} | latency

    @property
    def final_data(self) -> DataConfig:
        """Final networks train on all that the search has halved."""
        return self.final.data or self.data.model_copy(update={"withhold": None})

    def targets(self, name: str) -> dict[str, float]:
        """TAR of each cost of a budget (section 3.4), in the costs' units."""
        return {cost: high for cost, (_, high) in Budget(**self.budgets[name]).bounds if high is not None}
