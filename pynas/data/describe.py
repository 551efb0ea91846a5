"""What `pynas data` tells."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pynas.data import fetch
from pynas.data.config import IN_MEMORY, DataConfig
from pynas.data.find import find
from pynas.data.images import Listing
from pynas.errors import PynasError

NAMES = (*IN_MEMORY, "folder", "webdataset")


def describe(
    name: str,
    path: str | None = None,
    *,
    validation_path: str | None = None,
    test_path: str | None = None,
    check: bool = False,
) -> dict[str, Any]:
    """What a data set is and where; digits and fashion-mnist are found or fetched, and verified.

    For folders and shards: {"name", "path", "classes": [str], "images": {part: int}, "bad": {name: reason}}, as they
    lie there, before any split. `check` decodes every image; without it, "bad" has what is seen without.
    Raises PynasError for an unknown name, and for what is not there or cannot be a data set.
    """
    if name not in NAMES:
        raise PynasError(f"data {name!r}: allowed: {', '.join(NAMES)}")
    try:
        config = DataConfig(name=name, path=path, validation_path=validation_path, test_path=test_path)
    except ValidationError as error:
        raise PynasError("; ".join(d["msg"].removeprefix("Value error, ") for d in error.errors())) from None
    if name in IN_MEMORY:
        return dict(fetch.describe(name))
    listing = find(config)
    bad = {image: reason for images in listing.parts.values() for image, reason in images.bad.items()}
    return {
        "name": name,
        "path": path,
        "classes": listing.classes,
        "images": {part: len(images) for part, images in listing.parts.items()},
        "bad": bad | _decoded(config, listing) if check else bad,
    }


def _decoded(config: DataConfig, listing: Listing) -> dict[str, str]:
    import torch

    from pynas.data.stream import StreamedData

    data = StreamedData(
        config.model_copy(update={"max_bad": 1.0}),
        listing,
        resolution=32,
        device=torch.device("cpu"),
        batch_size=1,
        seed=0,
        augment="none",
        workers=None,
    )
    for part in listing.parts:
        data.check(part)
    return data.bad


def as_lines(found: dict[str, Any]) -> list[str]:
    """`describe`'s answer for people."""
    if "classes" not in found:
        return [f"{key}: {value}" for key, value in found.items()]
    classes, bad = found["classes"], found["bad"]
    some = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    counts = ", ".join(f"{count} {part}" for part, count in found["images"].items())
    lines = [f"name: {found['name']}", f"path: {found['path']}", f"classes: {len(classes)} ({some})"]
    lines.append(f"images: {counts}" + ("" if "validation" in found["images"] else "; set data.withhold to validate"))
    return [*lines, f"bad: {len(bad)}", *(f"  {image}: {reason}" for image, reason in bad.items())]
