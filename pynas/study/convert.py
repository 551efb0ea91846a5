"""Between our plain values and Optuna's: distributions, and trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from pynas.errors import PynasError
from pynas.study.trials import State, Trial, curve_of

STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
}


def to_distribution(name: str, values: Mapping[str, Any]) -> BaseDistribution:
    """Optuna's distribution of ``{"choices": [...]}`` or ``{"low": ..., "high": ..., "step": ...}``.

    A range whose numbers are all integers is one of integers; its step is 1 unless given. A range of floats without
    a step is continuous.

    Raises:
        PynasError: neither form, or Optuna will not have the values.
    """
    try:
        if set(values) == {"choices"}:
            return CategoricalDistribution(list(values["choices"]))
        if {"low", "high"} <= set(values) <= {"low", "high", "step"}:
            low, high, step = values["low"], values["high"], values.get("step")
            if all(isinstance(number, int) for number in (low, high) + (() if step is None else (step,))):
                return IntDistribution(low, high, step=step or 1)
            return FloatDistribution(low, high, step=step)
    except (ValueError, TypeError) as error:
        raise PynasError(f"variable {name}: {dict(values)} is not a distribution: {error}") from error
    raise PynasError(
        f"variable {name}: {dict(values)} is not a distribution; "
        'allowed are {"choices": [...]} and {"low": ..., "high": ..., "step": ...}'
    )


def to_optuna(trial: Trial, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """A trial that waits, as Optuna records it: all in one entry of the journal.

    Raises:
        PynasError: a parameter lacks its distribution or lies outside of it.
    """
    attributes = {
        "key": trial.key,
        "iteration": trial.iteration,
        "index": trial.index,
        "genome": trial.genome,
        "epochs": trial.epochs,
        "seed": trial.seed,
        "predicted": trial.predicted,
        **trial.costs,
        "costs": list(trial.costs),
    }
    try:
        return create_trial(
            state=TrialState.WAITING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs=attributes,
        )
    except ValueError as error:
        raise PynasError(f"trial {trial.key}: {error}") from error


def from_optuna(trial: FrozenTrial) -> Trial:
    """The trial that `to_optuna` and the methods of `Study` have recorded."""
    attributes = trial.user_attrs
    complete = trial.state == TrialState.COMPLETE
    return Trial(
        iteration=attributes["iteration"],
        index=attributes["index"],
        genome=attributes["genome"],
        epochs=attributes["epochs"],
        seed=attributes["seed"],
        costs={name: attributes[name] for name in attributes["costs"]},
        predicted=attributes["predicted"],
        state=STATES.get(trial.state, "failed"),
        accuracy=cast(float, trial.value) if complete else None,
        curve=curve_of(trial.intermediate_values),
        test_accuracy=attributes.get("test_accuracy"),
        seconds=attributes.get("seconds"),
        reason=attributes.get("reason"),
    )
