"""The front door: names, no torch, and errors that help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import run_pynas

import pynas

REPOSITORY = Path(__file__).parent.parent


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_name_of_the_front_door_is_there() -> None:
    assert sorted(pynas.__all__) == dir(pynas)
    for name in pynas.__all__:
        assert getattr(pynas, name).__name__ == name
    with pytest.raises(AttributeError, match=r"module 'pynas' has no attribute 'evolv'; it has "):
        pynas.evolv  # noqa: B018


def test_importing_pynas_imports_nothing_heavy() -> None:
    loaded = python("import sys, pynas; print(*sys.modules)").split()
    assert not {"torch", "numpy", "scipy", "optuna", "pydantic", "yaml"} & set(loaded)


def test_searching_with_a_predictor_needs_no_torch(tmp_path: Path) -> None:
    """A stand-in for a machine without torch: importing it fails."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import numpy as np, pynas
space = pynas.load_space("fbnetv3")
budget = pynas.Budget(flops=(400e6, 550e6), params=(None, 9e6))
genomes = space.sample(1000, budget=budget, seed=0)
rng = np.random.default_rng(0)
shapes = {{"embedding": (24, space.architecture_features), "proxy": (2, 24), "output": (1, 32)}}
shapes["hidden"] = (32, 24 + space.recipe_features)
weights = {{f"{{k}}.weight": rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}}
weights |= {{f"{{k}}.bias": np.zeros(s[0], np.float32) for k, s in shapes.items()}}
predictor = pynas.Predictor(space.fingerprint, weights, np.array([0.8, 0.05]), np.ones((2, 2)))
result = pynas.evolve(space, predictor, budget=budget, seed=0)
assert space.feasible(result.genomes, budget).all()
assert result.scores[0] >= predictor.score(space, genomes).max()
print(*space.decode(result.genomes[0]))
from pynas.nars.pool import make_pool
from pynas.study.study import Study
from pynas.nars.answers import evolve_study
from pynas.space.latency import LatencyModel
assert "torch" not in sys.modules
"""
    assert "mbpool" in python(code)


def test_a_core_that_is_not_built_says_how_to_build_it(tmp_path: Path) -> None:
    package = tmp_path / "pynas"
    package.mkdir()
    for source in (REPOSITORY / "pynas").rglob("*"):
        if source.suffix in (".py", ".yaml"):
            target = package / source.relative_to(REPOSITORY / "pynas")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    code = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.path.append({str(Path(np.__file__).parent.parent)!r})
import pynas
assert pynas.__file__.startswith({str(tmp_path)!r})
try:
    pynas.load_space("fbnetv3")
except ImportError as error:
    print(error)
"""
    # -S: without the hook of an editable installation, which would find the core of this repository.
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert "the compiled search core is not built" in done.stdout, done.stderr
    assert "pip install --no-build-isolation -e ." in done.stdout


def test_the_seams_hold() -> None:
    """Who may import whom (docs/design.md): nothing low imports anything high."""
    searches = ("nars", "fpnas", "search", "cli", "integrations")  # what knows of searching
    forbidden = {
        "space": (*searches, "predict", "study", "train", "runtime", "report", "nets"),
        "predict": (*searches, "study", "train", "runtime", "report", "nets"),
        "nets": (*searches, "predict", "study", "data", "train", "runtime", "report"),
        "data": (*searches, "space", "predict", "study", "nets", "train", "runtime", "report"),
        "ops": (*searches, "space", "predict", "study", "data", "nets", "train", "runtime", "cluster", "report"),
        "train": (*searches, "predict", "study", "runtime", "ranks", "cluster", "report"),
        "cluster": (*searches, "predict", "study", "report"),
        "ranks": (*searches, "space", "predict", "study", "data", "nets", "train", "runtime", "cluster", "report"),
        "runtime": (*searches, "space", "predict", "study", "train", "report", "nets"),
        "study": (*searches, "space", "predict", "train", "report", "nets"),
        "report": (*searches, "predict", "train", "runtime", "nets"),
        "search": ("nars", "fpnas", "predict", "cli", "integrations"),
        "nars": ("fpnas", "cli", "integrations"),
        "fpnas": ("nars", "predict", "cli", "integrations"),
        "integrations": ("fpnas", "cli", "search", "study", "nets", "data", "train", "runtime", "cluster", "report"),
    }
    found = []
    for package, others in forbidden.items():
        for path in (REPOSITORY / "pynas" / package).glob("*.py"):
            text = path.read_text()
            found += [f"{path.name} imports pynas.{other}" for other in others if f"from pynas.{other}" in text]
    assert found == []


