"""Mixup, shifts and flips, and AutoAugment, on batches on the device. Every draw comes from an explicit generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pynas.data.config import Augmentation
from pynas.errors import PynasError

Policy = Literal["imagenet", "cifar10"]


def mixup(images: Tensor, targets: Tensor, m: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mixes every image with a random other one of its batch (Zhang et al. 2018), m in Table 2.

    images: float (N, C, H, W); targets: float (N, classes), rows summing to one. One weight a batch, drawn from
    Beta(m, m) on [0, 1]; images and targets are mixed with the same one. Returns new tensors of the same shapes; with
    m = 0 the arguments themselves, and nothing is drawn.
    """
    if m == 0.0:
        return images, targets
    weight = float(rng.beta(m, m))
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    return torch.lerp(images[partner], images, weight), torch.lerp(targets[partner], targets, weight)


def shift_and_flip(images: Tensor, shift: int, flip: bool, rng: np.random.Generator) -> Tensor:
    """Moves each image by up to `shift` pixels in both directions and mirrors it with probability 1/2 where `flip`.

    images: (N, C, H, W), any dtype; returns a new tensor of the same shape. The rim is filled with the image's own
    border pixels, which in both data sets are background. One gather does the shift and the flip of a whole batch.
    """
    n, _, height, width = images.shape
    offsets = rng.integers(-shift, shift + 1, size=(2, n))
    rows = np.clip(np.arange(height) + offsets[0][:, None], 0, height - 1)
    columns = np.clip(np.arange(width) + offsets[1][:, None], 0, width - 1)
    if flip:
        mirrored = rng.random(n) < 0.5
        columns[mirrored] = columns[mirrored, ::-1]
    pixels = torch.from_numpy(rows[:, :, None] * width + columns[:, None, :]).to(images.device)
    index = pixels.view(n, 1, height * width).expand(-1, images.shape[1], -1)
    return images.reshape(n, images.shape[1], -1).gather(2, index).view(images.shape)


