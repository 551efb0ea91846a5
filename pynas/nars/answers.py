"""Answers for a budget that is named after the search: evolved, and the best few trained before one is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pynas.errors import PynasError
from pynas.listener import Listener, Silent
from pynas.nars.config import NARSConfig
from pynas.nars.evolve import EvolutionResult, evolve
from pynas.nars.spaces import fixed_model, open_space
from pynas.nars.winners import answer, inherited, training_of
from pynas.predict.predictor import Predictor
from pynas.randomness import derive_seed
from pynas.search.config import ANSWERS, with_executor
from pynas.search.opening import open_study
from pynas.search.results import read_results
from pynas.space.architecture import Architecture, Recipe
from pynas.space.budget import Budget
from pynas.space.space import Space
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRAINED = 3
"""How many candidates are trained before an answer is given."""


@dataclass(frozen=True)
class Answers:
    """For one budget: `answers` as `pynas.nars.winners.answer` has them, best first, trained ones before others.

    `evolution` is what the genetic algorithm found, for its history.
    """

    space: Space
    answers: list[dict[str, Any]]
    evolution: EvolutionResult

    def decode(self, answer: dict[str, Any]) -> tuple[Architecture, Recipe | None]:
        """The network and the recipe of one of them."""
        return self.space.decode(np.array(answer["genome"], np.uint8))


def evolve_study(
    path: str | Path,
    budget: Budget,
    *,
    mode: str | None = None,
    seed: int = 0,
    train: int = TRAINED,
    executor: str | None = None,
    listener: Listener | None = None,
) -> Answers:
    """Stage 3 for a new budget: evolve from the study's predictor and its best trained candidates, train the top few.

    The best `train` candidates that are not trained yet are trained as the search's were, up to its early-stop epoch,
    through the study's executor or one of the kind `executor`; their trials stay in the study. With `train` 0 nothing
    is trained, and the answers are candidates that never were (but where there are no others), in the order of what the
    predictor says of them. What failed in the search is neither trained again nor an answer.

    Raises PynasError where the study has no predictor yet, the budget cannot be met or somebody else is at the study.
    """
    directory, config = open_study(path)
    if not isinstance(config, NARSConfig):
        raise PynasError(f"{path}: a study of method {config.method} has no predictor to evolve from")
    if not directory.predictor.exists():
        raise PynasError(f"{path}: has no predictor yet; finish the search first: pynas search STUDY.yaml")
    space = open_space(directory, config)
    stop = read_results(directory.results).get("early_stop")
    if not stop:
        raise PynasError(f"{path}: its results are incomplete; finish the search first: pynas search STUDY.yaml")
    epoch = stop["epoch"]
    # Judged by what the search has trained, and not by answers: asked again, the same candidates are the best.
    trials = Study.open(directory, read_only=True).trials()
    searched, failed = _complete(trials, epoch), [trial for trial in trials if trial.state == "failed"]
    overrides: dict[str, Any] = {"mode": mode} if mode else {}
    found = evolve(
        space,
        Predictor.load(directory.predictor),
        budget=budget,
        seed=seed,
        initial=inherited(searched, epoch),
        settings=config.evolution,
        **overrides,
    )
    genomes, predicted = found.genomes, found.scores.astype(np.float64)
    if config.selection == "aimed":
        genomes, predicted = _judged(config, space, budget, searched, failed, epoch, genomes)
    hopeless = {_key(trial.genome) for trial in failed}
    if (hopeful := np.array([_key(genome) not in hopeless for genome in genomes])).any():
        genomes, predicted = genomes[hopeful], predicted[hopeful]
    trained = {_key(trial.genome): trial for trial in searched}
    if train:
        new = [genome.tolist() for genome in genomes if _key(genome) not in trained][:train]
        _train(directory, with_executor(config, executor), space, new, epoch, listener or Silent())
    trained |= {_key(trial.genome): trial for trial in _answered(directory, epoch)}
    if train:
        ours = np.array([trial.genome for trial in trained.values()], np.uint8)
        known = {_key(genome) for genome in genomes}
        fitting = ours[space.feasible(ours, budget)]
        others = [genome for genome in fitting if _key(genome) not in known]
        genomes = np.concatenate([genomes, np.array(others, np.uint8).reshape(len(others), genomes.shape[1])])
        predicted = np.concatenate([predicted, np.full(len(others), np.nan)])
    elif (untrained := np.array([_key(genome) not in trained for genome in genomes])).any():
        genomes, predicted = genomes[untrained], predicted[untrained]

    def rank(row: int) -> tuple[float, float]:
        trial = trained.get(_key(genomes[row])) if train else None
        return (-trial.curve[epoch - 1] if trial else 0.0, row)

    answers = []
    for row in sorted(range(len(genomes)), key=rank):
        trial = trained.get(_key(genomes[row]))
        said = None if np.isnan(predicted[row]) else float(predicted[row])
        told = training_of(trial, epoch) if trial else None
        answers.append(answer(space, genomes[row], budget, predicted=said, trained=told, model=config.model))
    return Answers(space, answers, found)


def _answered(directory: StudyDirectory, epoch: int) -> list[Trial]:
    """The complete trials of answers that were asked for, now or before."""
    try:
        return _complete(Study.open(directory, ANSWERS, read_only=True).trials(), epoch)
    except PynasError:  # the journal holds no such study: nothing was asked yet
        return []


def _judged(
    config: NARSConfig,
    space: Space,
    budget: Budget,
    searched: Sequence[Trial],
    failed: Sequence[Trial],
    epoch: int,
    evolved: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The best of what evolution found and of the pool within the budget, as the search's Gaussian process has it."""
    from pynas.nars.acquisition import Acquisition
    from pynas.nars.pool import make_pool

    pool = make_pool(space, config.pool.size, budget=Budget(**config.pool.budget), seed=config.seed).genomes
    acquisition = Acquisition(space, pool, {"": budget}, seed=config.seed)
    labels = np.array([*(trial.curve[epoch - 1] for trial in searched), *[np.nan] * len(failed)])
    model = acquisition.fit(np.array([trial.genome for trial in (*searched, *failed)], np.uint8), labels)
    picks = acquisition.pick(model, evolved, len(evolved), turn=0, taken=set(), greedy=True)
    return picks.genomes, picks.predicted


