"""Trees of image files, a folder a class: torchvision's ImageFolder. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pynas.data.config import DataConfig
from pynas.data.images import Images, Listing, Names, one_class_is_none
from pynas.errors import PynasError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff")
"""Files of other names are no images and are passed over in silence."""

FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


class ImageFiles:
    """The images below a folder, by path relative to it."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder = str(folder)
        self._names = Names(names)

    def name(self, i: int) -> str:
        return os.path.join(self._folder, self._names[i])

    def key(self, i: int) -> str:
        return self._names[i]

    def read(self, i: int) -> bytes:
        with open(self.name(i), "rb") as file:
            return file.read()

    def close(self) -> None:
        """Nothing stays open."""


def find(config: DataConfig) -> Listing:
    """The tree at `config.path`: path/train/CLASS/* with path/val or path/validation and path/test, or path/CLASS/*.

    Classes are the training folders' names in order. Raises PynasError for a tree that is not one of those, and for a
    class without images.
    """
    root = Path(config.path or "").expanduser()
    if not root.is_dir():
        raise PynasError(f"data.path: {root}: {'not a folder' if root.exists() else 'not there'}")
    folders = {part: [root / name for name in names if (root / name).is_dir()] for part, names in FOLDERS.items()}
    if len(folders["validation"]) > 1:
        raise PynasError(f"data.path: {root} has both val and validation; allowed: one of them")
    if not folders["train"]:
        if folders["validation"] or folders["test"]:
            raise PynasError(f"data.path: {root} has no train folder beside {folders['validation'] + folders['test']}")
        folders["train"] = [root]
    classes = _classes(folders["train"][0])
    labels = {name: label for label, name in enumerate(classes)}
    parts = {}
    for part, found in folders.items():
        if found:
            parts[part] = _images(found[0], classes if part == "train" else _classes(found[0]), labels)
    return one_class_is_none(Listing(str(root), classes, parts))


def _classes(folder: Path) -> list[str]:
    try:
        names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise PynasError(f"data.path: {folder}: {error.strerror}") from None
    if not names:
        raise PynasError(f"data.path: {folder} has no folders of classes; expected: {folder}/CLASS/*.jpg")
    return names


def _images(folder: Path, classes: list[str], labels: dict[str, int]) -> Images:
    unknown = [name for name in classes if name not in labels]
    if unknown:
        raise PynasError(f"data.path: {folder} has classes that are not trained on: {_some(unknown)}")
    names: list[str] = []
    found: list[int] = []
    empty = []
    for name in classes:
        files = _files(folder / name)
        if not files:
            empty.append(name)
        names += [os.path.join(name, file) for file in files]
        found += [labels[name]] * len(files)
    if empty:
        raise PynasError(
            f"data.path: {folder} has classes without images: {_some(empty)}; images are {', '.join(EXTENSIONS)}"
        )
    return Images(ImageFiles(folder, names), np.arange(len(names)), np.array(found, np.int64))


def _files(folder: Path) -> list[str]:
    """Image files below a class's folder, links that lead nowhere among them, in order of their relative paths."""
    files = []
    for place, _, names in os.walk(folder, followlinks=True):
        below = os.path.relpath(place, folder)
        found = [name for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
        files += found if below == "." else [os.path.join(below, name) for name in found]
    return sorted(files)


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
