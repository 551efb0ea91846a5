"""One encoded image to pixels: the part of it that is wanted, at the size that is wanted. Imports no torch."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pynas.errors import PynasError

CROP_AREA = (0.08, 1.0)  # share of the image's area; this and the next are Inception's (Szegedy et al. 2015)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10
CENTRE = 0.875  # 224 of 256: the share of the shorter side that is evaluated

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels
MODES = {3: "RGB", 1: "L"}


def decode(data: bytes, resolution: int, channels: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
    """The pixels, uint8 (resolution, resolution, channels), of a random crop, or without `rng` of the centre.

    The centre is what is left of the image after resizing its shorter side to resolution / 0.875 and cutting a square
    out of its middle. Resizing is bilinear, antialiased; JPEGs are decoded at a half, a quarter or an eighth of their
    size where that is still enough. Raises ValueError, with the reason, for what is not an image.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            box = centre_box(width, height) if rng is None else random_box(width, height, rng)
            enough = resolution / (box[2] - box[0]), resolution / (box[3] - box[1])
            image.draft(MODES[channels], (math.ceil(width * enough[0]), math.ceil(height * enough[1])))
            pixels = image if image.mode == MODES[channels] else image.convert(MODES[channels])
            x, y = pixels.width / width, pixels.height / height
            scaled = (box[0] * x, box[1] * y, min(box[2] * x, pixels.width), min(box[3] * y, pixels.height))
            pixels = pixels.resize((resolution, resolution), Image.Resampling.BILINEAR, box=scaled)
            return np.asarray(pixels).reshape(resolution, resolution, channels)
    except (MemoryError, PynasError):
        raise
    except Exception as error:  # Pillow's plugins raise whatever a broken file leads them to
        raise ValueError(_reason(error)) from None


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """A random part of 8 to 100% of the area and of ratio 3/4 to 4/3; the largest in the middle after ten tries."""
    for area, ratio, x, y in rng.random((CROP_TRIES, 4)):
        pixels = width * height * (CROP_AREA[0] + area * (CROP_AREA[1] - CROP_AREA[0]))
        low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
        shape = math.exp(low + ratio * (high - low))
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, upper, left + w, upper + h
    return _middle(width, height, min(width, height * CROP_RATIO[1]), min(height, width / CROP_RATIO[0]))


def centre_box(width: int, height: int) -> Box:
    side = CENTRE * min(width, height)
    return _middle(width, height, side, side)


def _middle(width: int, height: int, w: float, h: float) -> Box:
    left, upper = (width - w) / 2, (height - h) / 2
    return left, upper, left + w, upper + h


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__
