"""Which images: the `data` section of a study and of a training. Defaults live here and nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DataConfig(BaseModel):
    """Which images, how many of them, and how they are split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["fashion-mnist", "digits"] = "fashion-mnist"
    """fashion-mnist: 28 x 28, 50 000 + 10 000 + 10 000 images; digits (scikit-learn): 8 x 8, 1 437 + 180 + 180."""

    train: int | None = Field(None, ge=1)
    """Training images to use, stratified by class; None takes all there are."""

    validation: int | None = Field(None, ge=1)
    """Validation images to use, stratified by class; None takes all there are."""

    seed: int = Field(0, ge=0)
    """Decides which images train and which validate. The test images are always the same."""
