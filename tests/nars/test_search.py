"""The whole search, on digits, in real worker processes: what it leaves, and that it survives anything."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_pynas
from search_examples import EXAMPLES, run, start, trainings

import pynas
from pynas.nars.answers import evolve_study
from pynas.search.trainings import record
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study
from pynas.study.trials import Trial


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("search") / "study"
    return directory, run(EXAMPLES / "study.yaml", directory)


def test_winners_meet_their_budgets_and_are_trained_beside_a_random_candidate(
    undisturbed: tuple[Path, dict[str, Any]],
) -> None:
    directory, results = undisturbed
    assert list(results["winners"]) == ["small", "large"]
    assert results["winners"]["small"]["costs"]["flops"] <= 60_000 <= results["winners"]["large"]["costs"]["flops"]
    for name, winner in results["winners"].items():
        assert winner["final"]["epochs"] == 4
        assert 0 < winner["final"]["test_accuracy"] <= 1
        assert winner["baseline"]["test_accuracy"] is not None
        # It is the best of those that were trained within the budget.
        space = pynas.load_space(EXAMPLES / "tiny.yaml")
        trials = Study.open(StudyDirectory.open(directory), read_only=True).trials()
        fits = space.feasible(np.array([t.genome for t in trials], np.uint8), pynas.Budget.of(winner["budget"]))
        epoch = results["early_stop"]["epoch"]
        best = max(t.curve[epoch - 1] for t, fit in zip(trials, fits) if fit)
        assert winner["trained"]["accuracy"] == best
        assert winner["trained"]["key"] in {t.key for t in trials if t.genome == winner["genome"]}
        # The file of a winner is a network that can be counted.
        file = directory / "winners" / f"{name}.yaml"
        architecture, recipe = pynas.load_space(file).decode(np.zeros(0, np.uint8))
        assert architecture.to_dict() == pynas.Architecture.from_dict(winner["architecture"]).to_dict()
        assert recipe == pynas.Recipe.from_dict(winner["recipe"])
        assert {key: architecture.cost()[key] for key in winner["costs"]} == winner["costs"]


def test_the_study_keeps_all_that_was_done(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    directory, results = undisturbed
    study = StudyDirectory.open(directory)
    for path in (study.journal, study.config, study.versions, study.space, study.predictor, study.report):
        assert path.is_file(), path
    trials = Study.open(study, read_only=True).trials()
    assert [trial.key for trial in trials] == [f"{t}/{i}" for t in (1, 2) for i in range(4)]
    assert all(trial.state == "complete" for trial in trials)
    stop = results["early_stop"]["epoch"]
    assert [len(trial.curve) for trial in trials] == [3] * 4 + [stop] * 4
    assert trials[0].predicted is None
    assert trials[4].predicted is not None
    assert len(Study.open(study, "final", read_only=True).trials()) == 4
    assert len(results["iterations"]) == 2
    assert {"gaussian_process", "ridge"} <= set(results["iterations"][1]["cross_validation"])


def test_running_a_finished_study_again_trains_nothing(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    directory, results = undisturbed
    before = trainings(directory)
    again = run(EXAMPLES / "study.yaml", directory)
    assert again["winners"] == results["winners"]
    assert trainings(directory) == before


def test_kill_9_at_any_instant_changes_nothing(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Killed several times at random, then left to finish: same winners, and no finished candidate trained twice."""
    instants = random.Random(0)
    directory = tmp_path / "study"
    finished: dict[str, tuple[int, int]] = {}
    for _ in range(3):
        process = start(EXAMPLES / "study.yaml", directory)
        while len(trainings(directory)) == len(finished) and process.poll() is None:
            time.sleep(0.02)
        time.sleep(instants.uniform(0.0, 3.0))
        process.kill()
        process.communicate()
        now = trainings(directory)
        assert finished.items() <= now.items()
        finished = now
    results = run(EXAMPLES / "study.yaml", directory)
    assert finished
    assert finished.items() <= trainings(directory).items()
    assert results["winners"] == undisturbed[1]["winners"]


def test_other_settings_on_a_study_are_refused(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    directory, _ = undisturbed
    shutil.copy(EXAMPLES / "tiny.yaml", tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(
        (EXAMPLES / "study.yaml").read_text().replace("seed: 0", "").replace("candidates: 4", "candidates: 5")
    )
    done = run_pynas("search", str(other), "--dir", str(directory), "--json")
    assert done.returncode == 2
    assert "this study began with other settings: " in done.stderr
    assert "candidates (4 -> 5)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_study_moves_with_its_files(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    directory, results = undisturbed
    shutil.copytree(directory, tmp_path / "moved")
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    before = trainings(tmp_path / "moved")
    assert run(tmp_path / "examples" / "study.yaml", tmp_path / "moved")["winners"] == results["winners"]
    assert trainings(tmp_path / "moved") == before


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "", "config.yaml: a study is a mapping"),
        ("config.yaml", "space: x\nx: 1", "config.yaml: "),
        ("space.yaml", "", "space.yaml: "),
        ("results.json", "[]", "results.json: not the results of a search"),
        ("predictor.npz", "no", "predictor.npz: not a pynas predictor"),
    ],
)
def test_a_damaged_study_is_one_clear_line(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, file: str, content: str, message: str
) -> None:
    study = tmp_path / "study"
    shutil.copytree(undisturbed[0], study)
    (study / file).write_text(content)
    done = run_pynas("evolve", str(study))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


