"""Mixup, and the random shifts and flips that stand in for AutoAugment. Every draw comes from an explicit generator."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Augmentation = Literal["none", "basic", "autoaugment"]
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


def resize(images: Tensor, resolution: int) -> Tensor:
    """Bilinear resize of float (N, C, H, W) to `resolution` pixels a side, antialiased where it shrinks."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    size = (resolution, resolution)
    return functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def auto_augment(images: Tensor, policy: Policy, seed: int, epoch: int, step: int) -> Tensor:
    raise NotImplementedError
