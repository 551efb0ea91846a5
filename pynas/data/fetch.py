"""Fashion-MNIST (Xiao et al. 2017, MIT licence): found on this machine, or fetched into the user's cache and verified.

Imports no torch, so that the data can be fetched on a login node before any job runs.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pynas.errors import PynasError

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist installs it
PACKAGE = "dataset-fashion-mnist"
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # of the authors, from their README
TIMEOUT = 60  # seconds for one connection or read
COMMAND_TIMEOUT = 600  # seconds for one apt-get or dpkg

SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of the decompressed IDX files.

The authors publish MD5s of their .gz files, Debian compresses anew. Putting the authors' gzip header (name and time,
2017-08-31) before Debian's compressed stream gives all four published MD5s, so these are the authors' contents.
"""


def cache_folder() -> Path:
    """${PYNAS_DATA}, else ${XDG_CACHE_HOME}/pynas, else ~/.cache/pynas; it need not exist."""
    if folder := os.environ.get("PYNAS_DATA"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pynas"


def fetch(name: str = "fashion-mnist") -> Path:
    """The folder with the four verified .gz files of Fashion-MNIST, fetched into the cache if it is nowhere yet.

    Tried in this order: the Debian package's system folder, the cache, Debian's package unpacked without root, the
    authors' mirror. Any number of processes may fetch at once. Raises PynasError when a file that is there is not what
    its authors published, or when nothing works; it then tells what was tried and why each failed.
    """
    if name != "fashion-mnist":
        raise PynasError(f"data.name: got {name!r}, the one data set to fetch is fashion-mnist (digits needs none)")
    if (folder := locate()) is not None:
        for file in SHA256:
            read_verified(folder, file)
        return folder
    target = cache_folder() / "fashion-mnist"
    tried = [f"{SYSTEM_FOLDER}: not there", f"{target}: not there"]
    ways: tuple[tuple[str, Callable[[Path], None]], ...] = (
        (f"Debian package {PACKAGE}", _from_debian),
        (MIRROR, _from_mirror),
    )
    for way, download in ways:
        try:
            _install(download, target)
            return target
        except (OSError, subprocess.SubprocessError, PynasError) as error:
            tried.append(f"{way}: {_reason(error)}")
    raise PynasError(
        "data fashion-mnist: found nowhere. Tried "
        + "; ".join(tried)
        + f". Install {PACKAGE}, or put the four .gz files of {MIRROR} into {target}"
        " (another folder: PYNAS_DATA), or use data.name: digits"
    )


def describe(name: str) -> dict[str, str]:
    """Find or fetch a data set, verify it, and tell what and where it is. PynasError for an unknown name."""
    if name == "fashion-mnist":
        images = "60 000 to train and validate, 10 000 to test; 28 x 28, 10 classes"
        return {
            "name": name,
            "folder": str(fetch(name)),
            "images": images,
            "verified": f"sha256 of {len(SHA256)} files",
        }
    if name == "digits":
        folder = str(digits_file().parent)
        images = "1 617 to train and validate, 180 to test; 8 x 8, 10 classes"
        return {"name": name, "folder": folder, "images": images, "verified": "part of scikit-learn"}
    raise PynasError(f"data {name!r}: allowed: fashion-mnist, digits")


def digits_file() -> Path:
    """The table that `sklearn.datasets.load_digits` reads: 64 pixels of 0 to 16 a line, then the label.

    Not read by it, for importing scikit-learn takes each worker longer than training on these images does.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise PynasError("data digits: is part of scikit-learn; pip install 'pynas-nars[train]'")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def locate() -> Path | None:
    """The folder that has the four files, system before cache, or None. Looks at names only: verify what you read."""
    for folder in (SYSTEM_FOLDER, cache_folder() / "fashion-mnist"):
        if all((folder / f"{file}.gz").is_file() for file in SHA256):
            return folder
    return None


def read_verified(folder: Path, file: str) -> bytes:
    """The decompressed contents of `folder`/`file`.gz; PynasError where its SHA-256 is not the published one."""
    path = folder / f"{file}.gz"
    try:
        content = gzip.decompress(path.read_bytes())
        found = hashlib.sha256(content).hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        found = f"none, it does not decompress ({error})"
    if found != SHA256[file]:
        raise PynasError(
            f"{path}: not the published file: sha256 of its contents is {found}, expected {SHA256[file]}. "
            "Remove it and fetch again"
        )
    return content


def _install(download: Callable[[Path], None], target: Path) -> None:
    """Downloads beside `target`, verifies, then moves each file into place: nobody ever sees half a file."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target) as temporary:
        folder = Path(temporary)
        download(folder)
        for file in SHA256:
            read_verified(folder, file)
        for file in SHA256:
            os.replace(folder / f"{file}.gz", target / f"{file}.gz")


def _from_debian(folder: Path) -> None:
    """Downloads and unpacks the package; nothing is installed, and no root is needed.

    Where the system's package lists are empty (as in containers) the lists are fetched into a private state folder.
    """
    try:
        _run(["apt-get", "download", PACKAGE], folder)
    except subprocess.CalledProcessError:
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        private = ["-o", f"Dir::State={folder}/state", "-o", f"Dir::Cache={folder}/cache"]
        if os.geteuid() == 0:
            private += ["-o", "APT::Sandbox::User=root"]  # apt's own user may not write below a private folder
        _run(["apt-get", *private, "update"], folder)
        _run(["apt-get", *private, "download", PACKAGE], folder)
    packages = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    if not packages:
        raise FileNotFoundError(f"apt-get download left no {PACKAGE}_*.deb")
    _run(["dpkg", "-x", str(packages[-1]), "unpacked"], folder)
    for file in SHA256:
        shutil.copyfile(folder / "unpacked" / SYSTEM_FOLDER.relative_to("/") / f"{file}.gz", folder / f"{file}.gz")


def _from_mirror(folder: Path) -> None:
    for file in SHA256:
        with urllib.request.urlopen(f"{MIRROR}{file}.gz", timeout=TIMEOUT) as answer:
            (folder / f"{file}.gz").write_bytes(answer.read())


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=COMMAND_TIMEOUT)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = str(error.stderr).strip().splitlines()
        return f"{error.cmd[0]} ended with {error.returncode}" + (f" ({lines[-1]})" if lines else "")
    return str(error) or type(error).__name__
