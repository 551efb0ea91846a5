"""`pynas train`: any model, several networks, the two steps of distillation, and what is wrong in one line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import run_pynas
from train_examples import ENVIRONMENT, small, write_network

from pynas.data.config import DataConfig
from pynas.errors import PynasError
from pynas.nets.load import ModelSpec
from pynas.train.config import TrainingRecipe
from pynas.train.log import read_log
from pynas.train.models import model_for_data
from pynas.train.run import train_model
from pynas.train.two_step import TEACHER, run_names, train_models

SHORT = {"epochs": 2, "batch_size": 32, "lr": 0.01}
SET = [text for key, value in SHORT.items() for text in ("--set", f"{key}={value}")]
DATA = DataConfig(name="digits", train=256)
DIGITS = ["--data", "digits", "--data", "train=256"]
MINE = """
import torch
def make_model(classes, input_channels):
    return torch.nn.Sequential(
        torch.nn.Conv2d(input_channels, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, classes))
"""


def test_two_epochs_on_digits_reach_seventy_per_cent(tmp_path: Path) -> None:
    recipe = TrainingRecipe(epochs=2, batch_size=16, augment="none", ema_decay=0.9)
    result = train_model(ModelSpec.of(small()), recipe, DataConfig(name="digits"), tmp_path / "run")
    assert result["accuracy"] > 0.7
    assert result["test_accuracy"] > 0.7


def test_a_users_model_trains_and_its_weights_load(tmp_path: Path) -> None:
    (tmp_path / "mypackage.py").write_text(MINE)
    done = run_pynas("train", "--model", "mypackage:make_model", *DIGITS, *SET, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["mypackage.make_model"]
    assert result["directory"] == "runs/mypackage.make_model" or Path(result["directory"]).is_absolute()
    assert Path(result["curve_plot"]).read_bytes().startswith(b"\x89PNG")
    assert "images/s" in done.stderr
    assert "waiting for data" in done.stderr
    again = run_pynas("train", "--model", "mypackage:make_model", *DIGITS, *SET, "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["mypackage.make_model"]["curve"] == result["curve"]


def test_sigterm_ends_the_command_with_143_and_says_how_to_go_on(tmp_path: Path) -> None:
    write_network(tmp_path)
    command = [sys.executable, "-m", "pynas.cli", "train", "net.yaml", "--dir", "run", "--data", "digits"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while not any(tmp_path.glob("run/checkpoints/step_*.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 143
    assert "stopped by SIGTERM" in err
    assert "give the same command again" in err
    assert "Traceback" not in err


FAULTS = """
import torch
from torch import nn
def make_view():
    class View(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 10)
        def forward(self, x):
            x = self.conv(x)
            return self.linear(x.view(x.size(0), -1))
    return View()
def make_lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
def make_frozen():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
def make_raising():
    class Raising(nn.Sequential):
        def forward(self, x):
            if self.training:
                raise KeyError("only in training")
            return super().forward(x)
    return Raising(nn.Flatten(), nn.Linear(64, 10))
