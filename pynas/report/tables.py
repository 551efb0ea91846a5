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
        trained = winner.get("trained") or {}
        rows.append(
            {
                "name": name,
                "bounds": str(Budget.of(winner["budget"])),
                "predicted": percent(winner["predicted"]),
                "trained": percent(trained["accuracy"]) if trained else "not trained",
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


def search_rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """One line a search in a supernet: how far it is, what it drew and took, and where its distribution stands."""
    rows = []
    for name, search in results.get("searches", {}).items():
        history = search["history"]
        last = history[-1] if history else {}
        rows.append(
            {
                "name": name,
                "targets": ", ".join(f"{cost} {format_amount(t)}" for cost, t in search.get("targets", {}).items()),
                "epochs": f"{len(history)}/{results['epochs']}",
                "samples": str(sum(row["samples"] for row in history)),
                "seconds": f"{sum(row['seconds'] for row in history):.0f}",
                "entropy": f"{last['entropy']:.2f}" if last else "–",
                "accuracy": percent(last.get("accuracy")),
            }
        )
    return rows


def _network(winner: Mapping[str, Any]) -> str:
    if winner["architecture"] is None:
        return f"model {winner['model']}"
    return str(Architecture.from_dict(winner["architecture"]))
