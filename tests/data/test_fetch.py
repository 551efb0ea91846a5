"""Finding and fetching Fashion-MNIST with real files, real processes and a real (empty) network."""

import gzip
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import pynas.data.fetch as fetching
from pynas.data.config import DataConfig
from pynas.data.memory import load, load_test
from pynas.errors import PynasError


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and a machine without apt-get, without the system's copy and without the authors' mirror."""
    monkeypatch.setenv("PYNAS_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(fetching, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(fetching, "MIRROR", (tmp_path / "mirror").as_uri() + "/")
    return tmp_path


@pytest.fixture
def published(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four small stand-ins for the published files, with their checksums in place of the published ones."""
    contents = {file: os.urandom(100) for file in fetching.SHA256}
    monkeypatch.setattr(fetching, "SHA256", {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()})
    return contents


def put(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in contents.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(data))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.delenv("PYNAS_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert fetching.cache_folder() == Path("/somewhere/.cache/pynas")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert fetching.cache_folder() == Path("/cache/pynas")
    monkeypatch.setenv("PYNAS_DATA", "/data")
    assert fetching.cache_folder() == Path("/data")


def test_fetching_needs_no_torch() -> None:
    code = "import sys, pynas.data.fetch, pynas.train.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_system_comes_before_the_cache(nowhere: Path, published: dict[str, bytes]) -> None:
    put(nowhere / "cache/fashion-mnist", published)
    assert fetching.fetch() == nowhere / "cache/fashion-mnist"
    put(nowhere / "system", published)
    assert fetching.fetch() == nowhere / "system"


def test_nothing_found_tells_what_was_tried_and_what_to_do(nowhere: Path) -> None:
    with pytest.raises(PynasError) as caught:
        fetching.fetch("fashion-mnist")
    message = str(caught.value)
    for part in (
        f"{nowhere}/system: not there",
        f"{nowhere}/cache/fashion-mnist: not there",
        "Debian package dataset-fashion-mnist: [Errno 2] No such file or directory: 'apt-get'",
        "mirror/: <urlopen error",
        "Install dataset-fashion-mnist",
        "PYNAS_DATA",
        "data.name: digits",
    ):
        assert part in message
    assert list((nowhere / "cache/fashion-mnist").iterdir()) == []  # no half of anything stays behind


def test_the_mirror_is_the_last_resort(nowhere: Path, published: dict[str, bytes]) -> None:
    put(nowhere / "mirror", published)
    folder = fetching.fetch()
    assert folder == nowhere / "cache/fashion-mnist"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{file}.gz" for file in published)
    assert fetching.read_verified(folder, "t10k-labels-idx1-ubyte") == published["t10k-labels-idx1-ubyte"]


def test_a_mirror_with_other_files_is_refused_and_leaves_nothing(nowhere: Path, published: dict[str, bytes]) -> None:
    put(nowhere / "mirror", {**published, "t10k-labels-idx1-ubyte": b"other"})
    with pytest.raises(PynasError, match=r"t10k-labels-idx1-ubyte\.gz: not the published file"):
        fetching.fetch()
    assert list((nowhere / "cache/fashion-mnist").iterdir()) == []


def test_a_package_tool_that_fails_is_quoted(nowhere: Path) -> None:
    (nowhere / "empty").mkdir()
    tool = nowhere / "empty/apt-get"
    tool.write_text("#!/bin/sh\necho 'E: Temporary failure resolving' >&2\nexit 100\n")
    tool.chmod(0o755)
    with pytest.raises(PynasError, match=r"apt-get ended with 100 \(E: Temporary failure resolving\)"):
        fetching.fetch()


def test_concurrent_fetches(nowhere: Path, published: dict[str, bytes]) -> None:
    put(nowhere / "mirror", published)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: fetching.fetch(), range(16)))
    assert set(folders) == {nowhere / "cache/fashion-mnist"}
    assert len(list(folders[0].iterdir())) == 4


@pytest.mark.parametrize("damage", ["other", "cut", "text"])
def test_a_corrupt_file_is_named_with_both_digests(nowhere: Path, published: dict[str, bytes], damage: str) -> None:
    folder = nowhere / "cache/fashion-mnist"
    put(folder, published)
    file = "train-labels-idx1-ubyte"
    path = folder / f"{file}.gz"
    path.write_bytes({"other": gzip.compress(b"x"), "cut": path.read_bytes()[:-9], "text": b"<html>"}[damage])
    with pytest.raises(PynasError) as caught:
        fetching.fetch()
    message = str(caught.value)
    assert str(path) in message
    assert fetching.SHA256[file] in message
    assert (hashlib.sha256(b"x").hexdigest() if damage == "other" else "does not decompress") in message


def test_an_unknown_name() -> None:
    with pytest.raises(PynasError, match=r"data\.name: got 'imagenet', the one data set to fetch is fashion-mnist"):
        fetching.fetch("imagenet")


needs_fashion_mnist = pytest.mark.skipif(
    fetching.locate() is None, reason="Fashion-MNIST is not on this machine; fetch it with pynas.data.fetch.fetch()"
)


@needs_fashion_mnist
def test_fashion_mnist_as_published() -> None:
    dataset = load(DataConfig())
    assert dataset.train_images.shape == (50_000, 1, 28, 28)
    assert torch.bincount(dataset.train_labels).tolist() == [5000] * 10
    assert torch.bincount(dataset.validation_labels).tolist() == [1000] * 10
    images, labels = load_test(DataConfig())
    assert torch.bincount(labels).tolist() == [1000] * 10
    assert labels[:5].tolist() == [9, 2, 1, 1, 6]  # the official order
    every = torch.cat([dataset.train_images, dataset.validation_images]).numpy().astype(np.float64)
    assert every.mean() / 255 == pytest.approx(0.2860, abs=1e-4)  # the known mean of the official 60 000
    assert images.dtype == torch.uint8
