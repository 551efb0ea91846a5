"""The whole search, on digits, in real worker processes: what it leaves, and that it survives anything."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pynas
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study

EXAMPLES = Path(__file__).parent.parent / "examples"


def start(study: Path, directory: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pynas.cli", "search", str(study), "--dir", str(directory), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(study: Path, directory: Path) -> dict[str, Any]:
    process = start(study, directory)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out)


def trainings(directory: Path) -> dict[str, tuple[int, int]]:
    """Every result on disk with its inode and time: a second training would replace the file."""
    return {
        str(path.parent.relative_to(directory)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (directory / "tasks").rglob("result.json")
    }


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
    assert {"mlp", "ridge"} <= set(results["iterations"][1]["cross_validation"])


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


def test_ctrl_c_stops_in_order_and_says_how_to_go_on(tmp_path: Path) -> None:
    study = EXAMPLES / "study.yaml"
    directory = tmp_path / "study"
    # What runs in the background of a shell ignores Ctrl-C, and so would whatever it starts.
    attend = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start(study, directory, start_new_session=True, preexec_fn=attend)
    deadline = time.monotonic() + 60
    while not trainings(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and its workers alike
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Go on with: pynas search {study} --dir {directory}" in err
    assert "Traceback" not in err
    kept = trainings(directory)
    assert kept
    run(study, directory)
    assert kept.items() <= trainings(directory).items()


def test_a_killed_worker_fails_its_candidate_and_the_search_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "study"
    process = start(EXAMPLES / "study.yaml", directory)
    deadline = time.monotonic() + 60
    while not trainings(directory) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    trials = Study.open(StudyDirectory.open(directory), read_only=True).trials()
    failed = [trial for trial in trials if trial.state == "failed"]
    assert len(failed) == 1
    assert "SIGKILL" in (failed[0].reason or "")
    assert f"candidate {failed[0].key} failed: " in err
    assert list(json.loads(out)["winners"]) == ["small", "large"]


def test_other_settings_on_a_study_are_refused(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    directory, _ = undisturbed
    shutil.copy(EXAMPLES / "tiny.yaml", tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(
        (EXAMPLES / "study.yaml").read_text().replace("seed: 0", "").replace("candidates: 4", "candidates: 5")
    )
    process = start(other, directory)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "this study began with other settings: " in err
    assert "candidates (4 -> 5)" in err
    assert err.count("\n") == 1


def test_a_mistake_can_be_put_right_before_the_first_training(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "tiny.yaml", tmp_path)
    study = tmp_path / "study.yaml"
    good = (EXAMPLES / "study.yaml").read_text()
    for wrong, message in {
        good.replace(":60k", "1:2"): "pynas: budget small: tiny: ",
        good.replace("pool:", "pin: {emma: true}\npool:"): f"{tmp_path / 'tiny.yaml'}: pin: unknown variable 'emma'",
        good.replace("train: 200", "train: 9999"): "pynas: data.train: got 9999, digits has 1437",
    }.items():
        study.write_text(wrong)
        _, err = (process := start(study, tmp_path / "directory")).communicate(timeout=60)
        assert process.returncode == 2, err
        assert message in err
        assert err.count("\n") == 1
    study.write_text(good.replace("iterations: 2", "iterations: 1").replace("final: {epochs: 4}", ""))
    run(study, tmp_path / "directory")


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
    done = subprocess.run(
        [sys.executable, "-m", "pynas.cli", "evolve", str(study)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_evolve_answers_for_a_new_budget_from_a_finished_study(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = undisturbed
    command = [sys.executable, "-m", "pynas.cli", "evolve", str(directory), "--json", "--top", "3"]
    budget = ["--budget", "flops=40k:80k", "--budget", "params=:6k"]
    done = subprocess.run(command + budget, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout)["answers"]
    assert len(answers) == 3
    for answer in answers:
        assert 40_000 <= answer["costs"]["flops"] <= 80_000
        assert answer["costs"]["params"] <= 6_000
    scores = [answer["predicted"] for answer in answers]
    assert scores == sorted(scores, reverse=True)
    # The same from Python.
    space = pynas.load_space(EXAMPLES / "tiny.yaml")
    predictor = pynas.Predictor.load(directory / "predictor.npz")
    result = pynas.evolve(space, predictor, budget=pynas.Budget(flops=(40e3, 80e3), params=(None, 6e3)), seed=0)
    assert abs(float(result.scores[0]) - scores[0]) < 0.05


def test_most_candidates_failing_ends_the_search_with_the_reason(tmp_path: Path) -> None:
    table = (EXAMPLES / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(table.replace("(20, 30) * 1e-3", "(20, 30) * 1e15"))  # diverges at once
    shutil.copy(EXAMPLES / "study.yaml", tmp_path)
    process = start(tmp_path / "study.yaml", tmp_path / "directory")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the search stopped: iteration 1 of 2: 3 of 4 candidates failed" in err
    assert "FloatingPointError" in err
    assert "Traceback" not in err


def test_data_that_do_not_fit_the_networks_are_refused_before_training(tmp_path: Path) -> None:
    table = (EXAMPLES / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(table.replace("| 10         |", "| 3          |"))
    shutil.copy(EXAMPLES / "study.yaml", tmp_path)
    process = start(tmp_path / "study.yaml", tmp_path / "directory")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err == "pynas: architecture: got 3 classes, digits has 10\n"


def test_recipe_only_search_keeps_the_network_and_varies_the_recipe(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "tiny.yaml", tmp_path)
    network = tmp_path / "network.yaml"
    space = pynas.load_space(EXAMPLES / "tiny.yaml")
    architecture, _ = space.decode(space.sample(1, seed=0)[0])
    rows = "\n".join("  " + line for line in str(architecture).splitlines()[1:])
    network.write_text(f"name: network\ninput_channels: 1\nresolution: {architecture.resolution}\nstages: |\n{rows}\n")
    study = tmp_path / "study.yaml"
    text = (EXAMPLES / "study.yaml").read_text()
    text = text.replace("space: tiny.yaml", "space: tiny.yaml\narchitecture: network.yaml")
    text = text.replace('small: {flops: ":60k"}', "any: {}").replace('  large: {flops: "60k:"}\n', "")
    study.write_text(text.replace("iterations: 2", "iterations: 1").replace("final: {epochs: 4}", ""))
    results = run(study, tmp_path / "directory")
    winner = results["winners"]["any"]
    assert pynas.Architecture.from_dict(winner["architecture"]) == architecture
    trials = Study.open(StudyDirectory.open(tmp_path / "directory"), read_only=True).trials()
    assert len({tuple(trial.genome) for trial in trials}) == 4
    assert len({trial.costs["flops"] for trial in trials}) == 1
    assert "pretrain" not in results


MINE = """
import torch
def make_model(classes, input_channels, dropout=0.0):
    return torch.nn.Sequential(
        torch.nn.Conv2d(input_channels, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Dropout(dropout), torch.nn.Linear(8, classes))
"""


def test_recipe_only_search_takes_any_torch_model_and_its_answer_trains_it(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "tiny.yaml", tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    study = tmp_path / "study.yaml"
    text = (EXAMPLES / "study.yaml").read_text()
    text = text.replace("space: tiny.yaml", "space: tiny.yaml\nmodel: mine:make_model")
    text = text.replace('small: {flops: ":60k"}', "any: {}").replace('  large: {flops: "60k:"}\n', "")
    study.write_text(text.replace("iterations: 2", "iterations: 1"))
    process = start(study, tmp_path / "directory", cwd=tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    winner = json.loads(out)["winners"]["any"]
    assert (winner["architecture"], winner["model"]) == (None, "mine:make_model")
    assert 0 < winner["final"]["accuracy"] <= 1
    trials = Study.open(StudyDirectory.open(tmp_path / "directory"), read_only=True).trials()
    assert len({tuple(trial.genome) for trial in trials}) == 4
    command = [sys.executable, "-m", "pynas.cli", "train", "--model", "mine:make_model", "--data", "digits"]
    command += ["--recipe", "directory/winners/any.yaml", "--set", "epochs=1", "--dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    trained = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert {key: trained[key] for key in winner["recipe"]} == winner["recipe"]
