"""Table 6: the recipes of a study's smallest and largest winner swapped, on Fashion-MNIST.

Each of the four pairs trains as the study's own final trainings do: their epochs, images, batch and augmentation, and
the seven variables of the winner whose recipe it is. `--study` is a study's directory (default: studies/demo, which
`make demo` makes); where it has no winners yet, examples/demo.yaml is searched first, in a temporary directory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import trainings
import yaml
from trainings import Claim, Difference, Training, accuracy, by_seed

from pynas.nets.load import ModelSpec, read_model
from pynas.train.config import TrainingConfig, TrainingRecipe

ROOT = Path(__file__).parent.parent
PAPER = {("small", "small"): 79.8, ("small", "large"): 78.5, ("large", "small"): 80.8, ("large", "large"): 81.3}


def winners(study: Path) -> dict[str, ModelSpec]:
    """The winners with the fewest and the most FLOPs."""
    specs = [read_model(str(path)) for path in sorted((study / "winners").glob("*.yaml"))]
    specs.sort(key=lambda spec: spec.architecture.cost()["flops"])  # type: ignore[union-attr]
    assert len(specs) > 1, f"{study}: two winners are needed, found {len(specs)}"
    return {"small": specs[0], "large": specs[-1]}


def settings_of(study: Path) -> tuple[TrainingConfig, dict[str, Any]]:
    """How the study's final trainings train, and on which data; those of its search where it has none."""
    config = yaml.safe_load((study / "config.yaml").read_text())
    final = config.get("final") or {}
    training = TrainingConfig(**config["training"])
    if final.get("epochs"):
        training = training.model_copy(update={"epochs": final["epochs"]})
    return training, final.get("data") or config["data"]


def plan(
    found: dict[str, ModelSpec], training: TrainingConfig, data: dict[str, Any], seeds: int, quick: bool
) -> list[Training]:
    """The four pairs of every seed, the large network's, which take longest, first."""
    data = {**data, "validation": 200}  # the table tells the accuracy on the 10 000 test images
    if quick:
        training, data = training.model_copy(update={"epochs": 2}), {**data, "train": 64, "validation": 50}
    planned = []
    for seed in range(seeds):
        for model in ("large", "small"):
            for recipe in ("large", "small"):
                brought = found[recipe].recipe
                assert brought is not None, f"{found[recipe].name} has no recipe"
                whole = TrainingRecipe.of(training, brought).model_dump()
                values = {**data, "seed": seed}
                planned.append(Training(f"{model} with {recipe}", seed, found[model].to_dict(), whole, values))
    return planned


def evaluate(results: trainings.Results, seeds: int) -> tuple[list[tuple[str, ...]], list[Claim]]:
    """The rows of the table and what the paper says of it."""
    cells = by_seed(results, seeds, lambda result: result["test_accuracy"])
    rows, claims = [], []
    for model, name, other in (("small", "FBNetV3-B", "large"), ("large", "FBNetV3-E", "small")):
        points = PAPER[model, model] - PAPER[model, other]
        own = Difference.of(cells[f"{model} with {model}"], cells[f"{model} with {other}"])
        values = [f"{PAPER[model, recipe]:.1f}" for recipe in ("small", "large")]
        rows.append((f"paper: {name}", *values, f"{points:+.1f}", ""))
        here = [accuracy(cells[f"{model} with {recipe}"]) for recipe in ("small", "large")]
        claims.append(Claim(f"own recipe over the other's for the {model} winner", points, own))
        rows.append((f"here: {model} winner", *here, str(own), claims[-1].verdict))
    return rows, claims


def compared(found: dict[str, ModelSpec]) -> dict[str, str]:
    """The variables in which the two recipes differ."""
    recipes = [found[name].recipe.to_dict() for name in ("small", "large")]  # type: ignore[union-attr]
    return {key: f"{value} and {recipes[1][key]}" for key, value in recipes[0].items() if value != recipes[1][key]}


def main() -> None:
    study = ("--study", {"type": Path, "default": ROOT / "studies/demo", "help": "a study with winners"})
    options = trainings.arguments(__doc__, 4, study)
    around = harness.machine("torch", "scipy")
    with tempfile.TemporaryDirectory() as temporary:
        source = options.study
        if not any((source / "winners").glob("*.yaml")):
            print(f"{source}: no winners there; searching examples/demo.yaml first", file=sys.stderr, flush=True)
            source = Path(temporary) / "demo"
            search = ["pynas.cli", "search", str(ROOT / "examples/demo.yaml"), "--dir", str(source)]
            subprocess.run([sys.executable, "-m", *search], check=True, stdout=subprocess.DEVNULL)
        found = winners(source)
        training, data = settings_of(source)
        searched = source != options.study
    planned = plan(found, training, data, options.seeds, options.quick)
    results = trainings.train_all(planned, options)
    rows, claims = evaluate(results, options.seeds)
    differ = compared(found)
    settings: dict[str, Any] = {
        "study": f"{'examples/demo.yaml, searched for this' if searched else options.study.name}",
        "winners": {name: f"{spec.architecture.cost()['flops']} FLOPs" for name, spec in found.items()},
        "recipes": {name: spec.recipe.to_dict() for name, spec in found.items()},
        "the two recipes differ in (small and large)": differ or "nothing",
        "data": f"Fashion-MNIST, {planned[0].data['train']} training images, drawn anew for each seed, accuracy on the "
        "10 000 test images (the paper: ImageNet)",
        "training": {key: planned[0].recipe[key] for key in TrainingConfig.model_fields},
    }
    said = ", ".join(f"{key} ({values})" for key, values in differ.items()) or "nothing, so that a swap changes nothing"
    remarks = [
        f"The two recipes differ in {said}; where that is little, so is what a swap can show.",
        f"The larger network is ahead by {100 * ahead(results, options.seeds):.2f} points with recipes of their own "
        "(paper 1.5).",
    ]
    columns = ("", "small's recipe (B's)", "large's recipe (E's)", "own less other's", "verdict")
    trainings.report("table6_swapped_recipes", options, around, columns, rows, claims, results, settings, remarks)


def ahead(results: trainings.Results, seeds: int) -> float:
    cells = by_seed(results, seeds, lambda result: result["test_accuracy"])
    return float(np.mean(cells["large with large"]) - np.mean(cells["small with small"]))


if __name__ == "__main__":
    main()
