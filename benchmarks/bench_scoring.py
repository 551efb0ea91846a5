"""Scoring: predicted accuracies and all costs of a batch of row-major uint8 genomes, one thread.

pynas (predictor.score and space.costs) against numpy features, a torch MLP and FLOPs looked up in numpy, and against
the same all in torch. The peers count FLOPs only. Answers are compared first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import numpy as np
from reference import Encoding, FlopTables, TorchFitness, reference_score, synthetic_predictor

import pynas

BATCHES = (20_000, 200_000)


def main() -> None:
    options = harness.arguments(__doc__, rounds=15)
    try:
        import torch
    except ImportError as error:
        raise SystemExit(f"torch: not installed ({error}); the peer scores with it: pip install torch") from None
    torch.set_num_threads(harness.THREADS)
    around = harness.machine("torch")
    space = pynas.load_space("fbnetv3", pin={"ema": True})
    predictor, encoding, tables = synthetic_predictor(space, 0), Encoding(space), FlopTables(space)
    with_statistics = synthetic_predictor(space, 0, inputs=("flops", "params"))
    tuned = TorchFitness(predictor, encoding, tables)
    mean, scale = map(float, predictor.accuracy_scale)
    w = {name: torch.from_numpy(np.array(array)) for name, array in predictor.weights.items()}

    def ours(genomes: Any) -> tuple[Any, Any]:
        return predictor.score(space, genomes, threads=1), space.costs(genomes, threads=1)["flops"]

    def score_only(genomes: Any) -> tuple[Any, Any]:
        return predictor.score(space, genomes, threads=1), None

    def scores_with_statistics(genomes: Any) -> tuple[Any, Any]:
        return with_statistics.score(space, genomes, threads=1), None

    def costs_only(genomes: Any) -> tuple[Any, Any]:
        return None, space.costs(genomes, threads=1)["flops"]

    def numpy_and_torch(genomes: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            features = torch.from_numpy(encoding(genomes))
            architecture, recipe = features[:, : encoding.architecture], features[:, encoding.architecture :]
            embedding = torch.nn.functional.linear(architecture, w["embedding.weight"], w["embedding.bias"]).relu()
            inputs = torch.cat([embedding, recipe], 1)
            hidden = torch.nn.functional.linear(inputs, w["hidden.weight"], w["hidden.bias"]).relu()
            output = torch.nn.functional.linear(hidden, w["output.weight"], w["output.bias"])[:, 0]
        return output.numpy() * scale + mean, tables(genomes)

    def all_torch(genomes: Any) -> tuple[Any, Any]:
        # In pieces that stay in the cache: quicker than one large batch.
        pieces = [tuned(torch.from_numpy(genomes[i : i + 2000]).float()) for i in range(0, len(genomes), 2000)]
        return tuple(torch.cat(part).numpy() for part in zip(*pieces, strict=True))

    methods: dict[str, Callable[[Any], tuple[Any, Any]]] = {
        "pynas": ours,
        "pynas, scores only": score_only,
        "pynas, scores with statistics only": scores_with_statistics,
        "pynas, costs only": costs_only,
        "numpy and torch": numpy_and_torch,
        "all in torch, in pieces": all_torch,
    }
    results: dict[str, Any] = {}
    rows, targets = [], []
    for n in BATCHES:
        genomes = space.sample(n, seed=1)
        expected, flops = reference_score(predictor, encoding, genomes), tables(genomes)
        counted = space.costs(genomes, threads=1)
        others = {scores_with_statistics: reference_score(with_statistics, encoding, genomes, counted)}
        for name, method in methods.items():
            scores, found = method(genomes)
            wanted = others.get(method, expected)
            assert scores is None or np.abs(scores - wanted).max() < 1e-3, f"{name}: wrong scores"
            assert found is None or np.array_equal(found, flops), f"{name}: wrong FLOPs"
        runs = harness.measure(
            {name: lambda _, run=method, rows=genomes: run(rows) for name, method in methods.items()}, options.rounds
        )
        results[str(n)] = summaries = {name: run.summary(runs["pynas"]) for name, run in runs.items()}
        for name, summary in summaries.items():
            nanoseconds = f"{1e9 * summary['seconds']['median'] / n:.0f}"
            ratio = f"{summary['ratio']['median']:.2f}"
            rows.append((f"{n} genomes, {name}", *harness.milliseconds(summary), nanoseconds, ratio))
        measured = summaries["numpy and torch"]["ratio"]["median"]
        targets.append((f"{n} genomes: 7 times numpy and torch", f"{measured:.1f}", measured >= 7))
    columns = ("batch and method", *harness.TIMES, "ns a genome", "times pynas")
    harness.report("scoring", options, around, columns, rows, targets, {"results": results})


if __name__ == "__main__":
    main()
