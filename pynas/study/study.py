"""A study: the trials of a search in Optuna's journal, written by one driver, read by anyone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from pynas.errors import PynasError
from pynas.study.convert import from_optuna, to_distribution, to_optuna
from pynas.study.directory import StudyDirectory
from pynas.study.journal import Journal, ReadOnlyJournal, load, repair
from pynas.study.trials import Trial, by_key


class Study:
    """One Optuna study of the journal of a study directory, which maximises accuracy.

    Every change is on disk when the method returns, and every change is idempotent: a driver that comes back may
    record, start and finish all over again, and what is recorded already stays as it is and costs no write. A finished
    trial never changes. Trials that were running when their driver died stay so until they finish at last.

    What Optuna's tools see: the accuracy as objective, the curve as intermediate values by epoch, the variables as
    parameters, and all else (``flops``, ``iteration``, ``seed``...) as user attributes.
    """

    def __init__(self, directory: StudyDirectory, name: str, storage: JournalStorage, journal: Journal | None) -> None:
        """Use `open`."""
        self.directory = directory
        self.name = name
        self._storage = storage
        self._journal = journal
        self._study_id = storage.get_study_id_from_name(name)
        self._trial_ids: dict[str, int] = {}
        self._seen = 0
        self._index()

    @classmethod
    def open(cls, directory: StudyDirectory, name: str = "candidates", *, read_only: bool = False) -> Study:
        """Open a study, created if absent unless `read_only`.

        Names tell apart trials that must not be compared, such as "candidates" and the longer trainings of "final".
        The driver holds the lock of `directory`; a reader needs none, changes nothing and sees what a running driver
        writes.

        Raises:
            PynasError: the journal is damaged or, for a reader, holds no such study.
            RuntimeError: the lock is not held, and not `read_only`.
        """
        path = directory.journal
        if read_only:
            StudyDirectory.open(directory.path)
            storage = load(ReadOnlyJournal(path), path)
            names = [study.study_name for study in storage.get_all_studies()]
            if name not in names:
                raise PynasError(f"{path} holds no study {name!r}; it holds {', '.join(names) or 'none'}")
            return cls(directory, name, storage, None)

        if not directory.held:
            raise RuntimeError(f"{directory} must be held by whoever writes to it: with StudyDirectory.open(...) as d")
        repair(path, directory.torn)
        journal = Journal(path)
        storage = load(journal, path)
        if name not in (study.study_name for study in storage.get_all_studies()):
            with journal.batch(), _quiet():
                storage.create_new_study([StudyDirection.MAXIMIZE], name)
                optuna.load_study(study_name=name, storage=storage).set_metric_names(["accuracy"])
        return cls(directory, name, storage, journal)

    def record(
        self,
        trials: Sequence[Trial],
        params: Sequence[Mapping[str, Any]],
        distributions: Mapping[str, Mapping[str, Any]],
    ) -> tuple[Trial, ...]:
        """Record trials that wait, in one write; returns them as recorded.

        A key that is recorded already yields the recorded trial, unchanged, whatever was given now. The state of the
        trials given is not looked at.

        Args:
            trials: with keys unique among them.
            params: per trial, the value of every variable by name.
            distributions: per variable ``{"choices": [...]}`` or ``{"low": ..., "high": ..., "step": ...}``.

        Raises:
            PynasError: a malformed distribution, a parameter outside its own, a key twice. Nothing is recorded then.
        """
        if len(trials) != len(params):
            raise ValueError(f"{len(trials)} trials came with {len(params)} sets of parameters")
        by_key(trials)
        ranges = {name: to_distribution(name, values) for name, values in distributions.items()}
        new = [
            to_optuna(trial, values, ranges)
            for trial, values in zip(trials, params)
            if trial.key not in self._trial_ids
        ]
        if new:
            with self._change():
                for template in new:
                    self._storage.create_new_trial(self._study_id, template_trial=template)
            self._index()
        return tuple(self.trial(trial.key) for trial in trials)

    def start(self, key: str) -> Trial:
        """The trial is being trained."""
        if self.trial(key).state == "waiting":
            with self._change():
                self._start(key)
        return self.trial(key)

    def progress(self, key: str, epoch: int, accuracy: float) -> Trial:
        """The accuracy after an epoch, counted from 1. Starts a trial that waits; ignored once it is finished."""
        if epoch < 1:
            raise ValueError(f"epoch: {epoch} came, epochs count from 1")
        trial = self.trial(key)
        if not trial.finished and self._values(key).get(epoch) != accuracy:
            with self._change():
                self._start(key)
                self._storage.set_trial_intermediate_value(self._trial_ids[key], epoch, float(accuracy))
        return self.trial(key)

    def finish(self, key: str, result: Mapping[str, Any], notes: Mapping[str, Any] | None = None) -> Trial:
        """The trial was trained.

        Args:
            result: of training: accuracy, curve, epochs, seconds, test_accuracy (all but accuracy may be absent).
                An accuracy that is not finite makes the trial a failed one: Optuna has no place for it either.
            notes: further user attributes for Optuna's tools, JSON values by name.
        """
        accuracy = float(result["accuracy"])
        if not math.isfinite(accuracy):
            return self.fail(key, f"accuracy is {accuracy}")
        if self.trial(key).finished:
            return self.trial(key)
        number, values = self._trial_ids[key], self._values(key)
        with self._change():
            self._start(key)
            for epoch, value in enumerate(result.get("curve") or (), start=1):
                if values.get(epoch) != value:
                    self._storage.set_trial_intermediate_value(number, epoch, float(value))
            for name in ("epochs", "seconds", "test_accuracy"):
                if result.get(name) is not None:
                    self._storage.set_trial_user_attr(number, name, result[name])
            for name, value in (notes or {}).items():
                self._storage.set_trial_user_attr(number, name, value)
            # Last, for a finished trial takes no changes, and half a batch must leave it unfinished.
            self._storage.set_trial_state_values(number, TrialState.COMPLETE, [accuracy])
        return self.trial(key)

    def fail(self, key: str, reason: str) -> Trial:
        """The trial could not be trained; `reason` is one line."""
        if not self.trial(key).finished:
            with self._change():
                self._start(key)
                self._storage.set_trial_user_attr(self._trial_ids[key], "reason", reason)
                self._storage.set_trial_state_values(self._trial_ids[key], TrialState.FAIL)
        return self.trial(key)

    def trial(self, key: str) -> Trial:
        """One trial.

        Raises:
            KeyError: no trial has this key.
        """
        if key not in self._trial_ids:
            self._index()
        if key not in self._trial_ids:
            raise KeyError(f"study {self.name!r} in {self.directory.path} has no trial {key!r}")
        return from_optuna(self._storage.get_trial(self._trial_ids[key]))

    def trials(self) -> tuple[Trial, ...]:
        """All trials, by iteration and index. A reader sees what was written up to now."""
        found = [from_optuna(t) for t in self._storage.get_all_trials(self._study_id, deepcopy=False) if _ours(t)]
        return tuple(sorted(found, key=lambda trial: (trial.iteration, trial.index)))

    def _start(self, key: str) -> None:
        if self._storage.get_trial(self._trial_ids[key]).state == TrialState.WAITING:
            self._storage.set_trial_state_values(self._trial_ids[key], TrialState.RUNNING)

    def _values(self, key: str) -> dict[int, float]:
        return dict(self._storage.get_trial(self._trial_ids[key]).intermediate_values)

    def _index(self) -> None:
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        for trial in trials[self._seen :]:
            if _ours(trial):
                number = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
                self._trial_ids.setdefault(trial.user_attrs["key"], number)
        self._seen = len(trials)

    @contextmanager
    def _change(self) -> Iterator[None]:
        if self._journal is None:
            raise RuntimeError(f"study {self.name!r} was opened for reading only")
        if not self.directory.held:
            raise RuntimeError(f"{self.directory} is no longer held")
        with self._journal.batch():
            yield


def _ours(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether we recorded the trial; Optuna's own tools can add others."""
    return "key" in trial.user_attrs


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's message about a new study and its warning that metric names are experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
