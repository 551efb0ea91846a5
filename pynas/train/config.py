"""How a network trains: `TrainingConfig` is what every candidate of a study shares, `TrainingRecipe` the whole recipe.

Defaults live here and nowhere else. Both are frozen, refuse unknown keys, and are read from the `training` section of a
study's configuration and from recipe files (`recipes/*.yaml`, see `recipe.py`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pynas.data.config import Augmentation
from pynas.space.architecture import Recipe

PAPER_TOTAL_LR_DECAY = 0.963**150
"""Final over initial learning rate in the paper's search: 0.963 an epoch for 150 epochs (section 4.1), about 0.0035."""

PAPER_EMA_DECAY = 0.99985
"""alpha of equation 2 on ImageNet (appendix A.5)."""

PAPER_EMA_STEPS = 21.6
"""Length of the paper's search training in units of its averaging window: (1 - 0.99985) x steps.

The steps are those of section 4: 200 classes of about 1 281 images less
10 000 for validation, in batches of 256, for 150 epochs: 144 000.
"""


class TrainingConfig(BaseModel):
    """How long and with what settings a network trains, apart from the seven variables that Table 2 searches."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(150, ge=1)
    """Epochs of a full training (section 4.1: 150). Early stopping cuts a training short, the schedule stays this."""

    batch_size: int = Field(256, ge=2)
    """Images a step (appendix A.5: 256 a node). The last, smaller batch of an epoch is left out."""

    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    """Momentum of SGD and of RMSProp, without unit; the paper gives none, 0.9 is that of MobileNet and EfficientNet."""

    schedule: Literal["exponential", "cosine"] = "exponential"
    """Of the learning rate after the warm-up: a factor an epoch (section 4), or half a cosine to zero (A.1)."""

    lr_decay: float | None = Field(None, gt=0.0, le=1.0)
    """Factor on the learning rate per epoch after the warm-up, applied continuously; for the exponential schedule.

    None spreads the paper's total decay, 0.963**150, over `epochs`; the paper's final models use 0.9875 for 400.
    """

    warmup_epochs: float = Field(0.0, ge=0.0)
    """Epochs in which the learning rate rises linearly from 0 (section 4.2: 5 for the final models, none in search)."""

    scale_lr_by_nodes: bool = True
    """Multiply the learning rate by the number of nodes, each of which has its own batch (A.5: 8 x for 8 nodes)."""

    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of the target spread evenly over all classes; the paper uses it (A.5) without a value, 0.1 is customary."""

    ema_decay: float | None = Field(None, ge=0.0, lt=1.0)
    """alpha of equation 2, per step (A.5: 0.99985 on ImageNet, 0.999 on CIFAR-10, 0.9998 on COCO).

    None takes 1 - 21.6 / steps of the full training, at most 0.99985: the window the paper's search averages over is
    that share of its training. A fixed 0.9998 would, in a training of a few hundred steps, evaluate little else than
    the initial weights.
    """

    batch_norm_momentum: float = Field(0.9, ge=0.0, lt=1.0)
    """Share of the running statistics that a step keeps (A.5: 0.9); torch calls the rest, 0.1, its momentum."""

    batch_norm_weight_decay: float = Field(0.0, ge=0.0)
    """Weight decay of batch-norm's gamma and beta (A.5: zero)."""

    gradient_clip: float | None = Field(None, gt=0.0)
    """Largest L2 norm of all gradients together; None does not clip (the papers name no clipping)."""

    augment: Augmentation = "basic"
    """none; basic: random crops or shifts and, where the data allow it, flips; autoaugment: on top, as in A.5."""

    distillation: float = Field(0.8, ge=0.0, le=1.0)
    """Share of the distillation loss where there is a teacher, the rest being cross-entropy (section 4.2: 0.8, 0.2)."""

    temperature: float = Field(1.0, gt=0.0)
    """Of the distillation loss (Hinton et al. 2015); the paper names none, so 1."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes forward and backward under autocast; weights, optimizer and average stay fp32."""

    micro_batch: int | None = Field(None, ge=1)
    """Images computed at once; gradients of a batch are accumulated over them. None takes the whole batch.

    Batch-norm normalises each micro-batch by its own statistics.
    """

    workers: int | None = Field(None, ge=0)
    """Processes that decode images; None takes the cores there are. Decides nothing about what is computed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the first CUDA device where there is one."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_base(cls, values: Any) -> Any:
        """`base: NAME` takes what a recipe file says for the keys that are not given here."""
        if not isinstance(values, dict) or "base" not in values:
            return values
        from pynas.train.recipe import read_settings

        inherited = read_settings(values["base"])
        own = {key: value for key, value in values.items() if key != "base"}
        return {key: value for key, value in inherited.items() if key in cls.model_fields} | own

    @field_validator("augment", mode="before")
    @classmethod
    def _was_a_truth_value(cls, value: Any) -> Any:
        return {True: "basic", False: "none"}[value] if isinstance(value, bool) else value  # studies of version 0.1


class TrainingRecipe(TrainingConfig):
    """A whole recipe: `TrainingConfig` and the seven variables of Table 2; their defaults are those of Table 9."""

    lr: float = Field(0.026, gt=0.0)
    """Initial learning rate of one node, as the optimizer gets it."""

    optimizer: Literal["RMSProp", "SGD"] = "RMSProp"
    """RMSProp is TensorFlow's (`optimizer.RMSPropTF`), SGD has heavy-ball momentum."""

    ema: bool = True
    """Evaluate and keep the exponential moving average of the weights, equation 2."""

    dropout: float = Field(0.17, ge=0.0, lt=1.0)
    """p: probability, before the classifier."""

    stochastic_depth: float = Field(0.09, ge=0.0, lt=1.0)
    """d: drop probability of the last block; earlier ones ramp up linearly from 0 at the first."""

    mixup: float = Field(0.19, ge=0.0)
    """m: parameter of the Beta(m, m) distribution, 0 for none."""

    weight_decay: float = Field(7e-6, ge=0.0)
    """wd, added to the gradient (L2)."""

    @classmethod
    def of(cls, training: TrainingConfig, recipe: Recipe) -> TrainingRecipe:
        """The recipe of a candidate: a study's settings and the variables that a genome decodes to."""
        return cls(**training.model_dump(), **recipe.to_dict())

    @property
    def searched(self) -> Recipe:
        """The seven variables of Table 2."""
        return Recipe(**{key: getattr(self, key) for key in SEARCHED})


SEARCHED = tuple(Recipe.__dataclass_fields__)
EXECUTION = ("device", "workers")
"""Settings that say how a training runs and not what it computes; they may change when it is resumed."""
