"""Mixup and augmentation: what they keep, what they change, and that their generator decides all."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional

import pynas.data.augment as augment
from pynas.data.augment import flip, mixup, resize, shift_and_flip
from pynas.errors import PynasError


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


def test_flip_mirrors_half() -> None:
    images = torch.arange(6.0).view(1, 1, 2, 3).expand(400, -1, -1, -1)
    flipped = flip(images, np.random.default_rng(0))
    mirrored = (flipped != images).flatten(1).any(1)
    assert 0.4 < mirrored.float().mean().item() < 0.6
    assert torch.equal(flipped[mirrored], images[mirrored].flip(3))


def picture(size: int = 32) -> tuple[torch.Tensor, Image.Image]:
    """A smooth picture of 8 bits, for torch and for Pillow."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0.1, 0.9)
    pixels = (smooth * 255).round().to(torch.uint8)
    return pixels.float() / 255, Image.fromarray(pixels[0].permute(1, 2, 0).numpy())


GREY = (128, 128, 128)
PILLOW = {
    "auto_contrast": lambda image: ImageOps.autocontrast(image),
    "equalize": lambda image: ImageOps.equalize(image),
    "invert": lambda image: ImageOps.invert(image),
    "posterize": lambda image: ImageOps.posterize(image, 6),
    "solarize": lambda image: ImageOps.solarize(image, 114),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.5),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.5),
    "color": lambda image: ImageEnhance.Color(image).enhance(1.5),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.5),
    "rotate": lambda image: image.rotate(-150 / 9, Image.Resampling.BILINEAR, fillcolor=GREY),
    "shear_x": lambda image: moved(image, 1, 1.5 / 9, -16 * 1.5 / 9, 0, 1, 0),
    "shear_y": lambda image: moved(image, 1, 0, 0, 1.5 / 9, 1, -16 * 1.5 / 9),
    "translate_x": lambda image: moved(image, 1, 0, 32 * 150 / 331 * 5 / 9, 0, 1, 0),
    "translate_y": lambda image: moved(image, 1, 0, 0, 0, 1, 32 * 150 / 331 * 5 / 9),
}


def moved(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


@pytest.mark.parametrize("name", PILLOW)
def test_each_operation_of_autoaugment_is_pillows_at_level_5(name: str) -> None:
    images, image = picture()
    expected = torch.from_numpy(np.array(PILLOW[name](image))).permute(2, 0, 1).float()
    got = augment._OPERATIONS[name](images, torch.full((1, 1, 1, 1), 5 / 9)).clamp(0, 1)[0] * 255
    away = (got - expected).abs()
    assert away.mean().item() < 1.5  # of 255; at the rim of what moved in, a pixel may differ more
    assert (away > 2).float().mean().item() < 0.06


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
@pytest.mark.parametrize("channels", [3, 1])
def test_autoaugment_stays_in_range_and_changes_most_images(policy: augment.Policy, channels: int) -> None:
    images = picture(28)[0][:, :channels].expand(200, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    changed = augment.auto_augment(images, policy, np.random.default_rng(0))
    assert changed.isfinite().all()
    assert 0.0 <= changed.min().item() <= changed.max().item() <= 1.0
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert 0.6 < (changed != images).flatten(1).any(1).float().mean().item() < 0.95
    assert len(changed.flatten(1).unique(dim=0)) > 20  # each image has its own pair, sign and chance
    assert torch.equal(changed, augment.auto_augment(images, policy, np.random.default_rng(0)))


def test_autoaugment_treats_grey_images_as_equal_channels() -> None:
    grey = picture(28)[0][:, :1].expand(100, -1, -1, -1)
    for policy in ("imagenet", "cifar10"):
        alone = augment.auto_augment(grey, policy, np.random.default_rng(1))
        three = augment.auto_augment(grey.expand(-1, 3, -1, -1), policy, np.random.default_rng(1))
        away = (alone - three).abs()
        assert (away > 1e-5).float().mean().item() < 1e-3  # where rounding takes a pixel to another of 256 levels
        assert away.max().item() < 0.05


def test_autoaugment_without_kornia_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia.augmentation.auto.autoaugment", None)
    with pytest.raises(PynasError, match=r"needs kornia: pip install 'pynas-nars\[train\]'"):
        augment.check_augmentation("autoaugment")