BUDGET = ["--budget", "flops=40k:80k", "--budget", "params=:6k"]


def test_evolve_answers_for_a_new_budget_at_once_where_it_is_told_not_to_train(
    undisturbed: tuple[Path, dict[str, Any]],
) -> None:
    directory, _ = undisturbed
    before = trainings(directory)
    done = run_pynas("evolve", str(directory), "--json", "--top", "3", "--train", "0", *BUDGET)
    answers = json.loads(done.stdout)["answers"]
    assert trainings(directory) == before
    assert len(answers) == 3
    for answer in answers:
        assert 40_000 <= answer["costs"]["flops"] <= 80_000
        assert answer["costs"]["params"] <= 6_000
    scores = [answer["predicted"] for answer in answers]
    assert scores == sorted(scores, reverse=True)
    text = run_pynas("evolve", str(directory), "--top", "30", "--train", "0", *BUDGET).stdout
    assert "at the early-stop epoch, not trained; " in text
    # The same from Python.
    space = pynas.load_space(EXAMPLES / "tiny.yaml")
    predictor = pynas.Predictor.load(directory / "predictor.npz")
    result = pynas.evolve(space, predictor, budget=pynas.Budget(flops=(40e3, 80e3), params=(None, 6e3)), seed=0)
    assert abs(float(result.scores[0]) - scores[0]) < 0.1


def test_evolve_trains_its_top_few_before_it_answers_and_only_once(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    directory = tmp_path / "study"
    shutil.copytree(undisturbed[0], directory)
    before = trainings(directory)
    done = run_pynas("evolve", str(directory), "--json", "--top", "40", "--train", "2", *BUDGET, timeout=240)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    new = trainings(directory).keys() - before.keys()
    assert sorted(new) == ["tasks/answers/1/0", "tasks/answers/1/1"]
    measured = [answer["trained"] and answer["trained"]["accuracy"] for answer in answers]
    known = [accuracy for accuracy in measured if accuracy is not None]
    assert len(known) >= 2
    assert measured[: len(known)] == sorted(known, reverse=True)  # trained ones first, the best of them at the top
    after = trainings(directory)
    text = run_pynas("evolve", str(directory), "--train", "2", *BUDGET, timeout=240).stdout
    assert f"trained: {100 * max(known):.2f}% after " in text
    assert trainings(directory) == after
    status = json.loads(run_pynas("status", str(directory), "--json").stdout)
    assert sum(candidate["study"] == "answers" for candidate in status["candidates"]) == 2
    untrained = json.loads(run_pynas("evolve", str(directory), "--json", "--top", "9", "--train", "0", *BUDGET).stdout)
    assert all(answer["trained"] is None for answer in untrained["answers"])
    # The search goes on as if nothing had been asked.
    again = run(EXAMPLES / "study.yaml", directory)
    assert again["winners"] == undisturbed[1]["winners"]


def test_a_finished_study_that_is_run_again_and_killed_still_answers(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    directory = tmp_path / "study"
    shutil.copytree(undisturbed[0], directory)
    before = json.loads((directory / "results.json").read_text())
    process = start(EXAMPLES / "study.yaml", directory)
    stamp = (directory / "results.json").stat().st_mtime_ns
    while (directory / "results.json").stat().st_mtime_ns == stamp and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    now = json.loads((directory / "results.json").read_text())
    assert {key: now[key] for key in ("early_stop", "winners")} == {
        key: before[key] for key in ("early_stop", "winners")
    }
    (directory / "results.json").unlink()
    done = run_pynas("evolve", str(directory), *BUDGET)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "its results are incomplete; finish the search first" in done.stderr


def test_what_failed_in_the_search_is_no_answer(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = shutil.copytree(undisturbed[0], tmp_path / "study")
    budget = pynas.Budget(flops=(40e3, 80e3))
    best = evolve_study(copy, budget, train=0).answers[0]
    directory = StudyDirectory.open(copy)
    with directory:
        study = Study.open(directory)
        trial = Trial(iteration=1, index=99, genome=best["genome"], epochs=2, seed=0, costs=best["costs"])
        (recorded,) = record(study, pynas.load_space(EXAMPLES / "tiny.yaml"), [trial])
        study.fail(recorded.key, "loss is nan")
    again = [answer["genome"] for answer in evolve_study(copy, budget, train=0).answers]
    assert len(again) > 5
    assert best["genome"] not in again


def test_evolve_says_what_it_cannot_do(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    directory = str(undisturbed[0])
    for options, message in {
        ("--executor", "mpi"): "evolve: trains its answers with executor local or slurm",
        ("--executor", "cloud"): "--executor: kind: 'cloud'",
        ("--budget", "flops=1"): "tiny: ",
    }.items():
        done = run_pynas("evolve", directory, *options)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
