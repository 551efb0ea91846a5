"""`selection: aimed`: a Gaussian process chooses candidates for each budget in turns; the best trained one answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pynas.nars.acquisition import Acquisition, Picks, keys
from pynas.nars.aimed import best_within, spread_caps
from pynas.nars.curves import expected
from pynas.nars.evolve import evolve
from pynas.nars.run import Run, complete, genomes_of, need
from pynas.nars.winners import answer, training_of
from pynas.predict.gaussian_process import Hyperparameters
from pynas.predict.models import ProcessModel
from pynas.randomness import derive_seed
from pynas.space.budget import Budget
from pynas.study.trials import Trial

if TYPE_CHECKING:
    from pynas.predict.distill import Distilled

_AGAIN = 1.125  # more labels than this many times those of the last distillation: it is made anew


class AimedSearch(Run):
    acquisition: Acquisition

    def search(self) -> dict[str, Any]:
        pool = self.make_pool().genomes
        config = self.config
        aims = self.aims(pool)
        self.acquisition = Acquisition(self.space, pool, aims, evolution=config.evolution, seed=config.seed)
        trained = self.one_by_one() if config.asynchronous else self.in_rounds()
        model = self.fit(self.known(trained))
        distilled = self.distill(model)
        distilled.predictor.save(self.directory.predictor)
        return self.answers(trained, model, distilled)

    def aims(self, pool: NDArray[np.uint8]) -> dict[str, Budget]:
        """What to aim at: the budgets, or caps spread over the pool's FLOPs where the study asks for some."""
        config = self.config
        if config.caps is None:
            return {name: Budget(**bounds) for name, bounds in config.budgets.items()}
        flops = self.space.costs(pool)["flops"]
        low, high = Budget(**config.pool.budget)["flops"]
        caps = spread_caps(
            float(flops.min()) if low is None else low, float(flops.max()) if high is None else high, config.caps
        )
        return {f"cap {i}": Budget(flops=(low, cap)) for i, cap in enumerate(caps, start=1)}

    # in batches -----------------------------------------------------------------------------------------------------

    def in_rounds(self) -> list[Trial]:
        config = self.config
        trained: list[Trial] = []
        for iteration in range(1, config.iterations + 1):
            chosen = self.recorded(iteration) or self.choose(iteration, trained)
            if not chosen:
                self.listener.say(f"iteration {iteration}: nothing is left that has not been trained")
                break
            trained += self.train(chosen, f"iteration {iteration} of {config.iterations}")
            if iteration == 1:
                self.set_early_stop(trained)
            need(trained, 1, iteration)
            self.check(iteration, trained)
        return trained

    def recorded(self, iteration: int) -> list[Trial]:
        """The candidates of an iteration that a driver before has chosen; none where it died while recording them."""
        found = [trial for trial in self.study.trials() if trial.iteration == iteration]
        return found if len(found) == self.config.candidates else []

    def choose(self, iteration: int, trained: Sequence[Trial]) -> Sequence[Trial]:
        config = self.config
        taken = keys([trial.genome for trial in trained])
        if iteration == 1:
            picks = self.acquisition.first(config.candidates, taken)
        else:
            self.listener.begin("choosing candidates", 3)
            model = self.fit(self.known(trained))
            self.listener.advance("choosing candidates", 1)
            proposals = self.propose(self.distill(model), trained)
            self.listener.advance("choosing candidates", 2)
            picks = self.acquisition.pick(
                model,
                proposals,
                config.candidates,
                turn=len(trained),
                taken=taken,
                greedy=iteration == config.iterations,
            )
            self.listener.end("choosing candidates")
        return self.record(picks.genomes, picks.predicted, iteration=iteration)

    # one by one -----------------------------------------------------------------------------------------------------

    def one_by_one(self) -> list[Trial]:
        """Whenever a worker is free it gets a candidate, chosen with what is known by then."""
        config = self.config
        total = config.candidates * config.iterations
        trials = list(self.study.trials())
        # Nothing can be known before the first ones have ended, however many workers there are.
        first = min(max(config.candidates, self.executor.slots), total)
        if len(trials) < first:
            trials += self.number(self.acquisition.first(first, set()), len(trials), skip=len(trials))
        chooser = _OneByOne(self, total)
        trained = self.train(trials, f"{total} candidates", more=chooser, total=total)
        if not chooser.begun:  # the first iteration was all there was, or ended last
            self.set_early_stop([trial for trial in trained if trial.iteration == 1])
        need(trained, 1, config.iterations)
        if len(trained) < total:
            self.listener.say(f"{len(trained)} candidates: nothing is left that has not been trained")
        self.check(config.iterations, trained)
        return trained

    def number(self, picks: Picks, begin: int, *, skip: int = 0) -> list[Trial]:
        """Record picks, but for the first `skip`, as the candidates from the number `begin` on."""
        recorded: list[Trial] = []
        chosen = zip(picks.genomes[skip:], picks.predicted[skip:], strict=True)
        for number, (genome, predicted) in enumerate(chosen, start=begin):
            iteration, index = divmod(number, self.config.candidates)
            recorded += self.record(genome[None], predicted[None], iteration=iteration + 1, begin=index)
        return recorded

    # the model ------------------------------------------------------------------------------------------------------

    def known(self, trials: Sequence[Trial]) -> _Known:
        """Labels of finished trials, a failed one's NaN, and of unfinished ones where their curves say enough."""
        curves = [trial.curve for trial in complete(trials)]
        known = _Known([], [], [], [])
        for trial in trials:
            guess = None if trial.finished else expected(curves, trial.curve, self.stop.epoch)
            if trial.finished or guess:
                known.labelled.append(trial)
                known.labels.append(guess.accuracy if guess else self.accuracy(trial))
                known.variances.append(guess.variance if guess else 0.0)
            else:
                known.pending.append(trial)
        return known

    def fit(self, known: _Known, *, begin: Hyperparameters | None = None) -> ProcessModel:
        genomes = genomes_of(known.labelled, self.space)
        return self.acquisition.fit(genomes, np.array(known.labels), variance=np.array(known.variances), begin=begin)

    def distill(self, model: ProcessModel) -> Distilled:
        return model.distill(self.space, genomes=self.acquisition.learnt, seed=self.config.seed)

    def propose(self, distilled: Distilled, trained: Sequence[Trial]) -> NDArray[np.uint8]:
        best = sorted(complete(trained), key=lambda trial: -self.accuracy(trial))
        return self.acquisition.propose(distilled.predictor, genomes_of(best, self.space), turn=len(trained))

    def check(self, iteration: int, trained: Sequence[Trial]) -> None:
        """Cross-validate the Gaussian process, and ridge regression beside it."""
        from pynas.predict.cross_validation import cross_validate, models_to_check

        labelled = complete(trained)
        genomes = genomes_of(labelled, self.space)
        accuracies = np.array([self.accuracy(trial) for trial in labelled])
        pool = self.acquisition.pool
        models = models_to_check(
            self.space, pool, genomes, accuracies, ["gaussian_process", "ridge"], seed=self.config.seed
        )
        check = cross_validate(models, accuracies, folds=self.config.predictor.folds, seed=self.config.seed)
        self.told(iteration, trained, check)

    # answers --------------------------------------------------------------------------------------------------------

    def answers(self, trained: Sequence[Trial], model: ProcessModel, distilled: Distilled) -> dict[str, Any]:
        """The best trained candidate within each budget; where none is, what evolution finds, and that is said."""
        space, config = self.space, self.config
        budgets = {name: Budget(**bounds) for name, bounds in config.budgets.items()}
        genomes = genomes_of(trained, space)
        within = np.array([space.feasible(genomes, budget) for budget in budgets.values()])
        best = best_within(np.array([self.accuracy(trial) for trial in trained]), within)
        means = model.mean(self.acquisition.domain.genomes(space, genomes))
        winners: dict[str, Any] = {}
        for (name, budget), row in zip(budgets.items(), best, strict=True):
            if row is not None:
                told = training_of(trained[row], self.stop.epoch)
                shared: dict[str, Any] = {"predicted": float(means[row]), "trained": told}
                winners[name] = answer(space, genomes[row], budget, model=config.model, **shared)
                self.listener.say(
                    f"{name} ({budget}): candidate {told['key']}, {100 * told['accuracy']:.1f}% "
                    f"after {told['epochs']} epochs"
                )
                continue
            seed = derive_seed(config.seed, "evolution", name)
            found = evolve(space, distilled.predictor, budget=budget, seed=seed, settings=config.evolution)
            predicted = float(model.mean(self.acquisition.domain.genomes(space, found.genomes[:1]))[0])
            winners[name] = answer(space, found.genomes[0], budget, predicted=predicted, model=config.model)
            self.listener.say(
                f"{name} ({budget}): no trained candidate is within it; {100 * predicted:.1f}% predicted, not trained"
            )
        return winners


