"""Table 8: baseline, EMA, distillation and both, on Fashion-MNIST, the network being its own teacher.

The network is the largest of 2000 Sobol points of the space fbnetv3_28 between 2M and 2.4M FLOPs; the recipe is that of
Table 9 with its 400 epochs scaled down. A training evaluates raw and averaged weights, so two trainings a seed, on
labels and from the network that the first one ended with, give four cells.
"""

from __future__ import annotations

from typing import Any

import harness
import numpy as np
import trainings
from trainings import Claim, Difference, Training, accuracy, by_seed

import pynas
from pynas.nars.pool import make_pool
from pynas.nets.load import ModelSpec
from pynas.train.recipe import load_recipe

EPOCHS, TRAIN, VALIDATION, BATCH = 10, 2500, 2000, 64
QUICK = (4, 128, 100, 32)
PAPER = {"Baseline": 80.9, "EMA": 82.3, "Dist": 82.2, "Dist+EMA": 82.8}
CELLS = {"Baseline": ("labels", "raw_curve"), "EMA": ("labels", "curve")}
CELLS |= {"Dist": ("distilled", "raw_curve"), "Dist+EMA": ("distilled", "curve")}


def network() -> ModelSpec:
    space = pynas.load_space("fbnetv3_28")
    genomes = make_pool(space, 2000, budget=pynas.Budget(flops="2M:2.4M"), seed=0).genomes
    architecture, _ = space.decode(genomes[int(np.argmax(space.costs(genomes)["flops"]))])
    return ModelSpec.of(architecture, name="fbnetv3_28-2.4M")


def plan(spec: ModelSpec, seeds: int, quick: bool) -> list[Training]:
    epochs, train, validation, batch = QUICK if quick else (EPOCHS, TRAIN, VALIDATION, BATCH)
    changed = {
        "epochs": epochs,
        "warmup_epochs": 5 * epochs / 400,
        "lr_decay": 0.9875 ** (400 / epochs),
        "batch_size": batch,
        "ema_decay": None,  # 1 - 21.6 / steps, pynas's scaling of the window to the length of a training
        "augment": "basic",
    }
    recipe = load_recipe("fbnetv3_table9", settings=changed).model_dump()
    model = spec.to_dict()
    data = [{"train": train, "validation": validation, "seed": seed} for seed in range(seeds)]
    return [Training("labels", seed, model, recipe, data[seed]) for seed in range(seeds)] + [
        Training("distilled", seed, model, recipe, data[seed], teacher="labels") for seed in range(seeds)
    ]


def evaluate(results: trainings.Results, seeds: int) -> tuple[list[tuple[str, ...]], list[Claim], str]:
    """The rows of the table, what the paper says of it, and a remark on the order."""
    epochs = len(next(iter(results.values()))["curve"])
    half = epochs // 2

    def cells(epoch: int) -> dict[str, list[float]]:
        return {
            name: by_seed(results, seeds, lambda result, curve=curve: result[curve][epoch - 1])[cell]
            for name, (cell, curve) in CELLS.items()
        }

    end, middle = cells(epochs), cells(half)
    gains = {name: Difference.of(end[name], end["Baseline"]) for name in list(CELLS)[1:]}
    points = {name: PAPER[name] - PAPER["Baseline"] for name in gains}
    early = Difference.of(middle["EMA"], middle["Baseline"])
    rows = [
        ("paper: FBNetV3-G, ImageNet", *(f"{value:.1f}" for value in PAPER.values())),
        ("paper: over baseline", "", *(f"{value:+.1f}" for value in points.values())),
        (f"here: after {epochs} epochs", *map(accuracy, end.values())),
        ("here: over baseline", "", *map(str, gains.values())),
        ("", "", *(gains[name].verdict(points[name]) for name in gains)),
        (f"here: after {half} epochs", *map(accuracy, middle.values())),
        ("here: over baseline", "", *(str(Difference.of(middle[name], middle["Baseline"])) for name in gains)),
    ]
    claims = [Claim(f"{name} over baseline", points[name], gains[name]) for name in gains]
    both = Difference.of(end["Dist+EMA"], end["Dist"])
    claims += [
        Claim("Dist+EMA over Dist", PAPER["Dist+EMA"] - PAPER["Dist"], both),
        Claim(
            "Dist+EMA over EMA",
            PAPER["Dist+EMA"] - PAPER["EMA"],
            Difference.of(end["Dist+EMA"], end["EMA"]),
        ),
        Claim(f"EMA over baseline after {half} epochs", 1, early, sign_only=True),
        Claim(
            f"what EMA brings after {half} epochs over what it brings at the end",
            1,
            early - gains["EMA"],
            sign_only=True,
        ),
    ]
    means = {name: float(np.mean(values)) for name, values in end.items()}
    remark = f"Order of the means: {trainings.order(means)}; the paper's: {trainings.order(PAPER)}."
    return rows, claims, remark


def main() -> None:
    options = trainings.arguments(__doc__, seeds=4)
    around = harness.machine("torch", "scipy")
    spec = network()
    planned = plan(spec, options.seeds, options.quick)
    results = trainings.train_all(planned, options)
    rows, claims, remark = evaluate(results, options.seeds)
    settings: dict[str, Any] = {
        "network": f"{spec.name}: {spec.architecture.cost()['flops']} FLOPs, {spec.resolution} pixels",
        "data": f"Fashion-MNIST, {planned[0].data['train']} training images and {planned[0].data['validation']} to "
        "evaluate, drawn anew for each seed (the paper: ImageNet)",
        "recipe": planned[0].recipe,
    }
    name = "table8_ema_distillation"
    trainings.report(name, options, around, ("", *CELLS), rows, claims, results, settings, [remark])


if __name__ == "__main__":
    main()