def flip(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirrors each image of (N, C, H, W), any dtype, with probability 1/2; returns a tensor of the same shape."""
    mirrored = torch.from_numpy(rng.random(len(images)) < 0.5).to(images.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def resize(images: Tensor, resolution: int) -> Tensor:
    """Bilinear resize of float (N, C, H, W) to `resolution` pixels a side, antialiased where it shrinks."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    size = (resolution, resolution)
    return functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def check_augmentation(name: Augmentation) -> None:
    """PynasError where what the augmentation needs is not installed."""
    if name == "autoaugment":
        _policy("imagenet")


def auto_augment(images: Tensor, policy: Policy, rng: np.random.Generator) -> Tensor:
    """AutoAugment (Cubuk et al. 2019, arXiv:1805.09501): every image gets one of the policy's 25 pairs of operations.

    images: float32 (N, C, H, W) in 0 to 1, C = 3 or 1; returns a new tensor like it. Grey images are treated as RGB
    images with three equal channels are, which makes "color" do nothing.

    The policies are the paper's tables, as kornia has them. Magnitudes 0 to 9 span what torchvision's AutoAugment makes
    of the paper's ranges (its defaults; PIL's operations on 8 bits): shear 0 to 0.3, translation 0 to 150/331 of the
    side, rotation 0 to 30 degrees, posterize 8 to 4 bits, solarize from 1 down to 0, colour, contrast, brightness and
    sharpness 1 -+ 0 to 0.9; the first and the last kinds with a random sign. What moves in from outside is mid-grey.
    kornia's own AutoAugment gives a whole batch one pair, shears by other angles and adds where PIL multiplies.

    Images with the same operation are computed together. Raises PynasError where kornia is not installed.
    """
    table = _policy(policy)
    pairs = rng.integers(len(table), size=len(images))
    images = images.clone()
    for position in range(2):
        chance, sign = rng.random(len(images)), np.where(rng.random(len(images)) < 0.5, -1.0, 1.0)
        groups: dict[str, list[int]] = {}
        levels = np.zeros(len(images), np.float32)
        for i, pair in enumerate(pairs):
            name, probability, magnitude = table[pair][position]
            if chance[i] < probability:
                groups.setdefault(name, []).append(i)
                levels[i] = (magnitude or 0) / 9.0 * sign[i]
        order = [i for members in groups.values() for i in members]
        # One copy to the device for all groups: each would make a GPU wait.
        members = torch.tensor(order, dtype=torch.int64).to(images.device).split([len(m) for m in groups.values()])
        strength = torch.from_numpy(levels[order]).to(images.device).split([len(m) for m in groups.values()])
        for name, chosen, level in zip(groups, members, strength, strict=True):
            images[chosen] = _OPERATIONS[name](images[chosen], level.view(-1, 1, 1, 1)).clamp_(0.0, 1.0)
    return images


Operation = tuple[str, float, float | None]


def _policy(name: Policy) -> list[list[Operation]]:
    """The pairs of (operation, probability, magnitude 0 to 9)."""
    try:
        from kornia.augmentation.auto.autoaugment import autoaugment
    except ModuleNotFoundError:
        raise PynasError("training.augment: autoaugment needs kornia: pip install 'pynas-nars[train]'") from None
    return getattr(autoaugment, f"{name}_policy")


# Each operation takes float (n, C, H, W) and levels, float (n, 1, 1, 1) in -1 to 1, whose sign is random.


def _affine(images: Tensor, x_by_x: Tensor, x_by_y: Tensor, y_by_x: Tensor, x_by_1: Tensor, y_by_1: Tensor) -> Tensor:
    """Takes each pixel from where the matrix [[x_by_x, x_by_y, x_by_1], [y_by_x, x_by_x, y_by_1]] sends it.

    Entries: (n, 1, 1, 1), in units of half a side. Bilinear; outside is mid-grey.
    """
    rows = [torch.cat([x_by_x, x_by_y, x_by_1], -1), torch.cat([y_by_x, x_by_x, y_by_1], -1)]
    grid = functional.affine_grid(torch.cat(rows, 2).squeeze(1), list(images.shape), align_corners=False)
    return functional.grid_sample(images - 0.5, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + 0.5


def _shear_x(images: Tensor, level: Tensor) -> Tensor:
    zero, one = torch.zeros_like(level), torch.ones_like(level)
    return _affine(images, one, 0.3 * level, zero, zero, zero)


def _shear_y(images: Tensor, level: Tensor) -> Tensor:
    zero, one = torch.zeros_like(level), torch.ones_like(level)
    return _affine(images, one, zero, 0.3 * level, zero, zero)


def _translate_x(images: Tensor, level: Tensor) -> Tensor:
    zero, one = torch.zeros_like(level), torch.ones_like(level)
    return _affine(images, one, zero, zero, 2 * 150 / 331 * level, zero)


def _translate_y(images: Tensor, level: Tensor) -> Tensor:
    zero, one = torch.zeros_like(level), torch.ones_like(level)
    return _affine(images, one, zero, zero, zero, 2 * 150 / 331 * level)


def _rotate(images: Tensor, level: Tensor) -> Tensor:
    angle, zero = torch.deg2rad(30.0 * level), torch.zeros_like(level)
    return _affine(images, angle.cos(), angle.sin(), -angle.sin(), zero, zero)


def _brightness(images: Tensor, level: Tensor) -> Tensor:
    return images * (1.0 + 0.9 * level)


def _contrast(images: Tensor, level: Tensor) -> Tensor:
    return torch.lerp(_grey(images).mean((2, 3), keepdim=True), images, 1.0 + 0.9 * level)


def _color(images: Tensor, level: Tensor) -> Tensor:
    return torch.lerp(_grey(images), images, 1.0 + 0.9 * level)


def _grey(images: Tensor) -> Tensor:
    """(n, 1, H, W): ITU-R 601 luma, as PIL's; of one channel, itself."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _sharpness(images: Tensor, level: Tensor) -> Tensor:
    """Blends with PIL's SMOOTH filter, 3 x 3 with a centre of 5; the rim stays."""
    channels = images.shape[1]
    kernel = images.new_ones(3, 3)
    kernel[1, 1] = 5.0
    smooth = images.clone()
    if min(images.shape[2:]) > 2:
        weight = (kernel / 13.0).expand(channels, 1, 3, 3)
        smooth[:, :, 1:-1, 1:-1] = functional.conv2d(images, weight, groups=channels)
    return torch.lerp(smooth, images, 1.0 + 0.9 * level)


def _posterize(images: Tensor, level: Tensor) -> Tensor:
    step = 2.0 ** torch.round(4.0 * level.abs())  # 8 - bits
    return ((images * 255.0 + 1e-3) / step).floor() * step / 255.0


def _solarize(images: Tensor, level: Tensor) -> Tensor:
    return torch.where(images < 1.0 - level.abs(), images, 1.0 - images)


def _auto_contrast(images: Tensor, level: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


def _equalize(images: Tensor, level: Tensor) -> Tensor:
    from kornia.enhance import equalize

    return equalize(images)


def _invert(images: Tensor, level: Tensor) -> Tensor:
    return 1.0 - images


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "contrast": _contrast,
    "color": _color,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
}
