"""Splits: disjoint, stratified, nested, the same every time; and sizes that are not there."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pynas.data.config import DataConfig
from pynas.data.memory import load, load_test, stratified_order
from pynas.errors import PynasError


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_digits_are_split_into_disjoint_parts_that_hold_all_of_it() -> None:
    dataset = load(DataConfig(name="digits"))
    test_images, test_labels = load_test(DataConfig(name="digits"))
    assert (len(dataset.train_labels), len(dataset.validation_labels), len(test_labels)) == (1437, 180, 180)
    parts = [rows(dataset.train_images), rows(dataset.validation_images), rows(test_images)]
    assert sum(len(part) for part in parts) == len(parts[0] | parts[1] | parts[2]) == 1797  # no two digits are equal
    assert dataset.train_images.dtype == torch.uint8
    assert dataset.train_labels.dtype == torch.int64
    assert (dataset.channels, dataset.size, dataset.classes, dataset.flip) == (1, 8, 10, False)
    assert dataset.train_images.max().item() == 255


def test_digits_are_those_of_scikit_learn() -> None:
    values, labels = load_digits(return_X_y=True)
    dataset = load(DataConfig(name="digits"))
    test_images, test_labels = load_test(DataConfig(name="digits"))
    images = torch.cat([dataset.train_images, dataset.validation_images, test_images]).flatten(1)
    all_labels = torch.cat([dataset.train_labels, dataset.validation_labels, test_labels])
    ours = zip((images.double() * 16 / 255).round().tolist(), all_labels.tolist(), strict=True)
    assert sorted(ours) == sorted(zip(values.tolist(), labels.tolist(), strict=True))


def test_digits_are_the_pictures_of_their_labels() -> None:
    """The nearest training image has the same label nearly always, so images and labels still belong together."""
    dataset = load(DataConfig(name="digits"))
    train, validation = dataset.train_images.flatten(1).float(), dataset.validation_images.flatten(1).float()
    nearest = dataset.train_labels[torch.cdist(validation, train).argmin(1)]
    assert (nearest == dataset.validation_labels).float().mean().item() > 0.97


@pytest.mark.parametrize("seed", [0, 1])
def test_every_part_is_stratified(seed: int) -> None:
    dataset = load(DataConfig(name="digits", train=400, validation=100, seed=seed))
    all_labels = torch.cat(
        [load(DataConfig(name="digits")).train_labels, load(DataConfig(name="digits")).validation_labels]
    )
    share = torch.bincount(all_labels) / len(all_labels)
    for labels in (dataset.train_labels, dataset.validation_labels):
        assert (torch.bincount(labels, minlength=10) - share * len(labels)).abs().max().item() <= 1.0


def test_balanced_classes_stay_balanced_in_every_prefix_and_suffix() -> None:
    labels = np.repeat(np.arange(10), 60)
    order = stratified_order(labels, seed=3)
    assert sorted(order) == list(range(600))
    for size in (10, 50, 250):
        assert np.bincount(labels[order[:size]]).tolist() == [size // 10] * 10
        assert np.bincount(labels[order[-size:]]).tolist() == [size // 10] * 10


def test_the_seed_decides_the_split_but_not_the_test_images() -> None:
    first, again = load(DataConfig(name="digits")), load.__wrapped__(DataConfig(name="digits"))
    assert torch.equal(first.train_images, again.train_images)
    assert torch.equal(first.validation_labels, again.validation_labels)
    other = load(DataConfig(name="digits", seed=1))
    assert rows(first.validation_images) != rows(other.validation_images)
    assert torch.equal(load_test(DataConfig(name="digits"))[0], load_test(DataConfig(name="digits", seed=1))[0])


def test_smaller_parts_are_subsets_and_leave_the_other_part_alone() -> None:
    whole, part = load(DataConfig(name="digits")), load(DataConfig(name="digits", train=100))
    assert rows(part.train_images) < rows(whole.train_images)
    assert torch.equal(part.validation_images, whole.validation_images)


def test_sizes_that_are_not_there() -> None:
    with pytest.raises(PynasError, match=r"data\.train: got 1438, digits has 1437 train images"):
        load(DataConfig(name="digits", train=1438))
    with pytest.raises(PynasError, match=r"data\.validation: got 200, digits has 180 validation images"):
        load(DataConfig(name="digits", validation=200))
