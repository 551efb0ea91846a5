"""Trains recorded trials through an executor and writes what comes of it into the study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pynas.data.config import DataConfig
from pynas.errors import SearchStopped
from pynas.listener import Listener
from pynas.nets.load import ModelSpec
from pynas.runtime.executor import Done, Executor, Failed, Progress, Started
from pynas.space.architecture import Recipe
from pynas.space.space import Space
from pynas.space.table import Variable
from pynas.study.study import Study
from pynas.study.trials import Trial
from pynas.train.config import TrainingConfig

TRAIN = "pynas.train.candidate:train_candidate"


def record(study: Study, space: Space, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Record trials with their variables as Optuna parameters; keys recorded already keep what was recorded."""
    params = [space.values(np.array(trial.genome, np.uint8)) for trial in trials]
    return study.record(trials, params, {v.name: _distribution(v) for v in space.variables})


def _distribution(variable: Variable) -> dict[str, Any]:
    values = variable.values
    if variable.kind == "list":
        return {"choices": list(values)}
    if all(isinstance(value, int) for value in values):
        return {"low": values[0], "high": values[-1], "step": values[1] - values[0]}
    # Optuna checks a float against its step with little tolerance; the choices say the same without rounding.
    return {"choices": list(values)}


def train(
    trials: Sequence[Trial],
    *,
    study: Study,
    space: Space,
    executor: Executor,
    data: DataConfig,
    training: TrainingConfig,
    model: ModelSpec | None,
    listener: Listener,
    label: str,
    max_failed: float,
    recipe: Recipe | None = None,
    test: bool = False,
) -> list[Trial]:
    """Train what is not finished yet; returns all `trials` as they stand then, in the order given.

    Results on disk from a driver that died are taken in, not trained again. A failed candidate stays a failed trial;
    raises SearchStopped once more than the share `max_failed` of the trials has failed. recipe: in place of those that
    genomes decode to.
    """
    # The key is unique in the directory of tasks, where the studies of the journal share one room.
    folder = {f"{study.name}/{trial.key}": trial.key for trial in trials}
    goal = {trial.key: trial.epochs for trial in trials}
    done = {trial.key: trial.epochs if trial.finished else 0 for trial in trials}
    best = max((t.accuracy for t in trials if t.accuracy is not None), default=None)
    listener.begin(label, sum(goal.values()))

    def show() -> None:
        finished = sum(study.trial(key).finished for key in goal)
        note = f"{finished}/{len(goal)} candidates" + ("" if best is None else f", best {100 * best:.1f}%")
        listener.advance(label, sum(done.values()), note)

    try:
        show()
        for task, key in folder.items():
            if not (trial := study.trial(key)).finished:
                executor.submit(task, TRAIN, _payload(space, trial, data, training, recipe, model, test))
        for event in executor.outcomes():
            key = folder[event.key]
            bar = f"  candidate {key}"
            match event:
                case Started():
                    study.start(key)
                    listener.begin(bar, goal[key])
                case Progress(value=value):
                    study.progress(key, value["epoch"], value["accuracy"])
                    done[key] = value["epoch"]
                    listener.advance(bar, value["epoch"], f"{100 * value['accuracy']:.1f}%")
                case Done(value=result):
                    trial = study.finish(key, result)
                    done[key] = goal[key]
                    best = max(result["accuracy"], best or 0.0)
                    listener.end(bar)
                case Failed(reason=reason):
                    study.fail(key, reason)
                    done[key] = goal[key]
                    listener.end(bar)
                    listener.say(f"candidate {key} failed: {reason}")
                    _check_failures([study.trial(k) for k in goal], max_failed, label)
            show()
    finally:
        listener.end(label)
    finished = [study.trial(trial.key) for trial in trials]
    _check_failures(finished, max_failed, label)
    return finished


def _payload(
    space: Space,
    trial: Trial,
    data: DataConfig,
    training: TrainingConfig,
    recipe: Recipe | None,
    model: ModelSpec | None,
    test: bool,
) -> dict[str, Any]:
    architecture, decoded = space.decode(np.array(trial.genome, np.uint8))
    chosen = recipe or decoded
    assert chosen is not None  # the search has refused a table without a recipe
    return {
        "model": (model or ModelSpec.of(architecture)).to_dict(),
        "recipe": chosen.to_dict(),
        "data": data.model_dump(mode="json"),
        "training": training.model_dump(),
        "epochs": trial.epochs,
        "seed": trial.seed,
        "test": test,
    }


def _check_failures(trials: Sequence[Trial], max_failed: float, label: str) -> None:
    failed = [trial for trial in trials if trial.state == "failed"]
    if len(failed) > max_failed * len(trials):
        reason, count = Counter(trial.reason for trial in failed).most_common(1)[0]
        raise SearchStopped(
            f"{label}: {len(failed)} of {len(trials)} candidates failed, {count} of them with: {reason}. "
            "The logs are under tasks/ in the study's directory"
        )
