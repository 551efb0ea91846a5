"""The figures of an FP-NAS study: Figures 3 and 4 of the paper, and what the distributions came to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from pynas.report.figures import COLOURS, new_figure

Searches = Mapping[str, Mapping[str, Any]]
"""``results["searches"]``: by budget, `history` from the first epoch on, and the rest once the search is finished."""


def by_epoch(searches: Searches, value: Callable[[Mapping[str, Any]], float], label: str) -> go.Figure:
    """A number of every epoch, from its row of the history; a line a search."""
    figure = new_figure("epoch", label)
    for name, search in searches.items():
        rows = search["history"]
        figure.add_scatter(x=[r["epoch"] for r in rows], y=[value(r) for r in rows], mode="lines", name=name)
    return figure


def entropy(searches: Searches) -> go.Figure:
    """Of the distribution after each epoch (Fig. 3 and 4a)."""
    figure = by_epoch(searches, lambda row: row["entropy"], "entropy (nats)")
    return figure.update_yaxes(rangemode="tozero")


def sample_count(searches: Searches) -> go.Figure:
    """K, the architectures a step drew, on average over each epoch."""
    figure = by_epoch(searches, lambda row: row["samples"] * row["epoch"] / row["step"], "K, architectures a step")
    return figure.update_yaxes(rangemode="tozero")


def mode_accuracy(searches: Searches) -> go.Figure:
    """Of each epoch's mode with the supernet's weights."""
    return by_epoch(searches, lambda row: 100 * row["accuracy"], "accuracy (%)")


def expected_cost(searches: Searches, cost: str) -> go.Figure:
    """The mean cost of the architectures drawn in an epoch, and the target of the hinge (section 3.4)."""
    figure = new_figure("epoch", f"mean {cost} of the architectures drawn")
    for number, (name, search) in enumerate(searches.items()):
        colour = COLOURS[number % len(COLOURS)]
        rows = search["history"]
        line = {"color": colour}
        figure.add_scatter(
            x=[r["epoch"] for r in rows], y=[r["costs"][cost] for r in rows], mode="lines", name=name, line=line
        )
        if target := search.get("targets", {}).get(cost):
            figure.add_hline(y=target, line_dash="dash", line_color=colour, annotation_text=f"target, {name}")
    return figure


def distribution(
    marginals: Mapping[str, Sequence[float]], choices: Mapping[str, Sequence[Any]], mode: Sequence[int]
) -> go.Figure:
    """The probability of every choice of every variable: a row a variable, in the order of the table's layers.

    mode: the genome whose choices are marked.
    """
    chosen = dict(zip(choices, mode, strict=True))
    names = list(marginals)[::-1]  # a heat map begins at the bottom
    width = max(map(len, marginals.values()))

    def row(values: Sequence[Any], nothing: Any) -> list[Any]:
        return [*values, *[nothing] * (width - len(values))]

    def texts(name: str) -> list[str]:
        return [f"<b>{c}</b>" if i == chosen[name] else str(c) for i, c in enumerate(choices[name])]

    figure = new_figure("choice", "", height=140 + 22 * len(names), margin={"l": 130, "r": 20, "t": 20, "b": 55})
    figure.add_heatmap(
        z=[row(marginals[name], None) for name in names],
        y=names,
        text=[row(texts(name), "") for name in names],
        texttemplate="%{text}",
        zmin=0,
        zmax=1,
        colorscale="Blues",
        hovertemplate="%{y} = %{text}: %{z:.3f}<extra></extra>",
        colorbar={"title": {"text": "probability", "side": "right"}},
        xgap=1,
        ygap=1,
    )
    layers = [name.partition(".")[0] for name in names]
    for i in range(1, len(layers)):
        if layers[i] != layers[i - 1]:
            figure.add_hline(y=i - 0.5, line_width=2, line_color="#555")
    figure.update_xaxes(showticklabels=False)
    figure.update_yaxes(dtick=1)
    return figure
