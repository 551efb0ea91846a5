"""The curve of one training, drawn from its log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pynas.files import placed


def draw_curve(log: Iterable[Mapping[str, Any]], out: Path) -> None:
    """Draw accuracy (evaluated weights, and raw ones beside an average), loss and learning rate by epoch as a PNG.

    `log`: the rows of a training's ``log.jsonl``; of an epoch that stands there twice the last counts. Nothing is drawn
    where no epoch is finished.
    """
    rows = {row["epoch"]: row for row in log if row.get("event") == "epoch"}
    if not rows:
        return
    epochs = sorted(rows)

    def column(key: str, scale: float = 1.0) -> list[float]:
        return [scale * rows[epoch][key] for epoch in epochs]

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    marker = "o" if len(epochs) < 40 else None
    evaluated, raw = column("accuracy", 100), column("raw_accuracy", 100)
    if evaluated != raw:
        accuracy.plot(epochs, raw, color="0.6", marker=marker, markersize=3, label="raw weights")
    label = "EMA of the weights" if evaluated != raw else "weights"
    accuracy.plot(epochs, evaluated, color="tab:blue", marker=marker, markersize=3, label=label)
    accuracy.set(xlabel="epoch", ylabel="validation accuracy, %")
    accuracy.legend(frameon=False)
    loss.plot(epochs, column("loss"), color="tab:red", marker=marker, markersize=3, label="training loss")
    loss.plot(epochs, column("validation_loss"), color="tab:blue", marker=marker, markersize=3, label="validation loss")
    loss.set(xlabel="epoch", ylabel="loss, nats")
    rate = loss.twinx()
    rate.plot(epochs, column("lr"), color="0.75", linestyle="--", label="learning rate")
    rate.set(ylabel="learning rate")
    lines = [*loss.get_lines(), *rate.get_lines()]
    loss.legend(lines, [str(line.get_label()) for line in lines], frameon=False)
    for axes in (accuracy, loss):
        axes.grid(alpha=0.2)
        axes.xaxis.get_major_locator().set_params(integer=True)
    with placed(out) as temporary:
        figure.savefig(temporary, dpi=120)