class _Known(NamedTuple):
    """What is known of trials: those with a label, the labels and the variances of guessed ones, and the others."""

    labelled: list[Trial]
    labels: list[float]
    variances: list[float]
    pending: list[Trial]


class _OneByOne:
    """Chooses what free workers get next."""

    def __init__(self, search: AimedSearch, total: int) -> None:
        self.search, self.total = search, total
        self.begun = False  # whether the early stop is known
        self.proposals: NDArray[np.uint8] | None = None
        self.labels = 0  # of the last distillation
        self.hyperparameters: Hyperparameters | None = None

    def __call__(self, free: int) -> Sequence[Trial]:
        search = self.search
        trials = list(search.study.trials())
        wanted = min(free, self.total - len(trials))
        if wanted <= 0:
            return []
        first = [trial for trial in trials if trial.iteration == 1]
        if not self.begun and all(trial.finished for trial in first):
            self.begun = True
            search.set_early_stop(first)
        known = search.known(trials)
        if not np.isfinite(known.labels).any():
            picks = search.acquisition.first(len(trials) + wanted, set())
            return search.number(picks, len(trials), skip=len(trials))
        model = search.fit(known, begin=self.hyperparameters)
        self.hyperparameters = model.process.at
        if self.proposals is None or len(known.labels) > _AGAIN * self.labels:
            self.proposals, self.labels = search.propose(search.distill(model), trials), len(known.labels)
        last = self.total - self.total // search.config.iterations
        picks = search.acquisition.pick(
            model,
            self.proposals,
            wanted,
            turn=len(trials),
            taken=keys([trial.genome for trial in trials]),
            greedy=len(trials) >= last,
            pending=genomes_of(known.pending, search.space),
        )
        return search.number(picks, len(trials))
