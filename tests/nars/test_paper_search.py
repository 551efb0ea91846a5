"""`selection: paper`: Algorithm 1 as the paper has it, on digits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import run_pynas
from search_examples import EXAMPLES, run, trainings

import pynas
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    shutil.copy(EXAMPLES / "tiny.yaml", folder)
    (folder / "study.yaml").write_text("selection: paper\n" + (EXAMPLES / "study.yaml").read_text())
    return folder / "study.yaml"


def test_the_papers_search_evolves_its_winners_from_the_mlp(study: Path) -> None:
    directory = study.parent / "directory"
    results = run(study, directory)
    assert set(results) >= {"pretrain", "evolution", "early_stop"}
    assert {"mlp", "ridge"} <= set(results["iterations"][1]["cross_validation"])
    for winner in results["winners"].values():
        assert winner["trained"] is None
        assert 0 < winner["final"]["test_accuracy"] <= 1
    trials = Study.open(StudyDirectory.open(directory), read_only=True).trials()
    assert [trial.key for trial in trials] == [f"{t}/{i}" for t in (1, 2) for i in range(4)]
    # One from each of four equal parts of the FLOP range.
    space = pynas.load_space(EXAMPLES / "tiny.yaml")
    flops = space.costs(np.array([trial.genome for trial in trials[:4]], np.uint8))["flops"]
    assert (np.diff(flops) > 0).all()
    before = trainings(directory)
    assert run(study, directory)["winners"] == results["winners"]
    assert trainings(directory) == before
    # Another budget: trained before it is given, as well.
    done = run_pynas("evolve", str(directory), "--json", "--train", "1", "--budget", "flops=40k:80k", timeout=240)
    assert json.loads(done.stdout)["answers"][0]["trained"]["epochs"] == results["early_stop"]["epoch"]


def test_what_belongs_to_the_other_selection_is_refused(study: Path) -> None:
    for key, value in {"caps": "3", "asynchronous": "true"}.items():
        other = study.with_name("other.yaml")
        other.write_text(f"{key}: {value}\n" + study.read_text())
        done = run_pynas("search", str(other), "--dir", str(study.parent / "other"))
        assert done.returncode == 2
        assert f"{key}: " in done.stderr
        assert "allowed with selection: aimed alone" in done.stderr
        assert done.stderr.count("\n") == 1
