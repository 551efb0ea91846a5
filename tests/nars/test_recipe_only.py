"""Recipe-only search (section 4.1): the network is fixed, a table's or any torch model, and the recipe is sought."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from command_line import run_pynas
from search_examples import EXAMPLES, run

import pynas
from pynas.study.directory import StudyDirectory
from pynas.study.study import Study


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
    done = run_pynas("search", "study.yaml", "--dir", "directory", "--json", cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    winner = json.loads(done.stdout)["winners"]["any"]
    assert (winner["architecture"], winner["model"]) == (None, "mine:make_model")
    assert 0 < winner["final"]["accuracy"] <= 1
    trials = Study.open(StudyDirectory.open(tmp_path / "directory"), read_only=True).trials()
    assert len({tuple(trial.genome) for trial in trials}) == 4
    command = ["train", "--model", "mine:make_model", "--data", "digits"]
    command += ["--recipe", "directory/winners/any.yaml", "--set", "epochs=1", "--dir", "run"]
    done = run_pynas(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trained = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert {key: trained[key] for key in winner["recipe"]} == winner["recipe"]
