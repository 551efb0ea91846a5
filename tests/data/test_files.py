"""Which images there are: trees, shards, class subsets, withheld splits, and what is wrong with them."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run_pynas
from pydantic import ValidationError
from trees import damage, jpeg, shards, tree

from pynas.data.config import DataConfig
from pynas.data.describe import describe
from pynas.data.find import find
from pynas.data.images import Images, Listing, Names, arrange
from pynas.data.memory import load, load_test
from pynas.data.open import contents, open_data
from pynas.data.shards import _scanned, index
from pynas.data.stream import epoch_order
from pynas.errors import PynasError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYNAS_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder(path: Path, **keys: object) -> DataConfig:
    return DataConfig(name="folder", path=str(path), **keys)  # type: ignore[arg-type]


def arranged(config: DataConfig) -> Listing:
    return arrange(config, find(config))


def names(listing: Listing, part: str) -> set[str]:
    images = listing.parts[part]
    return {images.source.name(i) for i in images.index}


def counts(listing: Listing, part: str) -> list[int]:
    return np.bincount(listing.parts[part].labels).tolist()


def test_names_keep_whatever_a_file_system_allows() -> None:
    given = ["", "a/b.jpg", "ä ö.png", "\udcff.jpg"]
    assert [Names(given)[i] for i in range(4)] == given


def test_a_tree_with_its_own_parts(tmp_path: Path) -> None:
    tree(tmp_path, {"train": 3, "validation": 2, "test": 1})
    deeper = tmp_path / "train/class0/more/a.JPEG"
    deeper.parent.mkdir()
    deeper.write_bytes(jpeg(0, 99))
    (tmp_path / "train/class0/README.txt").write_text("no image")
    (tmp_path / "train/.hidden").mkdir()
    listing = arranged(folder(tmp_path))
    assert listing.classes == ["class0", "class1", "class2", "class3"]
    assert [counts(listing, part) for part in ("train", "validation", "test")] == [[4, 3, 3, 3], [2] * 4, [1] * 4]
    assert str(deeper) in names(listing, "train")


@pytest.mark.parametrize(("withhold", "expected"), [(10, 10), (0.25, 10), ("half", 20)])
def test_withheld_images_are_stratified_and_do_not_train(tmp_path: Path, withhold: object, expected: int) -> None:
    tree(tmp_path, {"": 10})
    listing = arranged(folder(tmp_path, withhold=withhold))
    train, validation = names(listing, "train"), names(listing, "validation")
    assert (len(train), len(validation), len(train | validation)) == (40 - expected, expected, 40)
    assert max(counts(listing, "validation")) - min(counts(listing, "validation")) <= 1
    assert names(arranged(folder(tmp_path, withhold=withhold)), "validation") == validation
    assert names(arranged(folder(tmp_path, withhold=withhold, seed=1)), "validation") != validation


def test_withheld_images_make_the_own_validation_images_test_images(tmp_path: Path) -> None:
    """The paper's search withholds 10 000 of ImageNet's training images; its validation set is then for testing."""
    tree(tmp_path, {"train": 10, "val": 3})
    listing = arranged(folder(tmp_path, withhold="half"))
    assert [len(listing.parts[part]) for part in ("train", "validation", "test")] == [20, 20, 12]
    assert all("/val/" in name for name in names(listing, "test"))


def test_the_split_depends_on_names_and_not_on_other_images(tmp_path: Path) -> None:
    tree(tmp_path, {"": 20})
    before = names(arranged(folder(tmp_path, withhold="half")), "validation")
    (tmp_path / "class0/new.jpg").write_bytes(jpeg(0, 500))
    assert len(before - names(arranged(folder(tmp_path, withhold="half")), "validation")) <= 2


def test_smaller_parts(tmp_path: Path) -> None:
    tree(tmp_path, {"train": 10, "val": 5})
    listing = arranged(folder(tmp_path, train=20, validation=8))
    assert (counts(listing, "train"), counts(listing, "validation")) == ([5] * 4, [2] * 4)
    with pytest.raises(PynasError, match=r"data\.train: got 41, .* has 40 train images"):
        arranged(folder(tmp_path, train=41))


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_some_classes_at_random(tmp_path: Path, kind: str) -> None:
    """With them, labels are 0 to n - 1, in every part the same classes, whose other seeds are others."""
    if kind == "folder":
        given = {"name": kind, "path": str(tree(tmp_path / "tree", {"train": 4, "val": 2}, classes=9))}
    else:
        given = {"name": kind, "path": shards(tmp_path / "s", "train", 2, 18, classes=9), "withhold": "half"}
    listing = arranged(DataConfig(**given, classes=3))
    assert len(listing.classes) == 3
    assert listing.classes == sorted(listing.classes)
    for part in ("train", "validation"):
        assert counts(listing, part) == [len(listing.parts[part]) // 3] * 3
    if kind == "folder":
        found = {Path(name).parent.name for part in ("train", "validation") for name in names(listing, part)}
        assert found == set(listing.classes)
    drawn = {tuple(arranged(DataConfig(**given, classes=3, seed=seed)).classes) for seed in range(5)}
    assert len(drawn) > 1
    with pytest.raises(PynasError, match=r"data\.classes: got 10, .* has 9 classes"):
        arranged(DataConfig(**given, classes=10))
    data = open_data(
        DataConfig(**given, classes=3), resolution=16, device=torch.device("cpu"), batch_size=6, seed=0, augment="none",
        workers=0,
    )  # fmt: skip
    assert torch.cat([batch.labels for batch in data.train_batches(0)]).unique().tolist() == [0, 1, 2]


def test_some_classes_and_withheld_images_in_memory() -> None:
    dataset = load(DataConfig(name="digits", classes=3, withhold="half"))
    assert dataset.classes == 3
    assert dataset.train_labels.unique().tolist() == [0, 1, 2]
    assert abs(len(dataset.train_labels) - len(dataset.validation_labels)) <= 1
    assert load_test(DataConfig(name="digits", classes=3))[1].unique().tolist() == [0, 1, 2]
    share = load(DataConfig(name="digits", classes=5))
    assert len(share.validation_labels) / len(share.train_labels) == pytest.approx(180 / 1437, rel=0.02)
    assert len(load(DataConfig(name="digits", withhold=500)).train_labels) == 1617 - 500


def test_shards_are_found_by_braces_wild_cards_and_folders(tmp_path: Path) -> None:
    pattern = shards(tmp_path, "train", 2, 12)
    shards(tmp_path, "val", 1, 8)
    whole = {"train": 24, "validation": 8}
    assert contents(DataConfig(name="webdataset", path=str(tmp_path))).images == whole
    for train in (pattern, str(tmp_path / "train-*.tar")):
        config = DataConfig(name="webdataset", path=train, validation_path=str(tmp_path / "val-000.tar"))
        assert contents(config).images == whole
    tested = DataConfig(
        name="webdataset", path=pattern, validation_path=str(tmp_path / "val-*.tar"), test_path=str(tmp_path / "val-*")
    )
    assert contents(tested).images == whole | {"test": 8}


def test_the_index_of_shards_is_kept_until_they_change(tmp_path: Path, cache: Path) -> None:
    (file,) = [tmp_path / "train-000.tar"] if shards(tmp_path, "train", 1, 8) else []
    first = index([str(file)])
    assert len(list((cache / "shards").iterdir())) == 1
    again = index([str(file)])
    assert again.labels.tolist() == first.labels.tolist() == [0, 1, 2, 3] * 2
    assert again.source.read(3) == first.source.read(3) == jpeg(3, 3)
    shards(tmp_path, "train", 1, 12)
    assert len(index([str(file)])) == 12
    for kept in (cache / "shards").iterdir():
        kept.write_bytes(b"damaged")
    assert len(index([str(file)])) == 12


def test_many_shards_are_scanned_by_processes_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards(tmp_path, "train", 17, 3)
    files = [str(file) for file in sorted(tmp_path.glob("*.tar"))]
    monkeypatch.setattr("pynas.data.shards.available_cores", lambda: 2)
    many = _scanned(files)
    monkeypatch.setattr("pynas.data.shards.available_cores", lambda: 1)
    assert many == _scanned(files)
    assert [shard.keys[0] for shard in many] == [f"train{3 * i:05}" for i in range(17)]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    import io

    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_samples_that_lack_something_are_bad(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as tar:
        for number in range(6):
            add(tar, f"d/{number}.JPG", jpeg(0, number))
            add(tar, f"d/{number}.cls", str(number % 2).encode())
        add(tar, "d/lone.jpg", jpeg(0, 9))
        add(tar, "d/label.cls", b"1")
        add(tar, "d/text.jpg", jpeg(0, 9))
        add(tar, "d/text.cls", b"cat")
        add(tar, "d/0.json", b"{}")
    images = index([str(file)])
    assert (len(images), len(images.bad)) == (6, 3)
    assert images.bad[f"{file}:d/lone"] == "no .cls beside its image"
    assert "not the number of a class" in images.bad[f"{file}:d/text"]
    config = DataConfig(name="webdataset", path=str(file), withhold="half")
    with pytest.raises(PynasError, match=r"data\.max_bad: 3 of the 9 train images are bad, 33"):
        open_data(config, resolution=8, device=torch.device("cpu"), batch_size=2, seed=0, augment="none")


def test_a_shard_that_ends_early_loses_what_is_behind(tmp_path: Path) -> None:
    shards(tmp_path, "train", 1, 8)
    file = tmp_path / "train-000.tar"
    with tarfile.open(file) as tar:
        member = next(m for m in tar if m.name.endswith("00005.jpg"))
    os.truncate(file, member.offset_data + 100)
    images = index([str(file)])
    assert len(images) == 5
    assert any("the shard ends" in reason for reason in images.bad.values())


def test_shards_are_shuffled_in_windows_of_whole_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pynas.data.stream.WINDOW", 200)
    groups = np.repeat(np.arange(20), 50)
    images = Images(None, np.arange(1000), np.zeros(1000, np.int64), groups)  # type: ignore[arg-type]
    order = epoch_order(images, 0, 0)
    assert sorted(order) == list(range(1000))
    for window in groups[order].reshape(5, 200):
        assert np.unique(window, return_counts=True)[1].tolist() == [50] * 4
    assert epoch_order(images, 0, 1).tolist() != order.tolist()
    assert len(np.unique(groups[order][:50])) > 1  # shards are mixed within


WRONG_TREES = {
    "nowhere": (lambda root: root / "nowhere", "not there"),
    "a file": (lambda root: _file(root), "not a folder"),
    "nothing": (lambda root: root, "no folders of classes"),
    "one class": (lambda root: tree(root, {"": 2}, classes=1), "a single class, class0"),
    "an empty class": (lambda root: _with_empty_class(root), "classes without images: class9"),
    "no split": (lambda root: tree(root, {"": 2}), r"data\.withhold: .* has no validation images"),
    "another class": (lambda root: _with_strange_class(root), "not trained on: strange"),
    "no train": (lambda root: tree(root, {"val": 2}), "no train folder"),
    "two": (lambda root: tree(root, {"train": 1, "val": 1, "validation": 1}), "both val and validation"),
}


def _file(root: Path) -> Path:
    (root / "x").touch()
    return root / "x"


def _with_empty_class(root: Path) -> Path:
    tree(root, {"train": 2, "val": 1})
    (root / "train/class9").mkdir()
    return root


def _with_strange_class(root: Path) -> Path:
    tree(root, {"train": 2, "val": 1})
    (root / "val/class0").rename(root / "val/strange")
    return root


@pytest.mark.parametrize("wrong", WRONG_TREES)
def test_wrong_trees(tmp_path: Path, wrong: str) -> None:
    make, message = WRONG_TREES[wrong]
    with pytest.raises(PynasError, match=message):
        contents(folder(make(tmp_path)))


def test_wrong_shards(tmp_path: Path) -> None:
    def of(path: object) -> DataConfig:
        return DataConfig(name="webdataset", path=str(path), withhold="half")

    pattern = shards(tmp_path / "s", "train", 2, 8)
    with pytest.raises(PynasError, match=r"1 of 3 shards are not there, the first is .*train-002\.tar"):
        contents(of(pattern.replace("001", "002")))
    for unclosed in ("x-{0..3.tar", "${NOWHERE}/x.tar"):
        with pytest.raises(PynasError, match=r"data\.path: got "):
            contents(of(unclosed))
    with pytest.raises(PynasError, match="no file matches"):
        contents(of(tmp_path / "x-*.tar"))
    (tmp_path / "text.tar").write_text("not a shard" * 100)
    with pytest.raises(PynasError, match=r"text\.tar: not a plain \.tar file"):
        contents(of(tmp_path / "text.tar"))
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(PynasError, match="no samples"):
        contents(of(tmp_path / "empty.tar"))
    shards(tmp_path / "one", "train", 1, 4, classes=1)
    with pytest.raises(PynasError, match="a single class, 0"):
        contents(of(tmp_path / "one"))
    (tmp_path / "none").mkdir()
    with pytest.raises(PynasError, match="no shards in"):
        contents(of(tmp_path / "none"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "folder"}, r"data\.path: got None, folder needs"),
        ({"path": "/x"}, r"data\.path: got '/x' with data\.name fashion-mnist"),
        ({"name": "digits", "channels": 3}, r"data\.channels: got 3, digits is grey; allowed: 1"),
        ({"name": "folder", "path": "x", "validation_path": "y"}, r"data\.validation_path: got 'y'.*for webdataset"),
        ({"withhold": 1.5}, r"data\.withhold: got 1\.5, allowed"),
        ({"withhold": 0}, r"data\.withhold: got 0, allowed"),
        ({"withhold": "third"}, "withhold"),
        ({"classes": 1}, "classes"),
        ({"max_bad": 2.0}, "max_bad"),
        ({"name": "folder", "path": "x", "mean": (0.5,)}, r"data\.mean: got 1 numbers, allowed: one a channel, 3"),
        ({"name": "folder", "path": "x", "channels": 1, "deviation": (0.0,)}, r"data\.deviation: .* above 0"),
        ({"size": 3}, "size"),
    ],
)
def test_configurations_that_do_not_fit_together(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(**keys)  # type: ignore[arg-type]


def test_more_withheld_than_there_is(tmp_path: Path) -> None:
    tree(tmp_path, {"": 2})
    with pytest.raises(PynasError, match=r"data\.withhold: got 8, .* has 8 images to split; allowed: 1 to 7"):
        contents(folder(tmp_path, withhold=8))


def test_the_command_tells_what_is_there_and_what_is_bad(tmp_path: Path) -> None:
    tree(tmp_path, {"train": 3, "val": 1})
    damage(tmp_path / "train/class2/001.jpg", "garbage")
    done = run_pynas("data", "folder", "--path", str(tmp_path), "--check", "--json")
    found = json.loads(done.stdout)
    assert found["images"] == {"train": 12, "validation": 4}
    assert found["bad"] == {str(tmp_path / "train/class2/001.jpg"): "not an image"}
    wrong = run_pynas("data", "folder", "--path", str(tmp_path / "nowhere"))
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == f"pynas: data.path: {tmp_path}/nowhere: not there\n"


def test_a_folder_is_described_without_torch(tmp_path: Path) -> None:
    tree(tmp_path, {"train": 1, "val": 1})
    code = "import sys; from pynas.data.describe import describe; describe('folder', sys.argv[1]); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def test_describe_shards(tmp_path: Path) -> None:
    found = describe("webdataset", shards(tmp_path, "train", 2, 8), check=True)
    assert (found["classes"], found["images"], found["bad"]) == (["0", "1", "2", "3"], {"train": 16}, {})
    with pytest.raises(PynasError, match="'imagenet': allowed: fashion-mnist, digits, folder, webdataset"):
        describe("imagenet")
