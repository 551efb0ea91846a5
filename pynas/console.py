"""What commands print: JSON, winners, trainings and answers as people read them."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_json(value: Any) -> None:
    print(json.dumps(value))


def describe_answer(answer: dict[str, Any]) -> str:
    predicted = "" if answer["predicted"] is None else f"predicted {100 * answer['predicted']:.2f}%"
    if (trained := answer["trained"]) is None:
        return f"{predicted} at the early-stop epoch, not trained"
    return f"trained: {100 * trained['accuracy']:.2f}% after {trained['epochs']} epochs" + (
        predicted and f", {predicted}"
    )


def describe_training(result: dict[str, Any]) -> str:
    text = f"validation {100 * result['accuracy']:.2f}%"
    if result["raw_accuracy"] != result["accuracy"]:
        text += f" (raw weights {100 * result['raw_accuracy']:.2f}%)"
    if result["test_accuracy"] is not None:
        text += f", test {100 * result['test_accuracy']:.2f}%"
    if result["bad_images"]:
        text += f", {len(result['bad_images'])} images could not be read"
    return f"{text}, after {result['epochs']} epochs in {result['seconds']:.0f} s"


def print_winners(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from pynas.report.tables import winner_rows

    rows = winner_rows(results)
    for row in rows:
        print(f"\n{row['name']} ({row['bounds']}): {row['flops']} FLOPs, {row['params']} params")
        print(f"{row['architecture']}\n{row['recipe']}")
    headings = {"name": "budget", "bounds": "bounds", "flops": "FLOPs", "params": "params", "predicted": "predicted %"}
    if results.get("method") == "fpnas":
        headings["predicted"] = "in the supernet %"
    else:
        headings["trained"] = "in the search %"
    headings |= {"accuracy": "validation %", "test": "test %"}
    headings |= {"baseline_accuracy": "random: validation %", "baseline_test": "random: test %"}
    table = Table(
        *headings.values(), title="winners, and a random network of the same budget trained for the same length"
    )
    for row in rows:
        table.add_row(*(row[key] for key in headings))
    print()
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def choices_of(variable: Any) -> str:
    values = variable.values
    if variable.kind == "list":
        return f"[{', '.join(map(str, values))}]"
    return f"({values[0]}, {values[-1]}), {len(values)} values"
