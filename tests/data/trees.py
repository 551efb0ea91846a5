"""Small real data sets: trees of JPEGs and shards, and what can be wrong with an image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(label: int, number: int, size: tuple[int, int] = (48, 40)) -> bytes:
    """A picture that tells its class by its colour and its number by its texture."""
    rng = np.random.default_rng((label, number))
    width, height = size
    noise = np.asarray(
        Image.fromarray(rng.integers(0, 80, (6, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    )
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., label % 3] = 120 + 10 * (label // 3)
    file = io.BytesIO()
    Image.fromarray(pixels + noise).save(file, "JPEG", quality=90)
    return file.getvalue()


def tree(root: Path, parts: dict[str, int], classes: int = 4) -> Path:
    """root/PART/CLASS/NUMBER.jpg with so many images a class; a part "" is the root itself."""
    for position, (part, images) in enumerate(parts.items()):
        for label in range(classes):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                (folder / f"{number:03}.jpg").write_bytes(jpeg(label, 1000 * position + number))
    return root


def shards(root: Path, part: str, count: int, images: int, classes: int = 4) -> str:
    """root/PART-000.tar and so on, with so many images in each, written by webdataset itself; returns the pattern."""
    import webdataset

    root.mkdir(exist_ok=True)
    for shard in range(count):
        with webdataset.TarWriter(str(root / f"{part}-{shard:03}.tar")) as writer:
            for i in range(images):
                number = shard * images + i
                label = number % classes
                writer.write({"__key__": f"{part}{number:05}", "jpg": jpeg(label, number), "cls": label})
    return str(root / f"{part}-{{000..{count - 1:03}}}.tar")


def damage(path: Path, how: str) -> None:
    """Makes a real image file a bad one."""
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[: len(content) * 9 // 10])
    elif how == "garbage":
        path.write_bytes(bytes(np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)))
    elif how == "empty":
        path.touch()
    elif how == "dangling":
        path.symlink_to(path.parent / "nowhere.jpg")
    else:
        raise ValueError(how)


DAMAGES = {
    "truncated": "truncated",
    "garbage": "not an image",
    "empty": "the file is empty",
    "dangling": "No such file or directory",
}
"""What can be wrong, and what the reason then says."""