def test_space_and_count_speak_json() -> None:
    def run(*arguments: str) -> dict[str, object]:
        done = run_pynas(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    space = run("space", "fbnetv3", "--json")
    assert space["architectures"] == "175878910771200000"
    assert space["recipes"] == "18905040"
    assert (space["resolutions"], space["variables"], space["features"]) == ("7", 36, 45)
    count = run("count", "fbnetv3_a", "--json")
    assert (count["flops"], count["params"]) == (356_598_280, 8_542_224)
    assert (count["macs"], count["parameters"]) == (355_514_328, 8_598_480)
    assert run("count", "fbnetv3_d", "--resolution", "224", "--json")["macs"] == 501_971_056


WRONG = {
    "no command": ([], "Usage"),
    "unknown table": (["space", "fbnetv9"], "pynas: no table 'fbnetv9': neither a file nor one of"),
    "a space is no network": (["count", "fbnetv3"], "pynas: fbnetv3: is a space with 36 variables, not one network"),
    "a short genome": (
        ["count", "fbnetv3", "--genome", "1,2"],
        "pynas: fbnetv3: a genome of shape (2,); allowed: (36,)",
    ),
    "no genome": (["count", "fbnetv3", "--genome", "x"], "pynas: genome 'x': write whole numbers with commas between"),
    "no study": (["evolve", "absent"], "is not the directory of a study"),
    "no report": (["report", "absent"], "is not the directory of a study"),
    "no configuration": (["search", "absent.yaml"], "pynas: absent.yaml: cannot be read: "),
    "a bad budget": (["evolve", "absent", "-b", "flop=1"], "pynas: budget: unknown cost 'flop'; allowed: flops, macs"),
    "unknown data": (["data", "imagenet"], "imagenet"),
    "unknown option": (["space", "fbnetv3", "--jsn"], "No such option"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=list(WRONG))
def test_what_the_user_can_mend_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = run_pynas(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


CONFIG = "space: fbnetv3_28\nbudgets: {any: {flops: 1M:4M}}\n"
WRONG_CONFIG = {
    "unknown key": ("sedd: 1\n", "sedd: unknown key; allowed: method, space, pin, seed, budgets, "),
    "nested key": ("training: {epoch: 3}\n", "training.epoch: unknown key; allowed: epochs, batch_size, "),
    "predictor key": ("predictor: {embeding: 3}\n", "predictor.embeding: "),
    "value": ("iterations: 0\n", "iterations: 0: Input should be greater than or equal to 1"),
    "type": ("candidates: many\n", "candidates: 'many': Input should be a valid integer"),
    "predictor value": ("predictor: {hidden: 0}\n", "predictor hidden: 0; allowed: at least 1"),
    "evolution mode": ("evolution: {mode: fast}\n", "evolution mode 'fast'; allowed: default, paper"),
    "pool budget": ("pool: {budget: {flop: 3}}\n", "pool.budget: budget: unknown cost 'flop'"),
    "impossible budget": ("pool: {budget: {flops: 1:2}}\n", "budget pool.budget: fbnetv3_28: "),
    "batch": (
        "training: {batch_size: 99}\ndata: {name: digits, train: 50}\n",
        "training.batch_size: 99; allowed: up to the 50 images",
    ),
    "key twice": ("seed: 1\nseed: 2\n", "key 'seed' is given twice"),
    "key that is no word": ("1: 2\n", "key 1 is no word"),
    "evolution value": (
        "evolution: {keep: 9223372036854775808}\n",
        "evolution keep: 9223372036854775808; allowed: whole",
    ),
    "data": ("data: {name: mnist}\n", "data.name: 'mnist': Input should be 'fashion-mnist', 'digits'"),
    "pin": ("pin: {emma: true}\n", "pin: unknown variable 'emma' (did you mean ema?)"),
    "no YAML": ("x: [\n", "not valid YAML"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_CONFIG.values(), ids=list(WRONG_CONFIG))
def test_a_wrong_study_is_refused_before_anything_is_done(text: str, message: str, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(CONFIG + text)
    done = run_pynas("search", str(study))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "study" / "journal.log").exists()
