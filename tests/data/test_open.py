"""Batches: a function of configuration, seed, epoch and step, whatever the workers; what is in them; bad images."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from trees import DAMAGES, damage, shards, tree

from pynas.data.batches import Batch, Data
from pynas.data.config import DataConfig
from pynas.data.open import Contents, contents, open_data
from pynas.errors import PynasError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataConfig]:
    """A folder of 4 classes with 12 training and 4 validation images each; shards with 3 x 20 images, 12 withheld."""
    root = tmp_path_factory.mktemp("data")
    return {
        "folder": DataConfig(name="folder", path=str(tree(root / "tree", {"train": 12, "val": 4}))),
        "webdataset": DataConfig(name="webdataset", path=shards(root / "shards", "train", 3, 20), withhold=12),
        "digits": DataConfig(name="digits", train=60, validation=50),
    }


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices of shards go to a folder of the test's own; the tests here do not read Fashion-MNIST."""
    monkeypatch.setenv("PYNAS_DATA", str(tmp_path_factory.getbasetemp() / "cache"))


def opened(config: DataConfig, **settings: object) -> Data:
    given = {"resolution": 32, "device": CPU, "batch_size": 8, "seed": 1, "augment": "basic", "workers": 0}
    return open_data(config, **(given | settings))  # type: ignore[arg-type]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(left, right, strict=True)
    )


def histogram(batches: Iterator[Batch]) -> list[int]:
    return torch.bincount(torch.cat([batch.labels for batch in batches])).tolist()


@pytest.mark.parametrize("name", ["folder", "webdataset", "digits"])
@pytest.mark.parametrize("augment", ["none", "basic", "autoaugment"])
def test_batches_depend_on_seed_epoch_and_step_alone(configs: dict[str, DataConfig], name: str, augment: str) -> None:
    """Not on the number of workers, nor on torch's and numpy's random states, nor on what was read before."""
    data = opened(configs[name], augment=augment)
    first = list(data.train_batches(2))
    before = torch.get_rng_state()
    torch.manual_seed(5)
    np.random.seed(5)
    other = opened(configs[name], augment=augment, workers=2)
    try:
        next(other.train_batches(0))  # given up in the middle
        assert same(list(other.train_batches(2)), first)
        assert same(list(other.train_batches(2, start=3)), first[3:])
        assert list(other.train_batches(2, start=len(first))) == []
        assert not same(list(other.train_batches(3)), first)
        assert same(list(other.validation_batches()), list(data.validation_batches()))
    finally:
        other.close()
    assert not same(list(opened(configs[name], augment=augment, seed=2).train_batches(2)), first)
    torch.set_rng_state(before)


