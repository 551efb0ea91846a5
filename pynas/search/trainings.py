"""Trains recorded trials through an executor and writes what comes of it into the study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pynas.data.config import DataConfig
from pynas.errors import SearchStopped
from pynas.listener import Listener
from pynas.nets.load import ModelSpec
from pynas.runtime.executor import Done, Event, Executor, Failed, Progress, Started
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
    more: Callable[[int], Sequence[Trial]] | None = None,
    total: int | None = None,
) -> list[Trial]:
    """Train what is not finished yet; returns all trials as they stand then, in the order given.

    Results on disk from a driver that died are taken in, not trained again. A failed candidate stays a failed trial;
    raises SearchStopped once more than the share `max_failed` of the trials has failed. recipe: in place of those that
    genomes decode to. more: called with the number of free slots whenever there are some, for further trials, recorded
    ones; it is asked no more once it gives none. total: how many trials there will be, `trials` alone where not given.
    """
    keys: dict[str, str] = {}  # by task; unique in the directory of tasks, where the studies of a journal share a room
    goal: dict[str, int] = {}
    done: dict[str, int] = {}
    flying: set[str] = set()
    best: float | None = None
    count = total or len(trials)

    def show() -> None:
        finished = sum(study.trial(key).finished for key in goal)
        note = f"{finished}/{count} candidates" + ("" if best is None else f", best {100 * best:.1f}%")
        listener.advance(label, sum(done.values()), note)

    def submit(new: Sequence[Trial]) -> None:
        nonlocal best
        for trial in new:
            task = f"{study.name}/{trial.key}"
            keys[task], goal[trial.key] = trial.key, trial.epochs
            done[trial.key] = trial.epochs if trial.finished else 0
            if trial.accuracy is not None:
                best = max(trial.accuracy, best or 0.0)
            if not trial.finished:
                flying.add(trial.key)
                executor.submit(task, TRAIN, _payload(space, trial, data, training, recipe, model, test))

    def take_in(event: Event) -> None:
        nonlocal best
        key = keys[event.key]
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
                study.finish(key, result)
                done[key] = goal[key]
                best = max(result["accuracy"], best or 0.0)
                listener.end(bar)
                flying.remove(key)
            case Failed(reason=reason):
                study.fail(key, reason)
                done[key] = goal[key]
                listener.end(bar)
                listener.say(f"candidate {key} failed: {reason}")
                flying.remove(key)
                _check_failures([study.trial(k) for k in goal], max_failed, label, count)
        show()

    listener.begin(label, sum(trial.epochs for trial in trials) * count / max(len(trials), 1))
    try:
        submit(trials)
        show()
        while flying or more:
            free = executor.slots - len(flying)
            if more and free > 0:
                new = more(free)
                submit(new)
                more = more if new else None
                continue
            event = None
            for event in executor.outcomes():
                take_in(event)
                if more and len(flying) < executor.slots:
                    break
            if event is None:  # nothing is in flight any more
                break
            # What has come by now is known to the next pick.
            for event in executor.outcomes(timeout=0) if more else ():
                take_in(event)
    finally:
        listener.end(label)
    finished = [study.trial(key) for key in goal]
    _check_failures(finished, max_failed, label, len(finished))
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


def _check_failures(trials: Sequence[Trial], max_failed: float, label: str, count: int) -> None:
    """`count`: how many trials there are to be, of which these have been begun."""
    failed = [trial for trial in trials if trial.state == "failed"]
    if len(failed) > max_failed * count:
        reason, times = Counter(trial.reason for trial in failed).most_common(1)[0]
        raise SearchStopped(
            f"{label}: {len(failed)} of {count} candidates failed, {times} of them with: {reason}. "
            "The logs are under tasks/ in the study's directory"
        )
