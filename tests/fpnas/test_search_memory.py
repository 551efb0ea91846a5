"""What a step of the search holds at its peak: the bytes of all tensors that it makes, counted as they come and go."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pynas
from pynas.data.batches import MEMORY_FORMAT, Batch, arranged
from pynas.fpnas.config import SupernetConfig
from pynas.fpnas.search import Search
from pynas.space.space import Space

Live: Any = run_path(str(Path(__file__).parents[2] / "benchmarks" / "live.py"))["Live"]
FEW, MANY = (pynas.load_space(name) for name in ("fbnetv2_f_28", "fbnetv2_fpp_28"))


def largest() -> NDArray[np.uint8]:
    """The genome of the largest of FEW."""
    last = [np.argmax([v if isinstance(v, int | float) else 0 for v in variable.values]) for variable in FEW.variables]
    return np.array(last, np.uint8)


def in_many(genomes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same architectures among those of MANY, which has more choices of attention."""
    found = np.array(genomes)
    for i, (few, many) in enumerate(zip(FEW.variables, MANY.variables, strict=True)):
        found[:, i] = [many.values.index(few.values[choice]) for choice in genomes[:, i]]
    return found


def steps(
    space: Space, genomes: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, count: int = 1
) -> tuple[Any, Search]:
    """Steps of these architectures."""
    config = SupernetConfig(epochs=2, warmup_epochs=0, distribution="factorised", batch_size=32, lr=0.01)
    search = Search(space, config, {}, steps_per_epoch=9, seed=0, device=torch.device("cpu"))
    monkeypatch.setattr(search.distribution, "sample", lambda *_: genomes)
    monkeypatch.setattr("pynas.fpnas.search.sample_count", lambda *_: len(genomes))
    random = torch.Generator().manual_seed(0)
    images = arranged(torch.randn(32, 1, 28, 28, generator=random), MEMORY_FORMAT)
    batch = Batch(images, torch.randint(10, (32,), generator=random))
    with Live([*search.supernet.parameters(), images, batch.labels, search.distribution.alpha]) as live:
        for _ in range(count):
            assert len(search.update(batch, batch).losses) == len(genomes)
    return live, search


def test_peak_memory_grows_neither_with_choices_nor_with_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    one = largest()[None]
    some = np.concatenate([FEW.sample(2, seed=0), one, one])  # twice: the second beside gradients of all its weights
    assert MANY.size["architectures"] > 10 * FEW.size["architectures"]
    alone, search = steps(FEW, one, monkeypatch)
    weights = sum(weight.numel() * weight.element_size() for weight in search.supernet.parameters())
    assert alone.peak > 4 * weights  # or little would be told of what the architectures hold

    few, _ = steps(FEW, some, monkeypatch)
    many, _ = steps(MANY, in_many(some), monkeypatch)
    assert many.peak == pytest.approx(few.peak, rel=0.002)
    # The sum of the gradients of the others; no more for more architectures.
    assert alone.peak < few.peak <= alone.peak + weights
    twice, _ = steps(FEW, np.concatenate([some, some]), monkeypatch)
    assert twice.peak == pytest.approx(few.peak, rel=0.002)


def test_a_step_leaves_momentum_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    live, search = steps(FEW, np.concatenate([FEW.sample(1, seed=0), largest()[None]]), monkeypatch, count=2)
    assert all(weight.grad is None for weight in search.supernet.parameters())
    momentum = [state["momentum_buffer"] for state in search.optimizer.state.values()]
    left = sum(buffer.untyped_storage().nbytes() for buffer in momentum)
    assert 0 < left <= live.now < 1.02 * left  # beside alpha's gradient and moments
