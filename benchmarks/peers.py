"""The same search by others: each takes a Task and returns its best genome and the number of evaluations it spent.

All share the fitness (scores and FLOPs of a batch), the limit, the number of evaluations and uniform feasible genomes
to start from, as pynas has them. `python benchmarks/bench_evolve.py --tune` tries the settings they are given.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynas import Space


@dataclass(frozen=True)
class Task:
    space: Space
    fitness: Callable[[Any], tuple[Any, Any]]  # float32 tensor of genomes -> scores, FLOPs
    limit: int
    evaluations: int
    seed: int

    @property
    def choices(self) -> NDArray[np.float32]:
        return np.array([len(variable.values) for variable in self.space.variables], np.float32)

    def start(self, n: int, feasible: bool) -> NDArray[np.uint8]:
        budget = {"flops": self.limit} if feasible else None
        return self.space.sample(n, budget=budget, seed=self.seed, threads=1)


Answer = tuple[NDArray[np.uint8], int]


def penalised(scores: Any, flops: Any, limit: int) -> Any:
    """The penalty of evotorch.tools.penalty (a step and a slope), written out: its wrapper costs 3 ms a generation."""
    excess = (flops / limit - 1).float()
    return scores.where(excess <= 0, scores - 100 - 100 * excess)


def evotorch_search(
    task: Task,
    popsize: int = 200,
    children: int = 1000,
    tournament: int = 4,
    genes: float = 2.0,
    crossover: str = "uniform",
    feasible: bool = True,
) -> Answer:
    """evotorch's GeneticAlgorithm, elitist; the limit by a penalty, mutation draws `genes` genes anew."""
    import torch
    from evotorch import Problem, SolutionBatch
    from evotorch.algorithms import GeneticAlgorithm
    from evotorch.operators import CrossOver, TwoPointCrossOver

    logging.getLogger("evotorch.core").setLevel(logging.WARNING)
    choices = torch.from_numpy(task.choices)
    rate = genes / len(choices)

    class Search(Problem):
        spent = 0

        def _fill(self, values: torch.Tensor) -> None:
            values.copy_(torch.from_numpy(task.start(len(values), feasible)))

        def _evaluate_batch(self, batch: SolutionBatch) -> None:
            scores, flops = task.fitness(batch.values.as_subclass(torch.Tensor))  # without the read-only checks
            self.spent += len(scores)
            batch.set_evals(penalised(scores, flops, task.limit))

    class UniformCrossOver(CrossOver):
        def _do_cross_over(self, one: torch.Tensor, other: torch.Tensor) -> SolutionBatch:
            mask = torch.rand(one.shape, generator=self.problem.generator) < 0.5
            return self._make_children_batch(torch.cat([torch.where(mask, one, other), torch.where(mask, other, one)]))

    problem = Search("max", solution_length=len(choices), dtype=torch.float32, eval_dtype=torch.float32, seed=task.seed)

    def mutate(values: torch.Tensor) -> torch.Tensor:
        # One uniform number tells whether a gene mutates (below the rate) and, scaled up, to which choice.
        draw = torch.rand(values.shape, generator=problem.generator)
        return torch.where(draw < rate, (draw * (choices / rate)).floor_(), values)

    kind = UniformCrossOver if crossover == "uniform" else TwoPointCrossOver
    operators = [kind(problem, tournament_size=tournament, num_children=children), mutate]
    search = GeneticAlgorithm(problem, operators=operators, popsize=popsize, re_evaluate=False)
    search.step()  # the first also evaluates the population
    while problem.spent + children <= task.evaluations:
        search.step()
    best = search.population[int(search.population.argbest())]
    return best.values.numpy().astype(np.uint8), problem.spent


