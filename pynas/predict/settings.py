"""Shape and training of the predictor: the one place where their defaults live. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from pynas.errors import PynasError


@dataclass(frozen=True)
class PredictorSettings:
    """Shape and training of the predictor; the paper's values where it gives them (sections 3.3, A.3)."""

    embedding: int = 24  # width of the architecture embedding (A.3)
    hidden: int = 32  # width of the one hidden layer; the paper does not give it
    pretrain_epochs: int = 60
    pretrain_batch: int = 256
    pretrain_lr: float = 1e-2
    frozen_epochs: int = 50  # embedding frozen (section 3.3)
    epochs: int = 50  # then everything, at a lower rate
    batch: int = 16
    lr: float = 1e-2
    lower_lr: float = 1e-3
    weight_decay: float = 1e-3
    folds: int = 5  # cross-validation

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden", "pretrain_batch", "batch"):
            if getattr(self, name) < 1:
                raise PynasError(f"predictor {name}: {getattr(self, name)}; allowed: at least 1")
        for name in ("pretrain_epochs", "frozen_epochs", "epochs", "weight_decay"):
            if getattr(self, name) < 0:
                raise PynasError(f"predictor {name}: {getattr(self, name)}; allowed: at least 0")
        for name in ("pretrain_lr", "lr", "lower_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise PynasError(f"predictor {name}: {getattr(self, name)}; allowed: above 0")
        if self.folds < 2:
            raise PynasError(f"predictor folds: {self.folds}; allowed: at least 2")
