"""Where a training runs."""

from __future__ import annotations

import torch

from pynas.errors import PynasError


def choose_device(name: str) -> torch.device:
    """The device for `training.device`; PynasError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise PynasError("training.device: got cuda, torch finds no CUDA device here; allowed are cpu and auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")