def make_single():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
"""


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "faults.py").write_text(FAULTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faults", raising=False)
    return tmp_path


def fault(name: str, path: Path, **settings: float) -> dict[str, object]:
    recipe = TrainingRecipe(epochs=1, **{"batch_size": 33, **settings})
    return train_model(model_for_data(f"faults:{name}", DATA), recipe, DATA, path)


@pytest.mark.filterwarnings("ignore:model faults:UserWarning")
def test_odd_models_of_users_train(faults: Path) -> None:
    """Maps that are viewed as rows, which channels_last forbids; lazy layers; one image left over for batch-norm."""
    assert fault("make_view", faults / "view")["epochs"] == 1
    first, second = (fault("make_lazy", faults / run)["curve"] for run in ("lazy", "again"))
    assert first == second
    fault("make_single", faults / "single", micro_batch=32)


@pytest.mark.filterwarnings("ignore:model faults:UserWarning")
def test_models_of_users_that_cannot_be_trained_are_told_in_one_line(faults: Path) -> None:
    with pytest.raises(PynasError, match="model faults:make_frozen: has no parameter to train"):
        fault("make_frozen", faults / "frozen")
    with pytest.raises(
        PynasError, match="model faults:make_raising: KeyError in training: 'only in training'; there is"
    ):
        fault("make_raising", faults / "raising")
    assert "Traceback" in (faults / "raising" / "error.txt").read_text()


def test_what_does_not_fit_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    specs = [ModelSpec.of(small(), name="ten"), ModelSpec.of(small(classes=5), name="five")]
    with pytest.raises(PynasError, match="five: got 5 classes, digits has 10"):
        train_models(specs, DATA, tmp_path / "out", settings=SHORT, two_step=True)
    assert not (tmp_path / "out").exists()


def test_a_winner_trains_with_the_recipe_it_brings(tmp_path: Path) -> None:
    path = write_network(tmp_path)
    recipe = {"lr": 0.02, "optimizer": "SGD", "ema": True, "dropout": 0.1, "stochastic_depth": 0.1, "mixup": 0.2}
    lines = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in {**recipe, "weight_decay": 1e-5}.items())
    path.write_text(path.read_text() + f"recipe:\n{lines}")
    settings = {"epochs": 1, "batch_size": 64}
    spec = model_for_data(str(path), DATA)
    train_models([spec], DATA, tmp_path / "run", recipe="fbnetv3_final", settings=settings | {"augment": "none"})
    trained = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert {key: trained[key] for key in recipe} == recipe
    assert (trained["lr_decay"], trained["ema_decay"], trained["epochs"]) == (0.9875, 0.99985, 1)


def test_two_steps_the_largest_teaches_all_itself_included(tmp_path: Path) -> None:
    write_network(tmp_path, "little")
    large = tmp_path / "large.yaml"
    large.write_text((tmp_path / "little.yaml").read_text().replace("name: little", "name: large").replace("24", "32"))
    done = run_pynas("train", "little.yaml", "large.yaml", "--distill", "--dir", "out", *DIGITS, *SET, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 1: large.yaml on labels" in done.stderr
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["large", "little", TEACHER]
    settings = {name: json.loads((out / name / "run.json").read_text()) for name in ("large", "little", TEACHER)}
    assert settings[TEACHER]["teacher"] is None
    for name in ("large", "little"):
        assert settings[name]["teacher"]["weights"] == str(out / TEACHER / "model.safetensors")
        assert len(settings[name]["teacher"]["weights_sha256"]) == 64
    assert settings["large"]["model"] == settings[TEACHER]["model"]
    first, second = (read_log(out / name / "log.jsonl")[0]["loss"] for name in (TEACHER, "large"))
    assert first != second
    again = run_pynas("train", "little.yaml", "large.yaml", "--distill", "--dir", "out", *DIGITS, *SET, cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_networks_of_the_zoo_fit_themselves_to_the_data_and_users_tables_do_not(tmp_path: Path) -> None:
    spec = model_for_data("fbnetv3_a", DATA)
    assert (spec.classes, spec.input_channels, spec.resolution) == (10, 1, 224)
    resnet = model_for_data("resnet18_1.4x_width", DATA, small_input=True)
    assert (resnet.classes, resnet.input_channels, resnet.resolution) == (10, 1, 8)
    mine = model_for_data(str(write_network(tmp_path, classes=7)), DATA)
    assert mine.classes == 7


def test_names_of_runs() -> None:
    specs = [ModelSpec("a/b/net.yaml"), ModelSpec("pkg.mod:make"), ModelSpec("resnet18_1.4x_width")]
    assert run_names(specs) == ["net", "pkg.mod.make", "resnet18_1.4x_width"]
    with pytest.raises(PynasError, match="network net: two trainings would share a folder"):
        run_names([ModelSpec("a/net.yaml"), ModelSpec("b/net.yaml")])


WRONG = {
    "nothing to train": ([], "train: name at least one network"),
    "unknown model": (["fbnetv9"], "no table 'fbnetv9': neither a file nor one of"),
    "unknown function": (["nowhere:make"], "nowhere"),
    "unknown recipe": (["net.yaml", "--recipe", "best"], "no recipe 'best': neither a file nor one of fbnetv3_final"),
    "unknown recipe key": (["net.yaml", "--set", "rate=1"], "recipe: rate: unknown key; allowed: epochs, batch_size"),
    "no value": (["net.yaml", "--set", "lr"], "--set 'lr': write --set KEY=VALUE"),
    "lr of zero": (["net.yaml", "--set", "lr=0"], "recipe: lr: 0: Input should be greater than 0"),
    "lr that is no number": (["net.yaml", "--set", "lr=nan"], "recipe: lr: "),
    "unknown data": (["net.yaml", "--data", "imagenet"], "--data: name: 'imagenet': Input should be 'fashion-mnist'"),
    "data that do not fit together": (
        ["net.yaml", "--data", "folder"],
        "pynas: --data: data.path: got None, folder needs the path of its images",
    ),
    "data twice": (["net.yaml", "--data", "digits", "--data", "digits"], "--data 'name=digits': name is given twice"),
    "wrong class count": (["seven.yaml", "--data", "digits"], "seven.yaml: got 7 classes, digits has 10"),
    "open choices": (["net.yaml", "--recipe", "fbnetv3_search"], "recipe fbnetv3_search: leaves open lr"),
    "a space": (["fbnetv3", "--data", "digits"], "fbnetv3"),
    "an untrained teacher": (["net.yaml", "--data", "digits", "--teacher", "."], "teacher .: has no model.safetensors"),
    "a teacher of other classes": (
        ["net.yaml", "--data", "digits", "--teacher", "seven.yaml"],
        "teacher seven.yaml: got 7 classes, digits has 10",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=list(WRONG))
def test_what_the_user_can_mend(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import pynas.cli

    write_network(tmp_path)
    write_network(tmp_path, "seven", classes=7)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pynas", "train", *arguments])
    with pytest.raises(SystemExit) as ended:
        pynas.cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert message in err
    assert err.count("pynas: ") == 1
    assert "Traceback" not in err
    assert out == ""


def test_relative_paths_of_images_are_of_where_they_were_said(tmp_path: Path) -> None:
    config = DataConfig(name="webdataset", path="shards/{0..3}.tar", test_path="/elsewhere")
    located = config.located(tmp_path)
    assert (located.path, located.test_path) == (f"{tmp_path}/shards/{{0..3}}.tar", "/elsewhere")
    assert located.validation_path is None
