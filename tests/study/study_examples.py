"""Trials to record, for the tests and the processes they start."""

from __future__ import annotations

from typing import Any

from pynas.study.trials import Trial

DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "resolution": {"low": 224, "high": 272, "step": 8},
    "p": {"low": 0.1, "high": 0.31, "step": 0.01},
    "optimizer": {"choices": ["RMSProp", "SGD"]},
    "stage2.c": {"choices": [16, 24, 32]},
    "lr": {"low": 20, "high": 30},
    "wd": {"low": 6.0, "high": 21.0},
}


def trial(iteration: int, index: int, **changes: Any) -> Trial:
    values: dict[str, Any] = {
        "iteration": iteration,
        "index": index,
        "genome": [index % 7, 3, index % 2, 1, 0, 2],
        "epochs": 4,
        "seed": 1000 * iteration + index,
        "costs": {"flops": 2**40 + index, "macs": 2**39, "params": 5_000_000 - index, "parameters": 5_100_000},
        "predicted": None if iteration == 0 else 0.5,
    }
    return Trial(**{**values, **changes})


def params(index: int) -> dict[str, Any]:
    return {
        "resolution": 224 + 8 * (index % 7),
        "p": 0.1 + 0.01 * (index % 20),
        "optimizer": ["RMSProp", "SGD"][index % 2],
        "stage2.c": [16, 24, 32][index % 3],
        "lr": 20 + index % 11,
        "wd": 7.5,
    }


def result(index: int, epochs: int = 4) -> dict[str, Any]:
    curve = [round(0.1 * epoch + 0.001 * index, 6) for epoch in range(1, epochs + 1)]
    return {"accuracy": curve[-1], "curve": curve, "epochs": epochs, "seconds": 1.5, "test_accuracy": None}
