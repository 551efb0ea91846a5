"""`selection: paper`, Algorithm 1 of FBNetV3: pretrain the predictor, train it by constrained iterative optimisation,
evolve the winners."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pynas.errors import PynasError, SearchStopped
from pynas.nars.evolve import evolve
from pynas.nars.iterate import select_candidates
from pynas.nars.pool import Pool
from pynas.nars.run import Run, complete, genomes_of, need
from pynas.nars.winners import answer, inherited
from pynas.predict.predictor import Predictor
from pynas.randomness import derive_seed, generator
from pynas.space.budget import Budget
from pynas.study.trials import Trial


class PaperSearch(Run):
    def search(self) -> dict[str, Any]:
        pool, pretrained = self.stage1()
        predictor = self.stage2(pool, pretrained)
        predictor.save(self.directory.predictor)
        return self.stage3(predictor)

    # Stage 1: pretrain the predictor --------------------------------------------------------------------------------

    def stage1(self) -> tuple[Pool, Predictor]:
        from pynas.predict.fit import pretrain

        config, listener = self.config, self.listener
        pool = self.make_pool()
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

    def stage2(self, pool: Pool, pretrained: Predictor) -> Predictor:
        from pynas.predict.cross_validation import cross_validate, models_to_check
        from pynas.predict.fit import fit_accuracy

        config, space = self.config, self.space
        trained: list[Trial] = []
        predictor = pretrained
        for iteration in range(1, config.iterations + 1):
            chosen = self.choose(iteration, pool, predictor, trained)
            trained += self.train(chosen, f"iteration {iteration} of {config.iterations}")
            if iteration == 1:
                self.set_early_stop(trained)
            need(trained, 2, iteration)
            labelled = complete(trained)
            genomes = genomes_of(labelled, space)
            accuracies = np.array([self.accuracy(trial) for trial in labelled])
            self.listener.begin("fitting the predictor", 2)
            predictor = fit_accuracy(pretrained, space, genomes, accuracies, config.predictor, seed=config.seed)
            self.listener.advance("fitting the predictor", 1)
            models = models_to_check(space, pool.genomes, genomes, accuracies, ["ridge"], seed=config.seed)
            models = {
                "mlp": lambda kept, held_out, genomes=genomes, accuracies=accuracies: fit_accuracy(
                    pretrained, space, genomes[kept], accuracies[kept], config.predictor, seed=config.seed
                ).score(space, genomes[held_out])
            } | models
            check = cross_validate(models, accuracies, folds=config.predictor.folds, seed=config.seed)
            self.listener.end("fitting the predictor")
            self.told(iteration, trained, check)
        return predictor

    def choose(self, iteration: int, pool: Pool, predictor: Predictor, trained: Sequence[Trial]) -> tuple[Trial, ...]:
        """Choose and record an iteration's candidates; the first iteration's are drawn at random (Fig. 6)."""
        config, space = self.config, self.space
        flops = space.costs(pool.genomes)["flops"]
        if iteration == 1:
            scores = generator(config.seed, "first iteration").random(len(pool.genomes)).astype(np.float32)
        else:
            scores = predictor.score(space, pool.genomes)
        low, high = pool.budget["flops"]
        indices = select_candidates(
            pool.genomes,
            flops,
            scores,
            config.candidates,
            flop_range=(float(flops.min()) if low is None else low, float(flops.max()) if high is None else high),
            taken={np.array(trial.genome, np.uint8).tobytes() for trial in trained},
        )
        if not len(indices):
            raise SearchStopped(f"iteration {iteration}: every genome of the pool has been trained already")
        predicted = np.full(len(indices), np.nan) if iteration == 1 else scores[indices]
        return self.record(pool.genomes[indices], predicted, iteration=iteration)

    # Stage 3: use the predictor -------------------------------------------------------------------------------------

    def stage3(self, predictor: Predictor) -> dict[str, Any]:
        config, space = self.config, self.space
        first = inherited(complete(self.study.trials()), self.stop.epoch)
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
            winners[name] = answer(
                space, result.genomes[0], budget, predicted=float(result.scores[0]), model=config.model
            )
            self.listener.advance("evolution", done, name)
            self.listener.say(
                f"evolution, {name} ({budget}): {100 * float(result.scores[0]):.1f}% predicted, "
                f"{result.evaluations} children scored in {1e3 * (time.perf_counter() - start):.0f} ms"
            )
        self.listener.end("evolution")
        self.keep(evolution=evolution)
        return winners
