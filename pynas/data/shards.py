"""WebDataset shards: .tar files of samples, each an image and a .cls with the number of its class. Imports no torch.

Shards are indexed once (headers and .cls only; kept in the user's cache) and images then read by their place in the
file. So every order of the images is as good as any other to any number of workers, an epoch can begin anywhere, and
sizes and classes are known. What that asks of the storage is reads at random places within the few shards that are
shuffled together (`pynas.data.stream.WINDOW`); compressed shards and pipes cannot be read so.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pynas.cores import available_cores
from pynas.data.config import DataConfig
from pynas.data.fetch import cache_folder
from pynas.data.folder import FOLDERS
from pynas.data.images import Images, Listing, Names, one_class_is_none, some_of
from pynas.errors import PynasError

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL = "cls"
SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")  # key and extension, split at the first dot as webdataset does
OPEN_SHARDS = 64
MOST_SCANNERS = 16


class TarMembers:
    """The images in .tar files, by shard, offset and size in bytes."""

    def __init__(self, shards: list[str], keys: list[str], shard: NDArray[np.int64], place: NDArray[np.int64]) -> None:
        self._shards = shards
        self._keys = Names(keys)
        self._shard = shard  # (N,)
        self._place = place  # (N, 2): offset and size
        self._files: dict[int, int] = {}

    def name(self, i: int) -> str:
        return f"{self._shards[self._shard[i]]}:{self._keys[i]}"

    def key(self, i: int) -> str:
        return self._keys[i]

    def read(self, i: int) -> bytes:
        offset, size = map(int, self._place[i])
        data = os.pread(self._open(int(self._shard[i])), size, offset)
        if len(data) < size:
            raise OSError("the shard ends within it")
        return data

    def _open(self, shard: int) -> int:
        if shard not in self._files:
            while len(self._files) >= OPEN_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))  # the one opened first
            self._files[shard] = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._files[shard]

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_files": {}}


def find(config: DataConfig) -> Listing:
    """The shards that `config` names. Classes are the numbers found in training, in order.

    Raises PynasError for patterns that match nothing, files that are no .tar files, and shards without samples.
    """
    where = {"train": config.path or "", "validation": config.validation_path, "test": config.test_path}
    shards = _of_folder(Path(where["train"] or "").expanduser())
    if shards is None:
        shards = {"train": expand(where["train"] or "", "data.path")}
    for part in ("validation", "test"):
        if (pattern := where[part]) is not None:
            shards[part] = expand(pattern, f"data.{part}_path")
    found = {part: index(files) for part, files in shards.items()}
    classes = np.unique(found["train"].labels)
    if not len(classes):
        raise PynasError(
            f"data.path: no samples in the {len(shards['train'])} shards of {config.path}; a sample is KEY.jpg (or "
            f"{', '.join(EXTENSIONS[1:])}) and KEY.{LABEL}; {some_of(found['train'].bad) or 'nothing like it is there'}"
        )
    parts = {}
    for part, images in found.items():
        labels = np.searchsorted(classes, images.labels)
        strange = np.setdiff1d(images.labels, classes)
        if len(strange):
            raise PynasError(
                f"data.path: the {part} shards have classes that are not trained on: {strange[:5].tolist()}"
            )
        parts[part] = replace(images, labels=labels)
    return one_class_is_none(Listing(config.path or "", [str(label) for label in classes], parts))


def expand(pattern: str, key: str) -> list[str]:
    """The files that a pattern with braces and wild-cards, or a folder, names, in order. PynasError where one lacks."""
    try:
        from webdataset.shardlists import expand_urls  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise PynasError(
            "data.name: webdataset needs the package of that name: pip install 'pynas-nars[train]'"
        ) from None
    if Path(pattern).expanduser().is_dir():
        pattern = os.path.join(pattern, "*.tar")
    try:
        expanded = expand_urls(os.path.expanduser(pattern))
    except (AssertionError, ValueError) as error:  # a variable that is not set, braces that do not close
        raise PynasError(f"{key}: got {pattern}: {error}") from None
    files: list[str] = []
    for name in expanded:
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not matches:
            raise PynasError(f"{key}: no file matches {name}")
        files += matches
    missing = [name for name in files if not os.path.isfile(name)]
    if missing:
        raise PynasError(f"{key}: {len(missing)} of {len(files)} shards are not there, the first is {missing[0]}")
    return files


def _of_folder(folder: Path) -> dict[str, list[str]] | None:
    """The shards of each part in a folder: train/*.tar and so on, or train*.tar and so on; None for no folder."""
    if not folder.is_dir():
        return None
    shards = {}
    for part, names in FOLDERS.items():
        patterns = [f"{name}/*.tar" for name in names] + [f"{name}*.tar" for name in names]
        for pattern in patterns:
            if files := sorted(map(str, folder.glob(pattern))):
                shards[part] = files
                break
    if "train" not in shards:
        taken = {file for files in shards.values() for file in files}
        shards["train"] = sorted(set(map(str, folder.glob("*.tar"))) - taken)
    if not shards["train"]:
        raise PynasError(f"data.path: no shards in {folder}; expected: train/*.tar, train*.tar or *.tar")
    return shards


def index(files: list[str]) -> Images:
    """The images of the shards, in their order in them; labels are the numbers in the .cls files.

    A sample without its image or its label, or cut off by the end of its shard, is in `bad`. Raises PynasError for a
    file that is no .tar file. The index of unchanged files is taken from the cache.
    """
    stats = [os.stat(file) for file in files]
    told = json.dumps([1, [(os.path.abspath(f), s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)]])
    cached = cache_folder() / "shards" / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(cached) as stored:
            arrays = {name: stored[name] for name in stored.files}
        keys, bad = json.loads(arrays["names"].tobytes())
        labels, shard, place = arrays["labels"], arrays["shard"], arrays["place"]
    except (OSError, ValueError, KeyError):
        keys, bad, rows = [], {}, []
        for number, found in enumerate(_scanned(files)):
            bad |= found.bad
            keys += found.keys
            rows += [(number, *row) for row in found.rows]
        table = np.array(rows, np.int64).reshape(-1, 4)
        shard, labels, place = table[:, 0], table[:, 1], table[:, 2:]
        names = np.frombuffer(json.dumps([keys, bad]).encode(), np.uint8)
        _keep(cached, {"names": names, "labels": labels, "shard": shard, "place": place})
    return Images(TarMembers(files, keys, shard, place), np.arange(len(labels)), labels, groups=shard, bad=bad)


def _scanned(files: list[str]) -> list[_Shard]:
    """The samples of each shard. Many are scanned by several processes: a million samples take one some minutes."""
    workers = min(available_cores(), MOST_SCANNERS, len(files) // 8)
    if workers < 2:
        return list(map(_samples, files))
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(_samples, files, chunksize=4))


def _keep(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """Writes the index where it can; without, the next start scans again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".index-", delete=False) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(file.name, path)
    except OSError:
        return


@dataclass(frozen=True)
class _Shard:
    keys: list[str]
    rows: list[tuple[int, int, int]]  # label, offset, size
    bad: dict[str, str]


def _samples(file: str) -> _Shard:
    """Reads the headers of one shard and the contents of its .cls files."""
    size = os.path.getsize(file)
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    bad: dict[str, str] = {}
    order: dict[str, None] = {}  # of the samples
    try:
        with tarfile.open(file, "r:") as tar:
            try:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                    matched = SAMPLE.fullmatch(member.name)
                    if not member.isreg() or matched is None or member.name.startswith("__"):
                        continue
                    key, extension = matched[1], matched[2].lower()
                    if extension in EXTENSIONS:
                        order[key] = None
                        if member.offset_data + member.size > size:
                            bad[f"{file}:{key}"] = "the shard ends within it"
                        images[key] = member.offset_data, member.size
                    elif extension == LABEL:
                        order[key] = None
                        stream = tar.extractfile(member)
                        text = b"" if stream is None else stream.read()
                        if text.strip().isdigit():
                            labels[key] = int(text)
                        else:
                            bad[f"{file}:{key}"] = f".{LABEL} holds {text[:20]!r}, not the number of a class"
            except tarfile.ReadError:
                bad[file] = "the shard ends early"
    except (tarfile.TarError, OSError) as error:
        raise PynasError(f"data.path: {file}: not a plain .tar file ({error})") from None
    keys, rows = [], []
    for key in order:
        name = f"{file}:{key}"
        if key not in images:
            bad.setdefault(name, f"no image beside its .{LABEL}")
        elif key not in labels:
            bad.setdefault(name, f"no .{LABEL} beside its image")
        if name not in bad:
            keys.append(key)
            rows.append((labels[key], *images[key]))
    return _Shard(keys, rows, bad)
