"""How the tables that retrain what FP-NAS finds search and train: table7_split_attention and search_methods.

Sizes were chosen for time, and rates by how far the entropy and the supernet's loss fall in searches of fbnetv2_f_28
with seed 100, which no table reports: the step on alpha is longer than the paper's 0.016, for there are but 448. The
bound on FLOPs is below most of the space: with 1.2M, the median, those searches ended at about half of the bound.
"""

from __future__ import annotations

from typing import Any

from pynas.train.recipe import load_recipe

SPACE, FLOPS = "fbnetv2_f_28", 700_000
IMAGES, EPOCHS, WARMUP, THETA, BATCH = 1024, 14, 2, 4, 32
LR, ALPHA_LR = 0.1, 0.08
RECIPE = {
    "lr": 0.05,
    "optimizer": "SGD",
    "ema": False,
    "dropout": 0.0,
    "stochastic_depth": 0.0,
    "mixup": 0.0,
    "weight_decay": 4e-5,
}
FINAL_IMAGES, FINAL_EPOCHS = 3000, 8
QUICK_IMAGES, QUICK_EPOCHS = 64, 3


def images(seed: int, quick: bool) -> dict[str, Any]:
    """Of a search: as many train weights or candidates as alpha is learned from or candidates are chosen by."""
    count = QUICK_IMAGES if quick else IMAGES
    return {"train": count, "validation": count, "seed": seed}


def supernet(quick: bool) -> dict[str, Any]:
    """The settings of FP-NAS, as `SupernetConfig` takes them."""
    epochs = {"epochs": EPOCHS, "warmup_epochs": WARMUP, "theta": THETA}
    if quick:
        epochs = {"epochs": QUICK_EPOCHS, "warmup_epochs": 1, "theta": 2}
    return {**epochs, "batch_size": BATCH, "lr": LR, "alpha_lr": ALPHA_LR, "augment": "none"}


def training(quick: bool) -> dict[str, Any]:
    """What candidates and trainings from scratch share, as `TrainingConfig` takes it; epochs are given apart."""
    return {"batch_size": BATCH, "schedule": "cosine", "augment": "none", "label_smoothing": 0.0}


def final(seed: int, quick: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and data of the trainings from scratch."""
    epochs = QUICK_EPOCHS if quick else FINAL_EPOCHS
    recipe = load_recipe(settings={**RECIPE, **training(quick), "epochs": epochs}).model_dump()
    count = QUICK_IMAGES if quick else FINAL_IMAGES
    return recipe, {"train": count, "validation": 200, "seed": seed}


def told(quick: bool) -> dict[str, Any]:
    """The settings, as a report tells them."""
    recipe, data = final(0, quick)
    return {
        "bound": f"{FLOPS} FLOPs",
        "search": supernet(quick),
        "data": f"Fashion-MNIST; the searches see {images(0, quick)['train']} images in each half, the trainings from "
        f"scratch {data['train']}, drawn anew for each seed; accuracy on the 10 000 test images (the paper: ImageNet)",
        "recipe": recipe,
    }
