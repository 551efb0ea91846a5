"""Scoring and counting without the compiled core, as a competent user writes them: what the peers run and what every
answer is checked against.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynas import Predictor, Space
from pynas.randomness import generator
from pynas.space.table import Variable

Genomes = NDArray[np.uint8]


def synthetic_predictor(
    space: Space, number: int, embedding: int = 24, hidden: int = 32, inputs: tuple[str, ...] = ()
) -> Predictor:
    """A predictor with random weights (He), the same for the same number; its statistics are standardised."""
    random = generator(number, "benchmark predictor")

    def layer(outputs: int, inputs: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        weight = random.standard_normal((outputs, inputs)) * np.sqrt(2 / inputs)
        return weight.astype(np.float32), (0.1 * random.standard_normal(outputs)).astype(np.float32)

    layers = {"embedding": layer(embedding, space.architecture_features), "proxy": layer(2, embedding)}
    layers |= {"hidden": layer(hidden, embedding + space.recipe_features), "output": layer(1, hidden)}
    weights = {
        f"{name}.{part}": array for name, pair in layers.items() for part, array in zip(("weight", "bias"), pair)
    }
    if inputs:
        costs = space.costs(space.sample(1000, seed=1), threads=1)
        logarithms = np.log(np.stack([costs[name] for name in inputs], 1))
        own = random.standard_normal((embedding, len(inputs))) * np.sqrt(2 / len(inputs)) / logarithms.std(0)
        weights["embedding.weight"] = np.hstack([weights["embedding.weight"], own]).astype(np.float32)
        weights["embedding.bias"] -= (own @ logarithms.mean(0)).astype(np.float32)
    return Predictor(space.fingerprint, weights, np.array([75.0, 2.0]), np.array([[0.0, 1.0], [0.0, 1.0]]), inputs)


class Encoding:
    """The predictor's inputs: for each feature its variable, and either the choice it stands for or a scale."""

    def __init__(self, space: Space) -> None:
        rows = [
            (i, choice, 0.0) if v.kind == "list" else (i, -1, 1 / (len(v.values) - 1))
            for i, v in enumerate(space.variables)
            for choice in range(v.features)
        ]
        self.variable = np.array([row[0] for row in rows])
        self.choice = np.array([row[1] for row in rows], np.float32)
        self.scale = np.array([row[2] for row in rows], np.float32)
        self.one_hot = self.choice >= 0
        self.architecture = space.architecture_features

    def __call__(self, genomes: Genomes) -> NDArray[np.float32]:
        genes = genomes[:, self.variable]
        features = genes * self.scale
        features[:, self.one_hot] = genes[:, self.one_hot] == self.choice[self.one_hot]
        return features


class FlopTables:
    """FLOPs as a sum of look-ups, one for each row of the table, whose cost depends on few variables: the row's own,
    the width of the row before it and the resolution.

    With other variables at choice 0, a row's table is the cost less what the tables before it say: the differences add
    up to the exact cost for any sum of such terms.
    """

    def __init__(self, space: Space) -> None:
        width = len(space.variables)
        index = {variable: i for i, variable in enumerate(space.variables)}
        tables: list[NDArray[np.int64]] = []
        strides: list[NDArray[np.int64]] = []
        before: Any = None
        for row in space.table.rows:
            fields = [*(row.k or ()), *(row.e or ()), row.c, row.n, row.s, row.se, before, space.table.resolution]
            used = sorted({index[field] for field in fields if isinstance(field, Variable)})
            shape = [len(space.variables[i].values) for i in used]
            genomes = np.zeros((int(np.prod(shape)), width), np.uint8)
            genomes[:, used] = np.stack(np.unravel_index(np.arange(len(genomes)), shape), 1)
            left = space.costs(genomes, threads=1)["flops"]
            for stride, table in zip(strides, tables):
                left = left - table[genomes @ stride]
            stride = np.zeros(width, np.int64)
            stride[used] = np.cumprod([1, *shape[:0:-1]])[::-1]
            strides.append(stride)
            tables.append(left)
            before = row.c
        useful = [i for i, table in enumerate(tables) if table.any()]
        self.strides = np.stack([strides[i] for i in useful], 1).astype(np.float32)  # exact: indices are below 2**24
        self.offsets = np.cumsum([0, *(len(tables[i]) for i in useful[:-1])]).astype(np.float32)
        self.entries = np.concatenate([tables[i] for i in useful])

    def __call__(self, genomes: Genomes) -> NDArray[np.int64]:
        places = genomes.astype(np.float32) @ self.strides + self.offsets
        return self.entries.take(places.astype(np.intp)).sum(1)


