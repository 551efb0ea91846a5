"""Mixup and augmentation: what they keep, what they change, and that their generator decides all."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pynas.data.augment import mixup, resize, shift_and_flip


def batch(n: int = 6, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 2, size, size, generator=generator)
    return images, functional.one_hot(torch.arange(n) % 3, 3).float()


def test_mixup_mixes_images_and_targets_with_one_weight() -> None:
    images, targets = batch()
    mixed, mixed_targets = mixup(images, targets, 0.4, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    weight, partner = float(rng.beta(0.4, 0.4)), torch.from_numpy(rng.permutation(6))
    torch.testing.assert_close(mixed, weight * images + (1 - weight) * images[partner])
    torch.testing.assert_close(mixed_targets, weight * targets + (1 - weight) * targets[partner])
    torch.testing.assert_close(mixed_targets.sum(1), torch.ones(6))
    torch.testing.assert_close(mixed.sum(0), images.sum(0))  # a permutation loses nothing of the batch


def test_mixup_of_zero_is_no_mixup_and_draws_nothing() -> None:
    images, targets = batch()
    rng = np.random.default_rng(3)
    mixed, mixed_targets = mixup(images, targets, 0.0, rng)
    assert mixed is images
    assert mixed_targets is targets
    assert rng.random() == np.random.default_rng(3).random()


@pytest.mark.parametrize("m", [0.2, 1.0])
def test_the_weight_is_beta_distributed(m: float) -> None:
    images, targets = torch.zeros(2, 1, 1, 1), torch.eye(2)
    rng = np.random.default_rng(0)
    weights = [mixup(images, targets, m, rng)[1][0] for _ in range(2000)]
    mixed = np.array([max(weight.tolist()) for weight in weights if 0 < weight.max() < 1])
    # Beta(m, m) has variance 1 / (4 (2m + 1)), which its larger side keeps as the mean square distance from 1/2.
    # Half of the permutations of two leave all in place and mix nothing; they are not in `mixed`.
    assert np.mean((mixed - 0.5) ** 2) == pytest.approx(1 / (4 * (2 * m + 1)), rel=0.1)


def test_shift_and_flip_moves_by_at_most_shift_and_mirrors_half() -> None:
    image = torch.zeros(400, 1, 7, 7)
    image[:, :, 3, 3:5] = torch.tensor([1.0, 2.0])
    moved = shift_and_flip(image, 2, True, np.random.default_rng(0))
    ones, twos = (moved == 1.0).nonzero(), (moved == 2.0).nonzero()
    assert len(ones) == len(twos) == 400
    assert set((ones[:, 2] - 3).tolist()) == {-2, -1, 0, 1, 2}
    mirrored = ones[:, 3] > twos[:, 3]
    assert 0.4 < mirrored.float().mean().item() < 0.6
    plain = shift_and_flip(image, 2, False, np.random.default_rng(0))
    assert ((plain == 1.0).nonzero()[:, 3] < (plain == 2.0).nonzero()[:, 3]).all()


def test_no_shift_and_no_flip_change_nothing() -> None:
    images, _ = batch()
    assert torch.equal(shift_and_flip(images, 0, False, np.random.default_rng(0)), images)


def test_the_rim_repeats_the_border() -> None:
    images = torch.arange(9.0).view(1, 1, 3, 3)
    for seed in range(20):
        moved = shift_and_flip(images, 1, False, np.random.default_rng(seed))
        assert set(moved.flatten().tolist()) <= set(range(9))


def test_resize() -> None:
    images, _ = batch(size=8)
    assert resize(images, 8) is images
    assert resize(images, 5).shape == (6, 2, 5, 5)
    torch.testing.assert_close(resize(torch.full((1, 1, 8, 8), 3.0), 12), torch.full((1, 1, 12, 12), 3.0))
