"""Recipe files: the papers' recipes by name (`recipes/*.yaml`), and a user's own.

A file holds keys of `TrainingRecipe`; `base: NAME` takes over another file's; `search_space: TABLE` leaves the seven
variables of Table 2 open as that table does, for a search to choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pynas.errors import PynasError
from pynas.sections import checked, read_mapping
from pynas.space.architecture import Recipe
from pynas.space.table import Variable, read_table
from pynas.train.config import TrainingRecipe

RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    return [path.stem for path in sorted(RECIPES.glob("*.yaml"))]


def load_recipe(
    name: str | Path | None = None,
    *,
    of_network: Recipe | None = None,
    settings: Mapping[str, Any] | None = None,
) -> TrainingRecipe:
    """The recipe of a shipped name or a file; later ones win: defaults, the network's own, the file's, `settings`.

    `of_network` is the recipe that a network brings along, as a search's winner does. Raises PynasError naming file,
    key, value and what is allowed, and for variables that nothing has chosen.
    """
    values = {} if name is None else read_settings(name)
    if of_network is not None:
        values = of_network.to_dict() | {key: value for key, value in values.items() if not isinstance(value, Variable)}
    values |= settings or {}
    if left := [value for value in values.values() if isinstance(value, Variable)]:
        choices = ", ".join(f"{variable.name} ({variable.values[0]} to {variable.values[-1]})" for variable in left)
        raise PynasError(
            f"recipe {name}: leaves open {choices}: choose with --set KEY=VALUE, train a network that brings its "
            "recipe, as a search's winner does, or take a searched one such as fbnetv3_table9"
        )
    return checked(TrainingRecipe, values, "recipe" if name is None else f"recipe {name}")


def read_settings(name: str | Path, *, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys that a recipe file and its bases give; what a search is to choose stands as its table's `Variable`."""
    path = _find(name, seen[-1].parent if seen else Path())
    if path in seen:
        raise PynasError(f"{path}: base: {name!r} leads back to this file")
    values = read_mapping(path, f"a recipe is a mapping; allowed keys: {', '.join(_keys())}")
    if unknown := [key for key in values if key not in _keys()]:
        raise PynasError(f"{path}: {unknown[0]}: unknown key; allowed: {', '.join(_keys())}")
    inherited = read_settings(values.pop("base"), seen=(*seen, path)) if "base" in values else {}
    if (table := values.pop("search_space", None)) is not None:
        inherited |= dict(read_table(table).recipe or ())
    return inherited | values


def _keys() -> list[str]:
    return ["base", "search_space", *TrainingRecipe.model_fields]


def _find(name: Any, folder: Path) -> Path:
    """A file that a name or a path means; a path is read from the folder of the file it stands in."""
    text = str(name)
    if "/" not in text and (shipped := RECIPES / f"{text}.yaml").is_file():
        return shipped
    for path in (folder / text, Path(text)):
        if path.is_file():
            return path.resolve()
    raise PynasError(f"no recipe {text!r}: neither a file nor one of {', '.join(recipe_names())}")