@pytest.mark.parametrize("name", ["folder", "webdataset", "digits"])
def test_reading_leaves_torchs_random_state_alone(configs: dict[str, DataConfig], name: str) -> None:
    data = opened(configs[name], augment="autoaugment", workers=1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(data.train_batches(0))
    assert torch.equal(torch.rand(1), expected)
    data.close()


@pytest.mark.parametrize("name", ["folder", "webdataset", "digits"])
def test_an_epoch_has_every_image_once_in_full_batches(configs: dict[str, DataConfig], name: str) -> None:
    data = opened(configs[name], augment="none", batch_size=7)
    batches = list(data.train_batches(0))
    assert len(batches) == data.train_images // 7
    images = torch.cat([batch.images for batch in batches])
    assert len(images.flatten(1).unique(dim=0)) == len(images)  # no two are equal, so none comes twice
    for batch in batches:
        assert batch.images.shape == (7, data.channels, 32, 32)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == torch.int64
    assert not torch.equal(batches[0].labels, next(data.train_batches(1)).labels)  # another order


def test_images_belong_to_their_labels(configs: dict[str, DataConfig]) -> None:
    """Colours tell the classes apart: red, green, blue, and a lighter red."""
    for name in ("folder", "webdataset"):
        for augment in ("none", "basic"):
            data = opened(configs[name], augment=augment)
            for batch in [*data.train_batches(0), *data.validation_batches()]:
                strongest = (batch.images * 0.225 + 0.45).mean((2, 3)).argmax(1)
                assert torch.equal(strongest, batch.labels % 3)


def test_what_there_is(configs: dict[str, DataConfig]) -> None:
    assert contents(configs["folder"]) == Contents("folder", 4, 3, {"train": 48, "validation": 16})
    assert contents(configs["webdataset"]) == Contents("webdataset", 4, 3, {"train": 48, "validation": 12})
    assert contents(configs["digits"]) == Contents("digits", 10, 1, {"train": 60, "validation": 50, "test": 180}, 8)
    data = opened(configs["folder"])
    assert (data.name, data.classes, data.channels, data.train_images) == ("folder", 4, 3, 48)
    assert histogram(data.validation_batches()) == [4] * 4
    with pytest.raises(PynasError, match="no test images"):
        list(data.test_batches())


def test_evaluation_takes_the_centre_of_each_image_in_order(tmp_path: Path) -> None:
    from PIL import Image

    tree(tmp_path, {"train": 2, "val": 1}, classes=2)
    picture = np.zeros((64, 128, 3), np.uint8)  # 0.875 of the shorter side, 56 x 56 in the middle, is white
    picture[4:60, 36:92] = 255
    Image.fromarray(picture).save(tmp_path / "val/class0/a.png")
    data = opened(DataConfig(name="folder", path=str(tmp_path), mean=(0, 0, 0), deviation=(1, 1, 1)), batch_size=2)
    (batch,) = data.validation_batches()
    assert batch.labels.tolist() == [0, 0, 1]
    assert batch.images[1, :, 1:-1, 1:-1].min().item() == 1.0
    assert 0.5 < batch.images[1].min().item() < 1.0  # resized, then cut: the rim has seen what is beyond it


def test_grey_images(configs: dict[str, DataConfig]) -> None:
    grey = opened(configs["folder"].model_copy(update={"channels": 1}), augment="autoaugment")
    batch = next(grey.train_batches(0))
    assert batch.images.shape == (8, 1, 32, 32)
    assert batch.images.isfinite().all()


def test_digits_in_memory_are_normalised_by_their_own_images() -> None:
    data = opened(DataConfig(name="digits"), augment="none", resolution=8, batch_size=1437)
    (batch,) = data.train_batches(0)
    assert batch.images.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert batch.images.std().item() == pytest.approx(1.0, abs=1e-3)
    plain = opened(DataConfig(name="digits"), augment="autoaugment", resolution=8, batch_size=1437)
    (batch,) = plain.train_batches(0)
    assert -1.5 < batch.images.min().item() < batch.images.max().item() < 3.0  # 0 to 1, normalised
    assert sum(len(batch.labels) for batch in data.test_batches()) == 180


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_named_and_make_batches_smaller(tmp_path: Path, workers: int) -> None:
    tree(tmp_path, {"train": 12, "val": 4})
    for number, how in enumerate(DAMAGES):
        damage(tmp_path / f"train/class1/{number:03}.jpg", how)
    damage(tmp_path / "val/class0/000.jpg", "truncated")
    data = opened(DataConfig(name="folder", path=str(tmp_path), max_bad=0.1), workers=workers)
    assert data.bad == {}
    sizes = [len(batch.labels) for batch in data.train_batches(0)]
    assert (len(sizes), sum(sizes)) == (6, 48 - len(DAMAGES))
    assert histogram(data.validation_batches()) == [3, 4, 4, 4]
    assert len(data.bad) == len(DAMAGES) + 1
    for number, reason in enumerate(DAMAGES.values()):
        assert reason.lower() in data.bad[str(tmp_path / f"train/class1/{number:03}.jpg")].lower()
    data.close()
    strict = opened(DataConfig(name="folder", path=str(tmp_path), max_bad=0.05), workers=workers)
    with pytest.raises(
        PynasError, match=r"data\.max_bad: 3 of the 48 train images are bad, 6\.25%; allowed: 5\.00%; /"
    ):
        list(strict.train_batches(0))
    with pytest.raises(PynasError, match=r"1 of the 16 validation images are bad.*class0/000\.jpg: .*truncated"):
        list(strict.validation_batches())
    strict.close()


def test_a_batch_without_a_good_image_is_an_error(tmp_path: Path) -> None:
    tree(tmp_path, {"train": 2, "val": 2}, classes=2)
    for image in tmp_path.glob("train/*/*.jpg"):
        damage(image, "empty")
    data = opened(DataConfig(name="folder", path=str(tmp_path), max_bad=1.0), batch_size=2)
    with pytest.raises(PynasError, match=r"all 2 images of a batch are bad; .*the file is empty"):
        list(data.train_batches(0))


def test_batches_larger_than_the_data(configs: dict[str, DataConfig]) -> None:
    for name, images in (("folder", 48), ("digits", 60)):
        with pytest.raises(PynasError, match=rf"batch_size: got 99, allowed are at most the {images} training images"):
            opened(configs[name], batch_size=99)


def test_only_the_newest_call_of_train_batches_goes_on(configs: dict[str, DataConfig]) -> None:
    data = opened(configs["folder"])
    old = data.train_batches(0)
    next(old)
    next(data.train_batches(1))
    with pytest.raises(RuntimeError, match="called again"):
        next(old)


def workers_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_workers_outlive_signals_to_all_and_end_with_close(configs: dict[str, DataConfig]) -> None:
    """A scheduler sends SIGTERM or SIGUSR1 to every process; the training then still has to write its checkpoint."""
    others = set(workers_of(os.getpid()))
    data = opened(configs["folder"], workers=2)
    batches = data.train_batches(0)
    next(batches)
    workers = set(workers_of(os.getpid())) - others
    assert len(workers) == 2
    from_elsewhere = f"kill -TERM {' '.join(map(str, workers))}; kill -USR1 {' '.join(map(str, workers))}"
    assert os.system(from_elsewhere) == 0
    assert len(list(batches)) == 5
    data.close()  # though `batches` is still there
    deadline = time.monotonic() + 10
    while set(workers_of(os.getpid())) & workers and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(workers_of(os.getpid())) & workers