def evotorch_functional_search(
    task: Task, popsize: int = 200, children: int = 1000, tournament: int = 4, genes: float = 2.0, feasible: bool = True
) -> Answer:
    """The same with evotorch's functional operators."""
    import torch
    from evotorch.operators import functional as F

    choices = torch.from_numpy(task.choices)
    rate = genes / len(choices)
    torch.manual_seed(task.seed)

    def evaluate(values: torch.Tensor) -> torch.Tensor:
        scores, flops = task.fitness(values)
        return penalised(scores, flops, task.limit)

    with torch.no_grad():
        population = torch.from_numpy(task.start(popsize, feasible)).float()
        evals, spent = evaluate(population), popsize
        while spent + children <= task.evaluations:
            values = F.two_point_cross_over(
                population, evals, tournament_size=tournament, num_children=children, objective_sense="max"
            )
            draw = torch.rand(values.shape)
            values = torch.where(draw < rate, (draw * (choices / rate)).floor_(), values)
            combined = F.combine((population, evals), (values, evaluate(values)), objective_sense="max")
            population, evals = F.take_best(*combined, popsize, objective_sense="max")
            spent += children
    return population[int(evals.argmax())].numpy().astype(np.uint8), spent


def pymoo_search(
    task: Task,
    popsize: int = 100,
    children: int = 1000,
    genes: float = 2.0,
    crossover: str = "uniform",
    mutation: str = "reset",
    duplicates: bool = False,
    feasible: bool = True,
) -> Answer:
    """pymoo's GA on integers with a vectorised problem; the limit is its native inequality constraint."""
    import torch
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.optimize import minimize

    choices = task.choices.astype(np.int64)

    class Search(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=len(choices), n_obj=1, n_ieq_constr=1, xl=0, xu=choices - 1, vtype=int)

        def _evaluate(self, x: NDArray[Any], out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            scores, flops = task.fitness(torch.from_numpy(x.astype(np.float32)))
            out["F"] = -scores.numpy()[:, None]
            out["G"] = flops.numpy()[:, None] / task.limit - 1

    class Reset(Mutation):
        def _do(self, problem: Problem, X: NDArray[Any], *args: Any, random_state: Any, **kwargs: Any) -> NDArray[Any]:
            rate = genes / len(choices)
            draw = random_state.random(X.shape)
            return np.where(draw < rate, (draw * (choices / rate)).astype(X.dtype), X)

    cross = {"uniform": UniformCrossover, "two-point": TwoPointCrossover}
    integers = {"vtype": float, "repair": RoundingRepair()}
    algorithm = GA(
        pop_size=popsize,
        n_offsprings=children,
        sampling=task.start(popsize, feasible).astype(np.int64),
        crossover=SBX(prob=0.9, eta=3, **integers) if crossover == "sbx" else cross[crossover](prob=1.0),
        mutation=PM(prob=1.0, prob_var=genes / len(choices), eta=3, **integers) if mutation == "pm" else Reset(),
        eliminate_duplicates=duplicates,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises on its own optional extensions
        found = minimize(
            Search(), algorithm, ("n_eval", task.evaluations), seed=task.seed, copy_algorithm=False, verbose=False
        )
    return np.asarray(found.X).astype(np.uint8), int(found.algorithm.evaluator.n_eval)


def numpy_search(
    task: Task, popsize: int = 40, children: int = 960, genes: float = 2.0, mating: float = 0.5, feasible: bool = True
) -> Answer:
    """What one writes without a library: the best `popsize` have `children`, uniform crossover, mutation; numpy."""
    import torch

    random = np.random.Generator(np.random.SFC64(task.seed))
    choices = task.choices
    rate = np.float32(genes / len(choices))

    def evaluate(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        scores, flops = task.fitness(torch.from_numpy(rows))
        return np.where(flops.numpy() <= task.limit, scores.numpy(), np.float32(-np.inf))

    rows = task.start(popsize, feasible).astype(np.float32)
    scores, spent = evaluate(rows), popsize
    while spent + children <= task.evaluations:
        parents = rows[np.arange(children) % popsize]
        mates = rows[random.integers(popsize, size=children)]
        crossed = random.random((children, 1), np.float32) < mating
        draw = random.random(parents.shape, np.float32)
        born = np.where(crossed & (random.random(parents.shape, np.float32) < 0.5), mates, parents)
        born = np.where(draw < rate, np.floor(draw * (choices / rate)), born)
        rows, scores = np.concatenate([rows, born]), np.concatenate([scores, evaluate(born)])
        _, first = np.unique(scores, return_index=True)  # equal scores are clones, but for chance
        best = first[::-1][:popsize]
        if len(best) < popsize:
            best = np.argsort(-scores, kind="stable")[:popsize]
        rows, scores = rows[best], scores[best]
        spent += children
    return rows[0].astype(np.uint8), spent
