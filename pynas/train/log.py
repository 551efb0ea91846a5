"""What a training leaves to read: one JSON line an epoch, and TensorBoard's scalars where it is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCALARS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "accuracy": "validation/accuracy",
    "raw_accuracy": "validation/raw_accuracy",
    "validation_loss": "validation/loss",
    "images_per_second": "speed/images_per_second",
    "data_wait": "speed/data_wait",
}
"""Keys of an epoch's row and the TensorBoard tags they go under."""


class TrainingLog:
    """``log.jsonl`` is append-only: a row an epoch, and a line whenever the training is resumed or stopped."""

    def __init__(self, path: Path, tensorboard: Path, history: Sequence[Mapping[str, Any]]) -> None:
        """Opens the log of a training that has come as far as `history`; rows that a crash kept out are put in."""
        self.path = path
        recorded = {row["epoch"] for row in read_log(path) if row.get("event") == "epoch"}
        for row in history:
            if row["epoch"] not in recorded:
                self._append(row)
        self._writer = _tensorboard(tensorboard, history[-1]["step"] + 1 if history else 0)

    @property
    def has_tensorboard(self) -> bool:
        return self._writer is not None

    def epoch(self, row: Mapping[str, Any]) -> None:
        self._append(row)
        if self._writer is not None:
            for key, tag in SCALARS.items():
                if row.get(key) is not None:
                    self._writer.add_scalar(tag, row[key], row["step"])
            self._writer.flush()

    def event(self, name: str, **values: Any) -> None:
        self._append({"event": name, **values})

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _append(self, row: Mapping[str, Any]) -> None:
        with open(self.path, "ab") as file:
            if file.tell() and not _ends_in_newline(self.path):
                file.write(b"\n")  # of a process that was killed in the middle of a line
            file.write(json.dumps(row).encode() + b"\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``log.jsonl``; none where it is absent. A line that a crash cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _ends_in_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _tensorboard(folder: Path, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=purge_step)
