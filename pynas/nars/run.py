"""What both ways of choosing candidates share: a study at work, its trainings, its early stop and its finals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynas.errors import SearchStopped
from pynas.listener import Listener
from pynas.nars.config import NARSConfig
from pynas.nars.early_stop import EarlyStop, early_stop_epoch
from pynas.nars.pool import Pool, make_pool
from pynas.nars.spaces import fixed_model
from pynas.randomness import derive_seed
from pynas.runtime.executor import Executor
from pynas.search import trainings
from pynas.search.results import plain, read_results, write_results
from pynas.search.winners import train_winners, write_winner
from pynas.space.budget import Budget
from pynas.space.space import Space
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial


class Run(ABC):
    """A search at work in a study's directory, which it holds."""

    def __init__(
        self, config: NARSConfig, directory: StudyDirectory, space: Space, executor: Executor, listener: Listener
    ) -> None:
        self.config = config
        self.directory = directory
        self.space = space
        self.executor = executor
        self.listener = listener
        self.study = Study.open(directory)
        self.model = fixed_model(config)
        self.stop = EarlyStop(config.training.epochs, config.early_stop, ())
        # What a run before has derived stays until it is derived again: the study is the same, and so is what follows.
        self.results: dict[str, Any] = read_results(directory.results) if self.study.trials() else {}
        self.results |= {"space": space.name, "fingerprint": space.fingerprint, "selection": config.selection}
        self.iterations: list[dict[str, Any]] = []

    @abstractmethod
    def search(self) -> dict[str, Any]:
        """Choose and train candidates; the winners by budget, see `pynas.nars.winners.answer`."""

    def run(self) -> dict[str, Any]:
        winners = self.search()
        self.keep(winners=winners)
        if self.config.final.epochs:
            self.final(winners)
        for name, winner in winners.items():
            write_winner(self.directory.winners / f"{name}.yaml", self.space, winner, name)
        self.keep(winners=winners)
        return plain(self.results)

    def keep(self, **derived: Any) -> None:
        self.results.update(derived)
        write_results(self.directory.results, self.results)

    def make_pool(self) -> Pool:
        config, listener = self.config, self.listener
        listener.begin("pool", config.pool.size)
        pool = make_pool(self.space, config.pool.size, budget=Budget(**config.pool.budget), seed=config.seed)
        listener.advance("pool", len(pool.genomes), f"{100 * pool.acceptance:.0f}% within {pool.budget}")
        listener.end("pool")
        summary = {"size": len(pool.genomes), "drawn": pool.drawn, "acceptance": pool.acceptance}
        self.keep(pool=summary | {"bounds": str(pool.budget)})
        return pool

    # candidates -----------------------------------------------------------------------------------------------------

    def record(
        self, genomes: NDArray[np.uint8], predicted: NDArray[np.floating], *, iteration: int, begin: int = 0
    ) -> tuple[Trial, ...]:
        """Record candidates as those of an iteration from the index `begin` on; `predicted` is NaN of random ones."""
        costs = self.space.costs(genomes)
        candidates = [
            Trial(
                iteration=iteration,
                index=begin + i,
                genome=genome.tolist(),
                epochs=self.stop.epoch,
                seed=derive_seed(self.config.seed, "candidate", iteration, begin + i),
                costs={name: int(cost[i]) for name, cost in costs.items()},
                predicted=None if np.isnan(predicted[i]) else float(predicted[i]),
            )
            for i, genome in enumerate(genomes)
        ]
        return trainings.record(self.study, self.space, candidates)

    def train(self, trials: Sequence[Trial], label: str, **more: Any) -> list[Trial]:
        return trainings.train(
            trials,
            study=self.study,
            space=self.space,
            executor=self.executor,
            data=self.config.data,
            training=self.config.training,
            model=self.model,
            listener=self.listener,
            label=label,
            max_failed=self.config.max_failed,
            **more,
        )

    def set_early_stop(self, trials: Sequence[Trial]) -> None:
        """From the curves of the first iteration, all of whose trainings are over."""
        curves = [trial.curve for trial in complete(trials)]
        self.stop = early_stop_epoch(curves, self.config.early_stop, self.config.training.epochs)
        self.keep(early_stop=self.stop)
        self.listener.say(_describe(self.stop, self.config.training.epochs))

    def accuracy(self, trial: Trial) -> float:
        """At the early-stop epoch, where all candidates are compared, those that trained on included; NaN if failed."""
        return trial.curve[self.stop.epoch - 1] if trial.state == "complete" else float("nan")

    def told(self, iteration: int, trained: Sequence[Trial], check: dict[str, Any]) -> None:
        """Say and keep what an iteration has come to: its labels, and how well models rank candidates (`check`)."""
        labels = check["labels"]
        taus = ", ".join(f"{name.replace('_', ' ')} {check[name]:.2f}" for name in check["models"])
        self.listener.say(f"iteration {iteration}: {labels} labels; cross-validated Kendall tau: {taus}")
        summary = {"iteration": iteration, "trained": labels, "failed": len(trained) - labels}
        self.iterations.append(summary | {"cross_validation": check})
        if len(self.iterations) >= len(self.results.get("iterations", [])):
            self.keep(iterations=self.iterations)

    # winners --------------------------------------------------------------------------------------------------------

    def final(self, winners: dict[str, Any]) -> None:
        """Train each winner, and beside it the best random candidate of the first iteration within its budget."""
        config = self.config
        trials = self.study.trials()
        runs: dict[str, dict[str, Any]] = {}
        for name, winner in winners.items():
            runs[name] = {"final": (winner["genome"], winner["costs"])}
            if config.final.baseline and (best := self.best_random(trials, winner["budget"])):
                runs[name]["baseline"] = (best.genome, best.costs)
                winner["baseline_key"] = best.key
        train_winners(
            winners,
            runs,
            config=config,
            training=config.training,
            directory=self.directory,
            space=self.space,
            executor=self.executor,
            model=self.model,
            listener=self.listener,
        )

    def best_random(self, trials: Sequence[Trial], bounds: dict[str, Any]) -> Trial | None:
        random = [trial for trial in complete(trials) if trial.iteration == 1]
        if not random:
            return None
        fits = self.space.feasible(np.array([trial.genome for trial in random], np.uint8), Budget(**bounds))
        within = [trial for trial, fit in zip(random, fits, strict=True) if fit]
        return max(within, key=self.accuracy, default=None)


def complete(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete"]


def genomes_of(trials: Sequence[Trial], space: Space) -> NDArray[np.uint8]:
    """uint8 ``(n, variables)``, also of none."""
    return np.array([trial.genome for trial in trials], np.uint8).reshape(len(trials), len(space.variables))


def need(trials: Sequence[Trial], least: int, iteration: int) -> None:
    """Raises SearchStopped where fewer than `least` trials are complete."""
    if len(complete(trials)) < least:
        raise SearchStopped(
            f"iteration {iteration}: {len(complete(trials))} candidates trained; a predictor needs {least}"
        )


def _describe(stop: EarlyStop, epochs: int) -> str:
    if not stop.correlation:
        return "too few curves for early stopping: every candidate trains to the end"
    if stop.epoch == epochs:
        return f"no earlier epoch reaches rank correlation {stop.threshold}: every candidate trains all {epochs} epochs"
    reached = stop.correlation[stop.epoch - 1]
    return f"early stop at epoch {stop.epoch} of {epochs}: rank correlation {reached:.3f} >= {stop.threshold}"
