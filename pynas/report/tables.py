"""The numbers of a study as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pynas.space.architecture import Architecture, Recipe
from pynas.space.budget import Budget, format_amount


def percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.2f}"


def correlation(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.2f}"


def winner_rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """One line a budget: bounds, predicted and measured accuracy, costs, and the random baseline beside it."""
    rows = []
    for name, winner in results.get("winners", {}).items():
        final, baseline = winner.get("final") or {}, winner.get("baseline") or {}
        rows.append(
            {
                "name": name,
                "bounds": str(Budget.of(winner["budget"])),
                "predicted": percent(winner["predicted"]),
                "accuracy": percent(final.get("accuracy")),
                "test": percent(final.get("test_accuracy")),
                "flops": format_amount(winner["costs"]["flops"]),
                "params": format_amount(winner["costs"]["params"]),
                "baseline_accuracy": percent(baseline.get("accuracy")),
                "baseline_test": percent(baseline.get("test_accuracy")),
                "architecture": _network(winner),
                "recipe": str(Recipe.from_dict(winner["recipe"])) if winner["recipe"] else "",
            }
        )
    return rows


def _network(winner: Mapping[str, Any]) -> str:
    if winner["architecture"] is None:
        return f"model {winner['model']}"
    return str(Architecture.from_dict(winner["architecture"]))
