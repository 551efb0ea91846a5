"""NARS (Algorithm 1): pretrain the predictor, train it by constrained iterative optimisation, evolve winners.

The search is a function of the configuration and the recorded trials. Running it again on a study's directory replays
it: candidates and results come from the journal where it has them, and only what is missing is computed. That is all
there is to resuming.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynas.errors import PynasError, SearchStopped
from pynas.listener import Listener, Silent
from pynas.nars.config import NARSConfig
from pynas.nars.early_stop import EarlyStop, early_stop_epoch
from pynas.nars.evolve import evolve
from pynas.nars.iterate import select_candidates
from pynas.nars.pool import Pool, make_pool
from pynas.nars.spaces import fixed_model, new_space, open_space
from pynas.nars.winners import answer, inherited
from pynas.predict.predictor import Predictor
from pynas.randomness import derive_seed, generator
from pynas.runtime.executor import Executor
from pynas.runtime.open import alone, open_executor
from pynas.search import trainings
from pynas.search.opening import settle
from pynas.search.results import plain, write_results
from pynas.search.winners import train_winners, write_winner
from pynas.space.budget import Budget
from pynas.space.space import Space
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial

if TYPE_CHECKING:
    from mpi4py.futures import MPIPoolExecutor


def search(config: NARSConfig, path: str | Path, *, listener: Listener | None = None) -> dict[str, Any] | None:
    """Run or go on with the study at `path`; returns its results (the content of ``results.json``).

    With an executor of kind mpi every rank calls this. The first drives; the others train candidates until the search
    ends, touch nothing of the study else, and get None.

    Raises PynasError for what the user can mend and SearchStopped where most candidates fail. KeyboardInterrupt passes
    through with everything finished so far on disk.
    """
    listener = listener or Silent()
    if config.executor.kind != "mpi":
        alone(config.executor.kind)
        return _drive(config, path, listener, None)
    from pynas.runtime.mpi import pool

    images = [data.path for data in (config.data, config.final.data) if data is not None and data.name == "folder"]
    with pool(shared=[path], readable=[str(path) for path in images]) as ranks:
        return None if ranks is None else _drive(config, path, listener, ranks)


def _drive(config: NARSConfig, path: str | Path, listener: Listener, ranks: MPIPoolExecutor | None) -> dict[str, Any]:
    _check(config, new_space(config))
    with StudyDirectory.create(path) as directory:
        begun = directory.journal.exists() and bool(Study.open(directory).trials())
        settle(directory, config, begun=begun)
        space = open_space(directory, config)
        settings = config.executor
        with open_executor(
            settings.kind,
            directory.tasks,
            workers=settings.workers,
            threads=settings.threads,
            retries=settings.retries,
            slurm=settings.slurm,
            ranks=ranks,
        ) as executor:
            return _Search(config, directory, space, executor, listener).run()


def _check(config: NARSConfig, space: Space) -> None:
    """What would fail the search after hours fails it at once: budgets that nothing meets, data that do not fit."""
    from pynas.nets.load import ModelSpec
    from pynas.train.device import choose_device
    from pynas.train.models import check_data

    choose_device(config.training.device)
    architecture, _ = space.decode(np.zeros(len(space.variables), np.uint8))
    spec = fixed_model(config) or ModelSpec.of(architecture, name="architecture")
    for data in (config.data, config.final_data):
        check_data(spec, data, config.training)
    for name, bounds in {"pool.budget": config.pool.budget, **config.budgets}.items():
        try:
            space.sample(1, budget=bounds)
        except PynasError as error:
            raise PynasError(f"budget {name}: {error}") from None


class _Search:
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
        self.results: dict[str, Any] = {"space": space.name, "fingerprint": space.fingerprint}

    def run(self) -> dict[str, Any]:
        pool, predictor = self.stage1()
        predictor, stop = self.stage2(pool, predictor)
        predictor.save(self.directory.predictor)
        self.stage3(predictor, stop)
        return plain(self.results)

    def keep(self, **derived: Any) -> None:
        self.results.update(derived)
        write_results(self.directory.results, self.results)

    # Stage 1: pretrain the predictor --------------------------------------------------------------------------------

    def stage1(self) -> tuple[Pool, Predictor]:
        from pynas.predict.fit import pretrain

        config, listener = self.config, self.listener
        listener.begin("pool", config.pool.size)
        pool = make_pool(self.space, config.pool.size, budget=Budget(**config.pool.budget), seed=config.seed)
        listener.advance("pool", len(pool.genomes), f"{100 * pool.acceptance:.0f}% within {pool.budget}")
        listener.end("pool")
        summary = {"size": len(pool.genomes), "drawn": pool.drawn, "acceptance": pool.acceptance}
        self.keep(pool=summary | {"bounds": str(pool.budget)})

        listener.begin("pretraining", config.predictor.pretrain_epochs)
        predictor, fit = pretrain(
            self.space,
            pool.genomes,
            config.predictor,
            seed=config.seed,
            progress=lambda epoch, _: listener.advance("pretraining", epoch),
        )
        listener.end("pretraining")
        if self.space.architecture_features:
            shown = ", ".join(f"{name} R² {value:.3f}" for name, value in fit.r2.items())
            listener.say(f"predictor pretrained on {fit.samples} genomes; on {fit.held_out} others: {shown}")
            self.keep(pretrain=fit)
        return pool, predictor

    # Stage 2: train the predictor (constrained iterative optimisation) ----------------------------------------------

    def stage2(self, pool: Pool, pretrained: Predictor) -> tuple[Predictor, EarlyStop]:
        from pynas.predict.fit import cross_validate, fit_accuracy

        config, space = self.config, self.space
        trained: list[Trial] = []
        predictor, stop = pretrained, EarlyStop(config.training.epochs, config.early_stop, ())
        for iteration in range(1, config.iterations + 1):
            chosen = self.choose(iteration, pool, predictor, trained, stop.epoch)
            trained += self.train(chosen, iteration)
            if iteration == 1:
                stop = early_stop_epoch(
                    [t.curve for t in _complete(trained)], config.early_stop, config.training.epochs
                )
                self.keep(early_stop=stop)
                self.listener.say(_describe(stop, config.training.epochs))
            labelled = _complete(trained)
            if len(labelled) < 2:
                raise SearchStopped(f"iteration {iteration}: {len(labelled)} candidates trained; a predictor needs 2")
            genomes = np.array([trial.genome for trial in labelled], np.uint8)
            # All candidates are compared at the early-stop epoch, those that trained on included.
            accuracies = np.array([trial.curve[stop.epoch - 1] for trial in labelled])
            self.listener.begin("fitting the predictor", 2)
            predictor = fit_accuracy(pretrained, space, genomes, accuracies, config.predictor, seed=config.seed)
            self.listener.advance("fitting the predictor", 1)
            check = cross_validate(pretrained, space, genomes, accuracies, config.predictor, seed=config.seed)
            self.listener.end("fitting the predictor")
            self.listener.say(
                f"iteration {iteration}: {len(labelled)} labels; cross-validated Kendall tau: "
                f"predictor {check.mlp:.2f}, ridge {check.ridge:.2f}"
            )
            done = self.results.get("iterations", [])
            summary = {"iteration": iteration, "trained": len(labelled), "failed": len(trained) - len(labelled)}
            self.keep(iterations=[*done, summary | {"cross_validation": check}])
        return predictor, stop

    def choose(
        self, iteration: int, pool: Pool, predictor: Predictor, trained: Sequence[Trial], epochs: int
    ) -> tuple[Trial, ...]:
        """Choose and record an iteration's candidates; the first iteration's are drawn at random (Fig. 6)."""
        config, space = self.config, self.space
        costs = space.costs(pool.genomes)
        if iteration == 1:
            scores = generator(config.seed, "first iteration").random(len(pool.genomes)).astype(np.float32)
        else:
            scores = predictor.score(space, pool.genomes)
        low, high = pool.budget["flops"]
        indices = select_candidates(
            pool.genomes,
            costs["flops"],
            scores,
            config.candidates,
            flop_range=(
                float(costs["flops"].min()) if low is None else low,
                float(costs["flops"].max()) if high is None else high,
            ),
            taken={np.array(trial.genome, np.uint8).tobytes() for trial in trained},
        )
        candidates = [
            Trial(
                iteration=iteration,
                index=index,
                genome=pool.genomes[i].tolist(),
                epochs=epochs,
                seed=derive_seed(config.seed, "candidate", iteration, index),
                costs={name: int(cost[i]) for name, cost in costs.items()},
                predicted=None if iteration == 1 else float(scores[i]),
            )
            for index, i in enumerate(indices)
        ]
        if not candidates:
            raise SearchStopped(f"iteration {iteration}: every genome of the pool has been trained already")
        return trainings.record(self.study, space, candidates)

    def train(self, trials: Sequence[Trial], iteration: int) -> list[Trial]:
        return trainings.train(
            trials,
            study=self.study,
            space=self.space,
            executor=self.executor,
            data=self.config.data,
            training=self.config.training,
            model=self.model,
            listener=self.listener,
            label=f"iteration {iteration} of {self.config.iterations}",
            max_failed=self.config.max_failed,
        )

    # Stage 3: use the predictor -------------------------------------------------------------------------------------

    def stage3(self, predictor: Predictor, stop: EarlyStop) -> None:
        config, space = self.config, self.space
        trials = self.study.trials()
        first = inherited(_complete(trials), stop.epoch)
        evolution: dict[str, Any] = {}
        winners: dict[str, Any] = {}
        self.listener.begin("evolution", len(config.budgets))
        for done, (name, bounds) in enumerate(config.budgets.items(), start=1):
            budget = Budget(**bounds)
            start = time.perf_counter()
            try:
                result = evolve(
                    space,
                    predictor,
                    budget=budget,
                    seed=derive_seed(config.seed, "evolution", name),
                    initial=first,
                    settings=config.evolution,
                )
            except PynasError as error:
                raise PynasError(f"budget {name}: {error}") from None
            evolution[name] = {"budget": budget.to_dict(), "history": result.history}
            evolution[name] |= {"evaluations": result.evaluations}
            winners[name] = answer(space, result, budget, config.model)
            self.listener.advance("evolution", done, name)
            self.listener.say(
                f"evolution, {name} ({budget}): {100 * float(result.scores[0]):.1f}% predicted, "
                f"{result.evaluations} children scored in {1e3 * (time.perf_counter() - start):.0f} ms"
            )
        self.listener.end("evolution")
        self.keep(evolution=evolution, winners=winners)
        if config.final.epochs:
            self.final(winners, trials, stop)
        for name, winner in winners.items():
            write_winner(self.directory.winners / f"{name}.yaml", space, winner, name)
        self.keep(winners=winners)

    def final(self, winners: dict[str, Any], trials: Sequence[Trial], stop: EarlyStop) -> None:
        """Train each winner, and beside it the best random candidate of the first iteration within its budget."""
        config = self.config
        runs: dict[str, dict[str, Any]] = {}
        for name, winner in winners.items():
            runs[name] = {"final": (winner["genome"], winner["costs"])}
            if config.final.baseline and (best := self.best_random(trials, winner["budget"], stop)):
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

    def best_random(self, trials: Sequence[Trial], bounds: dict[str, Any], stop: EarlyStop) -> Trial | None:
        budget = Budget(**bounds)
        random = [trial for trial in _complete(trials) if trial.iteration == 1]
        if not random:
            return None
        fits = self.space.feasible(np.array([trial.genome for trial in random], np.uint8), budget)
        within = [trial for trial, fit in zip(random, fits, strict=True) if fit]
        return max(within, key=lambda trial: trial.curve[stop.epoch - 1], default=None)


def _complete(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete"]


def _describe(stop: EarlyStop, epochs: int) -> str:
    if not stop.correlation:
        return "too few curves for early stopping: every candidate trains to the end"
    if stop.epoch == epochs:
        return f"no earlier epoch reaches rank correlation {stop.threshold}: every candidate trains all {epochs} epochs"
    reached = stop.correlation[stop.epoch - 1]
    return f"early stop at epoch {stop.epoch} of {epochs}: rank correlation {reached:.3f} >= {stop.threshold}"
