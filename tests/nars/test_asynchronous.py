"""`asynchronous: true`: no worker waits, what is pending counts, and a search that was killed goes on."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from search_examples import EXAMPLES, run, start, trainings

from pynas.study.directory import StudyDirectory
from pynas.study.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    shutil.copy(EXAMPLES / "tiny.yaml", tmp_path)
    text = (EXAMPLES / "study.yaml").read_text().replace("final: {epochs: 4}", "")
    text = text.replace("workers: 1", "workers: 2").replace("iterations: 2", "iterations: 3")
    (tmp_path / "study.yaml").write_text("asynchronous: true\n" + text)
    return tmp_path / "study.yaml"


def test_a_search_that_never_waits_trains_as_many_and_survives_kill_9(study: Path) -> None:
    directory = study.parent / "directory"
    process = start(study, directory)
    while len(trainings(directory)) < 5 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    finished = trainings(directory)
    assert len(finished) >= 5
    before = Study.open(StudyDirectory.open(directory), read_only=True).trials()
    results = run(study, directory)
    assert finished.items() <= trainings(directory).items()
    trials = Study.open(StudyDirectory.open(directory), read_only=True).trials()
    assert [trial.key for trial in trials] == [f"{t}/{i}" for t in (1, 2, 3) for i in range(4)]
    assert [t.genome for t in trials][: len(before)] == [t.genome for t in before]  # what was chosen stays chosen
    assert len({tuple(trial.genome) for trial in trials}) == 12
    assert all(trial.state == "complete" for trial in trials)
    assert [trial.predicted is None for trial in trials] == [True] * 4 + [False] * 8
    assert all(winner["trained"]["accuracy"] > 0 for winner in results["winners"].values())
    assert run(study, directory)["winners"] == results["winners"]
