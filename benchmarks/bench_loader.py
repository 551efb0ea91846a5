"""Images a second from files: 96 synthetic JPEGs of 500 x 375 to batches of 32 at 224 x 224, with 0, 1 and 2 workers.

pynas's folder and shards, against a torch Dataset with Pillow behind a DataLoader and webdataset's WebLoader. All cut
the random crops of training, flip half and normalise. One epoch is timed, with workers that are already there.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pynas.data.config import DataConfig
from pynas.data.decode import random_box
from pynas.data.open import open_data
from pynas.data.stream import IMAGENET_DEVIATION, IMAGENET_MEAN

IMAGES, CLASSES, SHARDS = 96, 4, 4
SIZE, RESOLUTION, BATCH = (500, 375), 224, 32
WORKERS = (0, 1, 2)
MEAN, DEVIATION = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))


def picture(number: int) -> bytes:
    """Smooth shapes with some noise: about as many bytes a pixel as a photograph."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse) + rng.normal(0, 6, (SIZE[1], SIZE[0], 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def write(root: Path) -> None:
    """The same images as root/tree/train/CLASS and as root/shards, and a few to validate."""
    for part, count in (("train", IMAGES), ("val", CLASSES)):
        writers = [
            webdataset.TarWriter(str(root / f"{part}-{i:03}.tar")) for i in range(SHARDS if part == "train" else 1)
        ]
        for number in range(count):
            content, label = picture(number), number % CLASSES
            folder = root / "tree" / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:04}.jpg").write_bytes(content)
            writers[number % len(writers)].write({"__key__": f"{number:06}", "jpg": content, "cls": label})
        for writer in writers:
            writer.close()


def training_image(image: Image.Image) -> Tensor:
    """What a peer does with one image: crop, flip, to float, normalise."""
    rng = np.random.default_rng()
    pixels = image.convert("RGB").resize(
        (RESOLUTION, RESOLUTION), Image.Resampling.BILINEAR, box=random_box(*image.size, rng)
    )
    values = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float().div_(255)
    return ((values.flip(2) if rng.random() < 0.5 else values) - MEAN) / DEVIATION


class Files(Dataset[tuple[Tensor, int]]):
    """A user's own twenty lines."""

    def __init__(self, folder: Path) -> None:
        self.files = [(file, int(file.parent.name)) for file in sorted(folder.glob("*/*.jpg"))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        file, label = self.files[i]
        with Image.open(file) as image:
            return training_image(image), label


def labels_of(batches: Iterable[Any]) -> Counter[int]:
    """The labels of an epoch; looks at every image's values, which have to be there by then."""
    found: Counter[int] = Counter()
    for images, labels in batches:
        assert images.shape[1:] == (3, RESOLUTION, RESOLUTION)
        assert bool(torch.isfinite(images[:, :, 0, 0]).all())
        found.update(labels.tolist())
    return found


def ours(config: DataConfig, workers: int) -> Callable[[int], Counter[int]]:
    data = open_data(
        config, resolution=RESOLUTION, device=torch.device("cpu"), batch_size=BATCH, seed=0, augment="basic",
        workers=workers,
    )  # fmt: skip

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        return ((batch.images, batch.labels) for batch in data.train_batches(number))

    return lambda number: labels_of(epoch(number))


def theirs(loader: Iterable[Any]) -> Callable[[int], Counter[int]]:
    return lambda _: labels_of(loader)


def main() -> None:
    options = harness.arguments(__doc__, rounds=4)
    around = harness.machine("torch", "pillow", "webdataset")
    torch.set_num_threads(harness.THREADS)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["PYNAS_DATA"] = folder
        write(root)
        train = str(root / "train-{000..003}.tar")
        tree = DataConfig(name="folder", path=str(root / "tree"))
        shards = DataConfig(name="webdataset", path=train, validation_path=str(root / "val-000.tar"))
        cases: dict[str, Callable[[int], Counter[int]]] = {}
        for workers in WORKERS:
            kept = {"num_workers": workers, "persistent_workers": workers > 0}
            cases[f"{workers} workers, pynas folder"] = ours(tree, workers)
            cases[f"{workers} workers, pynas shards"] = ours(shards, workers)
            cases[f"{workers} workers, DataLoader and Pillow"] = theirs(
                DataLoader(Files(root / "tree/train"), batch_size=BATCH, shuffle=True, **kept)
            )
            samples = (
                webdataset.WebDataset(train, shardshuffle=SHARDS)
                .shuffle(IMAGES)
                .decode("pil")
                .to_tuple("jpg", "cls")
                .map_tuple(training_image, int)
                .batched(BATCH)
            )
            cases[f"{workers} workers, webdataset WebLoader"] = theirs(
                webdataset.WebLoader(samples, batch_size=None, **kept)
            )
        runs = harness.measure(cases, options.rounds)
    expected = Counter(number % CLASSES for number in range(IMAGES))
    for name, run in runs.items():
        assert all(answer == expected for answer in run.answers), name
    results = {}
    rows = []
    for name, run in runs.items():
        base = runs[f"{name.split(',')[0]}, pynas folder"]
        results[name] = run.summary(base)
        speeds = harness.spread([IMAGES / seconds for seconds in run.wall])
        ratio = results[name]["ratio"]["median"]
        rows.append((name, *(f"{speeds[key]:.0f}" for key in ("median", "min", "max")), f"{ratio:.2f}"))
    targets = []
    for workers in WORKERS:
        for kind, peer in (("folder", "DataLoader and Pillow"), ("shards", "webdataset WebLoader")):
            mine, other = (runs[f"{workers} workers, {name}"] for name in (f"pynas {kind}", peer))
            times = other.summary(mine)["ratio"]["median"]
            targets.append(
                (f"{workers} workers: {kind} no slower than {peer}", f"{times:.2f} times as fast", times >= 1)
            )
    columns = ("loader", "images/s", "min", "max", "time, folder = 1")
    harness.report("loader", options, around, columns, rows, targets, {"results": results})


if __name__ == "__main__":
    main()
