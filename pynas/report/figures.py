"""The figures of a study, as plotly figures. They read a study's trials and results, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

if TYPE_CHECKING:
    from pynas.study.trials import Trial

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac")
_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "height": 420,
    "margin": {"l": 70, "r": 20, "t": 20, "b": 55},
    "legend": {"orientation": "h", "y": 1.08, "x": 0},
    "colorway": list(COLOURS),
}


def new_figure(x: str, y: str, **layout: Any) -> go.Figure:
    figure = go.Figure(layout=_LAYOUT | layout)
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def complete(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete"]


def accuracy_against_flops(trials: Sequence[Trial], at_epoch: int) -> go.Figure:
    """Every trained candidate at the same epoch, by iteration, with the front of those that nothing beats."""
    from pynas._core import pareto_front

    done = complete(trials)
    figure = new_figure("MFLOPs", f"validation accuracy at epoch {at_epoch} (%)")
    for iteration in sorted({trial.iteration for trial in done}):
        chosen = [trial for trial in done if trial.iteration == iteration]
        figure.add_scatter(
            x=[trial.costs["flops"] / 1e6 for trial in chosen],
            y=[100 * trial.curve[at_epoch - 1] for trial in chosen],
            text=[f"candidate {trial.key}" for trial in chosen],
            mode="markers",
            name=f"iteration {iteration}",
            marker={"size": 9, "color": COLOURS[(iteration - 1) % len(COLOURS)]},
        )
    if done:
        points = np.array([[trial.costs["flops"] / 1e6, 100 * trial.curve[at_epoch - 1]] for trial in done])
        front = points[pareto_front(np.ascontiguousarray(points * [1, -1]))]
        front = front[np.argsort(front[:, 0])]
        line = {"color": "#333", "dash": "dot", "shape": "hv"}
        figure.add_scatter(x=front[:, 0], y=front[:, 1], mode="lines", name="front", line=line)
    return figure


MODEL_NAMES = {"mlp": "MLP", "ridge": "ridge", "gaussian_process": "Gaussian process"}


def predicted_against_measured(cross_validation: Mapping[str, Any]) -> go.Figure:
    """Out-of-fold predictions of each model against what was measured."""
    figure = new_figure("measured accuracy (%)", "predicted out of fold (%)")
    measured = 100 * np.array(cross_validation["measured"])
    for key in cross_validation.get("models", ("mlp", "ridge")):
        name = MODEL_NAMES.get(key, key)
        figure.add_scatter(
            x=measured,
            y=100 * np.array(cross_validation[f"{key}_predicted"]),
            mode="markers",
            name=f"{name} (Kendall tau {_number(cross_validation[key])})",
        )
    ends = [measured.min(), measured.max()]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line={"color": "#999", "dash": "dash"})
    return figure


def rank_correlation_by_epoch(early_stop: Mapping[str, Any]) -> go.Figure:
    """Fig. 5: rank correlation of each epoch's accuracy with the final one, the threshold and the chosen epoch."""
    correlation = early_stop["correlation"]
    figure = new_figure("epoch", "Spearman rank correlation with the final accuracy")
    epochs = list(range(1, len(correlation) + 1))
    figure.add_scatter(x=epochs, y=correlation, mode="lines+markers", name="first iteration")
    figure.update_xaxes(tickmode="array", tickvals=epochs[:: max(1, len(epochs) // 15)])
    threshold = early_stop["threshold"]
    figure.add_hline(y=threshold, line_color="#17becf", annotation_text=f"threshold {threshold}")
    figure.add_vline(x=early_stop["epoch"], line_dash="dot", annotation_text=f"stop at epoch {early_stop['epoch']}")
    return figure


def accuracy_by_iteration(trials: Sequence[Trial], at_epoch: int) -> go.Figure:
    """Fig. 6: how the accuracy of the sampled candidates is distributed in each iteration."""
    figure = new_figure("", f"validation accuracy at epoch {at_epoch} (%)", showlegend=False)
    done = complete(trials)
    for iteration in sorted({trial.iteration for trial in done}):
        accuracies = [100 * trial.curve[at_epoch - 1] for trial in done if trial.iteration == iteration]
        label = f"iteration {iteration}" + (" (random)" if iteration == 1 else "")
        figure.add_box(y=accuracies, name=label, boxpoints="all", jitter=0.4, pointpos=0)
    return figure


def evolution_history(evolution: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Best predicted accuracy by scored children, for each budget, in the restart that won."""
    figure = new_figure("scored children", "best predicted accuracy (%)")
    for name, run in evolution.items():
        history = {key: np.array(values) for key, values in run["history"].items()}
        winner = history["restart"][np.argmax(history["best"])]
        of_winner = history["restart"] == winner
        figure.add_scatter(
            x=history["evaluations"][of_winner],
            y=100 * history["best"][of_winner],
            mode="lines+markers",
            name=name,
        )
    return figure


def proxy_fit(pretrain: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Fig. 4 (a) and (b): statistics predicted by the proxy head against the true ones, on the held-out pool."""
    figures = {}
    for name, r2 in pretrain["r2"].items():
        figure = new_figure(f"true {name} (M)", f"predicted {name} (M)", height=340)
        true, predicted = (np.array(pretrain[side][name]) / 1e6 for side in ("measured", "predicted"))
        figure.add_scatter(x=true, y=predicted, mode="markers", marker={"size": 5}, name=f"R² {_number(r2)}")
        figure.update_layout(showlegend=True)
        figures[name] = figure
    return figures


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"