def _train(
    directory: StudyDirectory,
    config: NARSConfig,
    space: Space,
    genomes: list[list[int]],
    epoch: int,
    listener: Listener,
) -> None:
    """Train what is not trained yet of these candidates; what was begun before goes on."""
    from pynas.runtime.open import open_executor
    from pynas.search import trainings

    settings = config.executor
    if settings.kind == "mpi":
        raise PynasError("evolve: trains its answers with executor local or slurm; give --executor local, or --train 0")
    with directory:
        study = Study.open(directory, ANSWERS)
        recorded = {_key(trial.genome): trial for trial in study.trials()}
        new = [genome for genome in genomes if _key(genome) not in recorded]
        iteration = 1 + max((trial.iteration for trial in recorded.values()), default=0)
        costs = space.costs(np.array(new, np.uint8)) if new else {}
        trials = [
            Trial(
                iteration=iteration,
                index=index,
                genome=genome,
                epochs=epoch,
                seed=derive_seed(config.seed, "answer", iteration, index),
                costs={name: int(cost[index]) for name, cost in costs.items()},
            )
            for index, genome in enumerate(new)
        ]
        asked = [recorded[_key(genome)] for genome in genomes if _key(genome) in recorded]
        asked += trainings.record(study, space, trials)
        with open_executor(
            settings.kind,
            directory.tasks,
            workers=settings.workers,
            threads=settings.threads,
            retries=settings.retries,
            slurm=settings.slurm,
            ranks=None,
        ) as executor:
            trainings.train(
                asked,
                study=study,
                space=space,
                executor=executor,
                data=config.data,
                training=config.training,
                model=fixed_model(config),
                listener=listener,
                label="training answers",
                max_failed=1.0,
            )


def _complete(trials: Sequence[Trial], epoch: int) -> list[Trial]:
    """Those that trained at least up to the epoch at which the study compares candidates."""
    return [trial for trial in trials if trial.state == "complete" and len(trial.curve) >= epoch]


def _key(genome: Any) -> bytes:
    return np.asarray(genome, np.uint8).tobytes()
