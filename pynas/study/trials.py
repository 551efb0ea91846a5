"""A trial: one candidate on its way from being chosen to being measured. Plain values; needs no Optuna."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pynas.errors import PynasError

State = Literal["waiting", "running", "complete", "failed"]


@dataclass(frozen=True)
class Trial:
    """One candidate. Numbers of numpy are taken and become Python's.

    `key` is unique within a study and names the task that trains the candidate. `accuracy` is in [0, 1], as are the
    entries of `curve`, one per epoch from the first. What is not known yet is None.
    """

    iteration: int  # of the search, from 1
    index: int  # within the iteration, from 0
    genome: list[int]
    epochs: int  # to train; once complete, as many as were trained
    seed: int
    costs: Mapping[str, float]  # flops, macs, params, parameters; latency in milliseconds, where it is predicted
    predicted: float | None = None  # the predictor's score at the time of choosing
    state: State = "waiting"
    accuracy: float | None = None  # validation accuracy after the last epoch, of complete trials
    curve: list[float] = field(default_factory=list)
    test_accuracy: float | None = None
    seconds: float | None = None  # of training, of complete trials
    reason: str | None = None  # of failed trials, one line

    def __post_init__(self) -> None:
        def settle(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in ("iteration", "index", "epochs", "seed"):
            settle(name, int(getattr(self, name)))
        for name in ("predicted", "accuracy", "test_accuracy", "seconds"):
            value = getattr(self, name)
            settle(name, None if value is None else float(value))
        settle("genome", [int(gene) for gene in self.genome])
        settle("costs", {k: float(v) if isinstance(v, float) else int(v) for k, v in self.costs.items()})
        settle("curve", [float(accuracy) for accuracy in self.curve])

    @property
    def key(self) -> str:
        return trial_key(self.iteration, self.index)

    @property
    def finished(self) -> bool:
        return self.state in ("complete", "failed")


def trial_key(iteration: int, index: int) -> str:
    """``"ITERATION/INDEX"``, for instance "1/3"."""
    return f"{iteration}/{index}"


def curve_of(values: Mapping[int, float]) -> list[float]:
    """The accuracies by epoch as a list, from epoch 1 up to the first gap."""
    curve: list[float] = []
    while len(curve) + 1 in values:
        curve.append(values[len(curve) + 1])
    return curve


def by_key(trials: Iterable[Trial]) -> dict[str, Trial]:
    """The trials by key.

    Raises:
        PynasError: two trials have one key.
    """
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.key in found:
            raise PynasError(f"trial {trial.key} occurs twice; keys are unique within a study")
        found[trial.key] = trial
    return found
