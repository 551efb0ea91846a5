"""Table 1: two recipes, ResNet-18 of 1.4 times the width against 2 times the depth, on Fashion-MNIST.

Recipe-1 and Recipe-2 of appendix A.1 differ in their epochs alone, 30 and 90: here 3 and 9, which of 640 images in
batches of 64 are as many steps as the paper's have epochs. The learning rate is scaled with the batch, 0.1 x 64 / 256.
The network is ImageNet's, not its variant for small images: 28 pixels leave maps of 14, 7, 7, 4, 2 and 1 pixel, which
is what makes it affordable.
"""

from __future__ import annotations

from typing import Any

import harness
import trainings
from trainings import Claim, Difference, Training, accuracy, by_seed

from pynas.data.config import DataConfig
from pynas.train.models import model_for_data
from pynas.train.recipe import load_recipe

SCALE, TRAIN, VALIDATION, BATCH = 10, 640, 100, 64
QUICK = (30, 32, 20, 16)
NETWORKS = {"1.4x width": "resnet18_1.4x_width", "2x depth": "resnet18_2x_depth"}
RECIPES = {"Recipe-1": "table1_recipe1", "Recipe-2": "table1_recipe2"}
PAPER = {
    ("1.4x width", "Recipe-1"): 70.8,
    ("2x depth", "Recipe-1"): 70.7,
    ("1.4x width", "Recipe-2"): 73.3,
    ("2x depth", "Recipe-2"): 73.8,
}


def plan(seeds: int, quick: bool, images: int | None = None) -> list[Training]:
    """Every seed's four trainings, the long ones first."""
    scale, train, validation, batch = QUICK if quick else (SCALE, TRAIN, VALIDATION, BATCH)
    train = images or train
    planned = []
    for seed in range(seeds):
        data: dict[str, Any] = {"train": train, "validation": validation, "seed": seed}
        for recipe, file in reversed(RECIPES.items()):
            paper = load_recipe(file)
            changed = {
                "epochs": paper.epochs // scale,
                "batch_size": batch,
                "lr": paper.lr * batch / paper.batch_size,
            }
            values = load_recipe(file, settings=changed).model_dump()
            for network, name in NETWORKS.items():
                model = model_for_data(name, DataConfig(**data)).to_dict()
                planned.append(Training(f"{network} with {recipe}", seed, model, values, data))
    return planned


def evaluate(results: trainings.Results, seeds: int) -> tuple[list[tuple[str, ...]], list[Claim]]:
    """The rows of the table and what the paper says of it."""
    cells = by_seed(results, seeds, lambda result: result["test_accuracy"])
    wide, deep = NETWORKS
    rows: list[tuple[str, ...]] = []
    for network in NETWORKS:
        rows.append((f"paper: ResNet18 ({network})", *(f"{PAPER[network, recipe]:.1f}" for recipe in RECIPES)))
    points = {recipe: PAPER[wide, recipe] - PAPER[deep, recipe] for recipe in RECIPES}
    rows.append(("paper: width less depth", *(f"{value:+.1f}" for value in points.values())))
    for network in NETWORKS:
        rows.append((f"here: ResNet18 ({network})", *(accuracy(cells[f"{network} with {r}"]) for r in RECIPES)))
    gaps = {r: Difference.of(cells[f"{wide} with {r}"], cells[f"{deep} with {r}"]) for r in RECIPES}
    rows.append(("here: width less depth", *map(str, gaps.values())))
    rows.append(("", *(gap.verdict(points[recipe]) for recipe, gap in gaps.items())))
    claims = [Claim(f"width over depth with {recipe}", points[recipe], gap) for recipe, gap in gaps.items()]
    first, second = RECIPES
    change = points[first] - points[second]
    claims.append(Claim(f"that with {first} over that with {second}", change, gaps[first] - gaps[second]))
    for network in NETWORKS:
        gain = Difference.of(cells[f"{network} with {second}"], cells[f"{network} with {first}"])
        claims.append(
            Claim(f"{second} over {first} for {network}", PAPER[network, second] - PAPER[network, first], gain)
        )
    return rows, claims


def main() -> None:
    images = ("--images", {"type": int, "help": f"training images, where there is a GPU or time (default {TRAIN})"})
    options = trainings.arguments(__doc__, 3, images)
    around = harness.machine("torch", "scipy")
    planned = plan(options.seeds, options.quick, options.images)
    results = trainings.train_all(planned, options)
    rows, claims = evaluate(results, options.seeds)
    data = planned[0].data
    epochs = sorted({training.recipe["epochs"] for training in planned})
    settings: dict[str, Any] = {
        "networks": "ResNet-18 for ImageNet, at 28 pixels: maps of 14, 7, 7, 4, 2 and 1 pixel",
        "data": f"Fashion-MNIST, {data['train']} training images, drawn anew for each seed, accuracy on the 10 000 "
        "test images (the paper: ImageNet)",
        "epochs": f"{epochs[0]} and {epochs[1]} (the paper: 30 and 90)",
        "recipe": {key: value for key, value in planned[0].recipe.items() if key != "epochs"},
    }
    signs = [claim.here.mean > 0 for claim in claims[:2]]
    remark = f"The means {'do' if signs == [True, False] else 'do not'} switch the ranking as the paper's do."
    columns = ("", *RECIPES)
    trainings.report("table1_recipes", options, around, columns, rows, claims, results, settings, [remark])


if __name__ == "__main__":
    main()
