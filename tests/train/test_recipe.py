"""Recipe files: the papers' recipes by name, bases, a network's own recipe, and what is wrong in one line."""

from pathlib import Path

import pytest

from pynas.errors import PynasError
from pynas.space.architecture import Recipe
from pynas.space.table import Variable, read_table
from pynas.train.config import SEARCHED, TrainingConfig, TrainingRecipe
from pynas.train.recipe import load_recipe, read_settings, recipe_names

WINNER = Recipe(lr=0.02, optimizer="SGD", ema=False, dropout=0.3, stochastic_depth=0.2, mixup=0.1, weight_decay=1e-5)


def test_the_papers_recipes_are_shipped() -> None:
    assert recipe_names() == [
        "fbnetv3_final",
        "fbnetv3_search",
        "fbnetv3_table9",
        "fpnas_final",
        "table1_recipe1",
        "table1_recipe2",
    ]


def test_table_9_in_the_final_training() -> None:
    recipe = load_recipe("fbnetv3_table9")
    assert recipe.searched == Recipe(
        lr=0.026, optimizer="RMSProp", ema=True, dropout=0.17, stochastic_depth=0.09, mixup=0.19, weight_decay=7e-6
    )
    assert (recipe.epochs, recipe.warmup_epochs, recipe.lr_decay, recipe.batch_size) == (400, 5, 0.9875, 256)
    assert (recipe.ema_decay, recipe.batch_norm_weight_decay, recipe.batch_norm_momentum) == (0.99985, 0, 0.9)
    assert (recipe.augment, recipe.distillation, recipe.scale_lr_by_nodes) == ("autoaugment", 0.8, True)


@pytest.mark.parametrize(("name", "epochs"), [("table1_recipe1", 30), ("table1_recipe2", 90)])
def test_the_recipes_of_table_1(name: str, epochs: int) -> None:
    recipe = load_recipe(name)
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (epochs, 256, 0.1, 4e-5)
    assert (recipe.optimizer, recipe.schedule) == ("SGD", "cosine")
    assert (recipe.dropout, recipe.stochastic_depth, recipe.mixup, recipe.ema) == (0, 0, 0, False)


def test_the_final_training_of_fp_nas() -> None:
    recipe = load_recipe("fpnas_final")
    assert (recipe.epochs, recipe.optimizer, recipe.momentum, recipe.lr, recipe.lr_decay) == (
        420,
        "RMSProp",
        0.9,
        0.2,
        0.9875,
    )


def test_the_searchable_recipe_of_table_2_is_the_space_s_own_and_has_to_be_chosen() -> None:
    settings = read_settings("fbnetv3_search")
    table = dict(read_table("fbnetv3").recipe or ())
    assert {key: settings[key] for key in SEARCHED} == table
    assert all(isinstance(value, Variable) for value in table.values())
    assert (settings["epochs"], settings["lr_decay"]) == (150, 0.963)
    with pytest.raises(PynasError, match=r"recipe fbnetv3_search: leaves open lr \(0\.02 to 0\.03\), optimizer"):
        load_recipe("fbnetv3_search")
    assert load_recipe("fbnetv3_search", of_network=WINNER).searched == WINNER


def test_later_ones_win() -> None:
    assert load_recipe("fbnetv3_final", of_network=WINNER).searched == WINNER
    assert load_recipe("fbnetv3_table9", of_network=WINNER).lr == 0.026
    assert load_recipe("fbnetv3_table9", of_network=WINNER, settings={"lr": 0.5}).lr == 0.5
    assert load_recipe() == TrainingRecipe()


def test_a_base_in_a_study_and_in_a_file_of_ones_own(tmp_path: Path) -> None:
    study = TrainingConfig(base="fbnetv3_search", epochs=10)
    assert (study.epochs, study.lr_decay, study.augment) == (10, 0.963, "autoaugment")
    (tmp_path / "mine.yaml").write_text("base: theirs.yaml\nlr: 0.5\n")
    (tmp_path / "theirs.yaml").write_text("base: fbnetv3_table9\nlr: 0.1\nmixup: 0.3\n")
    mine = load_recipe(tmp_path / "mine.yaml")
    assert (mine.lr, mine.mixup, mine.dropout, mine.epochs) == (0.5, 0.3, 0.17, 400)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 0\n", r"lr: 0: Input should be greater than 0"),
        ("lr: .nan\n", r"lr: nan: Input should be a finite number"),
        ("learning_rate: 1\n", r"learning_rate: unknown key; allowed: base, search_space, epochs"),
        ("optimizer: Adam\n", r"optimizer: 'Adam': Input should be 'RMSProp' or 'SGD'"),
        ("epochs: 1.5\n", r"epochs: 1\.5"),
        ("- 1\n", r"a recipe is a mapping; allowed keys: base"),
        ("lr: 1\nlr: 2\n", r"not valid YAML: key 'lr' is given twice"),
        ("base: absent\n", r"no recipe 'absent': neither a file nor one of fbnetv3_final"),
        ("base: wrong.yaml\n", r"base: '\S+wrong.yaml' leads back to this file|leads back to this file"),
        ("search_space: absent\n", r"no table 'absent'"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(PynasError, match=message) as caught:
        load_recipe(tmp_path / "wrong.yaml")
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_told_the_shipped_ones() -> None:
    with pytest.raises(
        PynasError, match="no recipe 'fbnetv9': neither a file nor one of fbnetv3_final, fbnetv3_search"
    ):
        load_recipe("fbnetv9")
