"""Studies: what is recorded comes back, from this class and from Optuna's tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from study_examples import DISTRIBUTIONS, params, result, trial

from pynas.errors import PynasError
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial


@pytest.fixture
def directory(tmp_path):
    with StudyDirectory.create(tmp_path / "study") as directory:
        yield directory


def record(study: Study, *trials: Trial) -> tuple[Trial, ...]:
    return study.record(trials, [params(one.index) for one in trials], DISTRIBUTIONS)


def lines(directory: StudyDirectory) -> int:
    return directory.journal.read_bytes().count(b"\n")


def test_a_trial_comes_back_as_it_went_in_through_all_its_states(directory):
    study = Study.open(directory)
    first, second, third = trial(0, 0), trial(0, 1), trial(1, 0)
    assert record(study, first, second, third) == (first, second, third)
    assert study.start("0/0") == replace(first, state="running")
    assert study.progress("0/0", 1, 0.25) == replace(first, state="running", curve=[0.25])
    done = {"accuracy": 0.75, "curve": [0.25, 0.5, 0.75], "epochs": 3, "seconds": 2.5, "test_accuracy": 0.7}
    complete = replace(
        first, state="complete", accuracy=0.75, curve=[0.25, 0.5, 0.75], epochs=3, seconds=2.5, test_accuracy=0.7
    )
    assert study.finish("0/0", done) == complete
    failed = replace(second, state="failed", reason="FloatingPointError: loss is nan")
    assert study.fail("0/1", "FloatingPointError: loss is nan") == failed
    assert study.trials() == (complete, failed, third)
    assert Study.open(directory).trials() == (complete, failed, third)
    assert Study.open(directory, read_only=True).trials() == (complete, failed, third)


def test_trials_are_sorted_by_iteration_and_index(directory):
    study = Study.open(directory)
    record(study, trial(1, 10), trial(1, 2), trial(0, 3))
    record(study, trial(0, 1))
    assert [one.key for one in study.trials()] == ["0/1", "0/3", "1/2", "1/10"]


def test_doing_all_over_again_changes_nothing_and_writes_nothing(directory):
    study = Study.open(directory)

    def drive(study: Study) -> None:
        record(study, trial(0, 0), trial(0, 1))
        for key in ("0/0", "0/1"):
            study.start(key)
            for epoch, accuracy in enumerate(result(0)["curve"], start=1):
                study.progress(key, epoch, accuracy)
        study.finish("0/0", result(0))
        study.fail("0/1", "died")

    drive(study)
    before, written = study.trials(), lines(directory)
    drive(study)
    drive(Study.open(directory))
    study.fail("0/0", "too late")
    study.finish("0/1", result(0))
    study.progress("0/0", 9, 0.5)
    assert record(study, trial(0, 0, genome=[9, 9], epochs=99))[0] == before[0]
    assert study.trials() == before
    assert lines(directory) == written


def test_a_driver_that_comes_back_restarts_what_was_running(directory):
    study = Study.open(directory)
    record(study, trial(0, 0))
    study.start("0/0")
    study.progress("0/0", 1, 0.2)

    study = Study.open(directory)
    assert study.start("0/0").state == "running"
    study.progress("0/0", 1, 0.2)
    study.progress("0/0", 2, 0.3)
    assert study.finish("0/0", {"accuracy": 0.3, "curve": [0.2, 0.3]}).curve == [0.2, 0.3]


def test_a_result_found_on_disk_finishes_a_trial_that_was_never_started(directory):
    study = Study.open(directory)
    record(study, trial(0, 0))
    assert study.finish("0/0", result(0)).curve == result(0)["curve"]
    (found,) = optuna.load_study(study_name="candidates", storage=storage_of(directory)).trials
    assert found.intermediate_values == dict(enumerate(result(0)["curve"], start=1))
    assert found.datetime_start is not None


@pytest.mark.parametrize("accuracy", [float("nan"), float("inf")])
def test_an_accuracy_that_is_not_finite_fails_the_trial(directory, accuracy):
    study = Study.open(directory)
    record(study, trial(0, 0))
    failed = study.finish("0/0", {**result(0), "accuracy": accuracy})
    assert (failed.state, failed.reason, failed.accuracy) == ("failed", f"accuracy is {accuracy}", None)
    assert Study.open(directory).trials() == (failed,)


def test_numbers_of_numpy_are_taken(directory):
    study = Study.open(directory)
    ours = trial(
        0,
        0,
        genome=np.array([1, 2, 250], np.uint8),
        seed=np.int64(3),
        predicted=np.float32(0.5),
        costs={"flops": np.int64(2**40), "macs": np.int64(1), "params": 2, "parameters": 3},
    )
    assert record(study, ours)[0].genome == [1, 2, 250]
    assert study.finish("0/0", {"accuracy": np.float32(0.5), "curve": np.array([0.5])}).accuracy == 0.5
    assert Study.open(directory).trials() == study.trials()


def test_the_studies_of_a_journal_do_not_mix(directory):
    candidates, final = Study.open(directory), Study.open(directory, "final")
    record(candidates, trial(0, 0))
    record(final, trial(0, 0, epochs=100), trial(0, 1, epochs=100))
    candidates.finish("0/0", result(0))
    final.fail("0/0", "died")
    record(candidates, trial(0, 1))
    assert [one.state for one in candidates.trials()] == ["complete", "waiting"]
    assert [one.state for one in final.trials()] == ["failed", "waiting"]
    assert Study.open(directory, "final").trials() == final.trials()


def test_a_mistake_in_one_trial_records_none(directory):
    study = Study.open(directory)
    good = trial(0, 0)
    for trials, values, ranges, message in [
        ([good, trial(0, 1)], [params(0), {**params(1), "lr": 31}], DISTRIBUTIONS, r"trial 0/1.*31.*'lr'"),
        ([good], [{**params(0), "new": 1}], DISTRIBUTIONS, "trial 0/0.*new"),
        ([good, good], [params(0)] * 2, DISTRIBUTIONS, "0/0 occurs twice"),
        ([good], [params(0)], {**DISTRIBUTIONS, "lr": {"from": 1}}, r"variable lr: .*allowed are"),
        ([good], [params(0)], {**DISTRIBUTIONS, "lr": {"low": 3, "high": 1}}, "variable lr"),
        ([good], [params(0)], {**DISTRIBUTIONS, "lr": {"choices": []}}, "variable lr"),
    ]:
        with pytest.raises(PynasError, match=message):
            study.record(trials, values, ranges)
    with pytest.raises(ValueError, match="1 trials came with 2"):
        study.record([good], [params(0)] * 2, DISTRIBUTIONS)
    assert study.trials() == ()


def test_unknown_keys_and_epochs(directory):
    study = Study.open(directory)
    record(study, trial(0, 0))
    with pytest.raises(KeyError, match="9/9"):
        study.start("9/9")
    with pytest.raises(ValueError, match="count from 1"):
        study.progress("0/0", 0, 0.5)


def test_a_reader_sees_what_the_driver_writes_and_cannot_write(directory):
    study = Study.open(directory)
    record(study, trial(0, 0))
    reader = Study.open(StudyDirectory.open(directory.path), read_only=True)
    record(study, trial(0, 1))
    study.start("0/1")
    with open(directory.journal, "ab") as file:  # the driver is in the middle of a line
        file.write(b'{"op_code": 4, "wor')
    files = sorted(os.listdir(directory.path))
    for one in (reader, Study.open(StudyDirectory(directory.path), read_only=True)):
        assert [one.state for one in one.trials()] == ["waiting", "running"]
    with pytest.raises(RuntimeError, match="reading only"):
        reader.start("0/0")
    assert sorted(os.listdir(directory.path)) == files


def test_what_cannot_be_opened(tmp_path, directory):
    with pytest.raises(PynasError, match=r"is not the directory of a study.*journal\.log"):
        StudyDirectory.open(tmp_path)
    Study.open(directory)
    with pytest.raises(PynasError, match="holds no study 'final'; it holds candidates"):
        Study.open(directory, "final", read_only=True)
    with pytest.raises(RuntimeError, match="must be held"):
        Study.open(StudyDirectory(directory.path))
    study = Study.open(directory)
    directory.release()
    with pytest.raises(RuntimeError, match="no longer held"):
        record(study, trial(0, 0))


def storage_of(directory: StudyDirectory) -> optuna.storages.JournalStorage:
    backend = optuna.storages.journal.JournalFileBackend(str(directory.journal))
    return optuna.storages.JournalStorage(backend)


OPTUNA = """
import sys, json, warnings
import optuna
from optuna import visualization
storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(sys.argv[1]))
study = optuna.load_study(study_name="candidates", storage=storage)
warnings.simplefilter("ignore")
figures = [
    visualization.plot_optimization_history(study),
    visualization.plot_intermediate_values(study),
    visualization.plot_parallel_coordinate(study, ["resolution", "optimizer"]),
    visualization.plot_slice(study, ["p", "stage2.c"]),
    visualization.plot_pareto_front(
        study,
        targets=lambda t: (t.value, t.user_attrs["flops"]),
        target_names=["accuracy", "flops"],
        include_dominated_trials=True,
    ),
]
print(json.dumps({
    "best": study.best_value,
    "params": study.best_params,
    "direction": study.direction.name,
    "metrics": study.metric_names,
    "states": [t.state.name for t in study.trials],
    "reason": study.trials[-2].user_attrs["reason"],
    "curves": len(figures[1].data),
    "figures": [len(figure.data) for figure in figures],
    "frame": "torch" in sys.modules or "pynas" in sys.modules,
}))
"""


def test_optunas_own_tools_open_the_journal(directory):
    study = Study.open(directory)
    record(study, *(trial(0, index) for index in range(8)))
    for index in range(6):
        study.finish(f"0/{index}", result(index))
    study.fail("0/6", "diverged")
    output = subprocess.check_output([sys.executable, "-c", OPTUNA, str(directory.journal)], text=True)
    found = json.loads(output)
    assert found["best"] == result(5)["accuracy"]
    assert found["params"] == params(5)
    assert found["direction"] == "MAXIMIZE"
    assert found["metrics"] == ["accuracy"]
    assert found["states"] == ["COMPLETE"] * 6 + ["FAIL", "WAITING"]
    assert found["reason"] == "diverged"
    assert found["curves"] == 6
    assert all(found["figures"])


def test_what_others_add_to_the_journal_is_kept_and_passed_over(directory):
    study = Study.open(directory)
    record(study, trial(0, 0))
    other = optuna.load_study(study_name="candidates", storage=storage_of(directory))
    other.set_user_attr("note", "from a dashboard")
    other.add_trial(optuna.trial.create_trial(value=0.5))
    record(study, trial(0, 1))
    study.finish("0/1", result(1))
    other.set_user_attr("note", "again")
    study.finish("0/0", result(0))
    for one in (study, Study.open(directory)):
        assert [(t.key, t.accuracy) for t in one.trials()] == [("0/0", 0.4), ("0/1", 0.401)]
    assert len(other.trials) == 3
    assert other.user_attrs["note"] == "again"


def test_study_needs_no_torch():
    code = "import sys, pynas.study.study, pynas.study.versions; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "False"