def reference_score(
    predictor: Predictor, encoding: Encoding, genomes: Genomes, costs: Mapping[str, Any] | None = None
) -> NDArray[np.float64]:
    """The predictor in plain numpy and float64. `costs`: of every genome, where statistics are among the inputs."""
    w = predictor.weights
    features = encoding(genomes).astype(np.float64)
    architecture, recipe = np.split(features, [encoding.architecture], axis=1)
    statistics = [np.log(np.atleast_1d((costs or {})[name])) for name in predictor.inputs]
    architecture = np.column_stack([architecture, *statistics])
    embedding = np.maximum(architecture @ w["embedding.weight"].T + w["embedding.bias"], 0)
    hidden = np.maximum(np.hstack([embedding, recipe]) @ w["hidden.weight"].T + w["hidden.bias"], 0)
    mean, scale = predictor.accuracy_scale
    return (hidden @ w["output.weight"].T + w["output.bias"])[:, 0] * scale + mean


def reference_flops(space: Space, genome: Genomes) -> int:
    """One network counted block by block, without tables."""
    return space.decode(genome)[0].cost()["flops"]


class TorchFitness:
    """Scores and FLOPs of float32 tensors of genomes: torch's MLP on the same inputs, look-ups in torch.

    Tuned: min-max scales are folded into the weights, so that only the one-hot columns are computed (a third less time
    than building the features), and tables are indexed with `index_select` and int32 (half the time of `[]`).
    """

    def __init__(self, predictor: Predictor, encoding: Encoding, tables: FlopTables) -> None:
        import torch

        self.torch = torch
        w = {name: np.array(array) for name, array in predictor.weights.items()}
        mean, scale = map(float, predictor.accuracy_scale)
        recipe = np.arange(len(encoding.variable)) >= encoding.architecture
        self.first_recipe = int(encoding.variable[recipe].min())
        width = int(encoding.variable.max()) + 1
        split = len(w["embedding.bias"])

        def folded(weight: NDArray[np.float32], chosen: NDArray[np.bool_], begin: int, end: int) -> NDArray[np.float32]:
            """Weights of features as weights of the genes begin to end and of the one-hot columns after them."""
            genes = np.zeros((len(weight), end - begin), np.float32)
            ranges = ~encoding.one_hot[chosen]
            genes[:, encoding.variable[chosen][ranges] - begin] = weight[:, ranges] * encoding.scale[chosen][ranges]
            return np.hstack([genes, weight[:, ~ranges]])

        hidden = w["hidden.weight"]
        matrices = {
            "embedding": folded(w["embedding.weight"], ~recipe, 0, self.first_recipe),
            "hidden": np.hstack([hidden[:, :split], folded(hidden[:, split:], recipe, self.first_recipe, width)]),
            "output": w["output.weight"] * scale,
        }
        biases = {
            "embedding": w["embedding.bias"],
            "hidden": w["hidden.bias"],
            "output": w["output.bias"] * scale + mean,
        }
        self.weight = {name: torch.from_numpy(np.ascontiguousarray(m.T, np.float32)) for name, m in matrices.items()}
        self.bias = {name: torch.from_numpy(bias.astype(np.float32)) for name, bias in biases.items()}
        self.hot_variable = torch.from_numpy(encoding.variable[encoding.one_hot])
        self.hot_choice = torch.from_numpy(encoding.choice[encoding.one_hot])
        self.hot_architecture = int((encoding.one_hot & ~recipe).sum())
        self.strides, self.offsets, self.entries = map(
            torch.from_numpy, (tables.strides, tables.offsets, tables.entries)
        )

    def score(self, genomes: Any) -> Any:
        torch, weight, bias = self.torch, self.weight, self.bias
        hot = (genomes.index_select(1, self.hot_variable) == self.hot_choice).float()
        architecture = torch.cat([genomes[:, : self.first_recipe], hot[:, : self.hot_architecture]], 1)
        embedding = torch.addmm(bias["embedding"], architecture, weight["embedding"]).relu_()
        inputs = torch.cat([embedding, genomes[:, self.first_recipe :], hot[:, self.hot_architecture :]], 1)
        hidden = torch.addmm(bias["hidden"], inputs, weight["hidden"]).relu_()
        return torch.addmm(bias["output"], hidden, weight["output"])[:, 0]

    def flops(self, genomes: Any) -> Any:
        places = self.torch.addmm(self.offsets, genomes, self.strides).int()
        return self.entries.index_select(0, places.view(-1)).view(places.shape).sum(1)

    def __call__(self, genomes: Any) -> tuple[Any, Any]:
        with self.torch.inference_mode():
            return self.score(genomes), self.flops(genomes)


class CoreFitness:
    """The same by pynas' compiled core: with it, a peer's time is that of its search."""

    def __init__(self, space: Space, predictor: Predictor) -> None:
        self.core, self.scorer = space.core, predictor.for_space(space)

    def __call__(self, genomes: Any) -> tuple[Any, Any]:
        import torch

        rows = genomes.to(torch.uint8).numpy()
        return torch.from_numpy(self.scorer.score(rows, 1, "auto")), torch.from_numpy(self.core.costs(rows, 1))[:, 0]
