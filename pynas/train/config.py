"""What every candidate of a study shares: the training settings. Defaults live here and nowhere else.

What differs from candidate to candidate is its `Recipe` (`pynas.space.architecture`). It is frozen, refuses
unknown keys, and is read from the `training` section of a study's configuration.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
    """How long and with what fixed settings each candidate trains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(150, ge=1)
    """Epochs of a full training (section 4.1: 150). Early stopping cuts a training short, the schedule stays this."""

    batch_size: int = Field(256, ge=2)
    """Images a step (appendix A.5: 256 a node). The last, smaller batch of an epoch is left out."""

    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    """Momentum of SGD and of RMSProp, without unit; the paper gives none, 0.9 is that of MobileNet and EfficientNet."""

    lr_decay: float | None = Field(None, gt=0.0, le=1.0)
    """Factor on the learning rate per epoch after the warm-up, applied continuously.

    None spreads the paper's total decay, 0.963**150, over `epochs`; the paper's final models use 0.9875 for 400.
    """

    warmup_epochs: float = Field(0.0, ge=0.0)
    """Epochs in which the learning rate rises linearly from 0 (section 4.2: 5 for the final models, none in search)."""

    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of the target spread evenly over all classes; the paper uses it (A.5) without a value, 0.1 is customary."""

    ema_decay: float | None = Field(None, ge=0.0, lt=1.0)
    """alpha of equation 2, per step (A.5: 0.99985 on ImageNet, 0.999 on CIFAR-10, 0.9998 on COCO).

    None takes 1 - 21.6 / steps of the full training, at most 0.99985: the window the paper's search averages over is
    that share of its training. A fixed 0.9998 would, in a training of a few hundred steps, evaluate little else than
    the initial weights.
    """

    augment: bool = True
    """Random shifts and, where the data allow it, horizontal flips; stands in for the paper's AutoAugment (A.5)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the first CUDA device where there is one."""
