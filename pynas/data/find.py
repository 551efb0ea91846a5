"""Where images lie in files: a tree or shards. Imports torch for shards only, with the webdataset package."""

from __future__ import annotations

from pynas.data.config import DataConfig
from pynas.data.images import Listing
from pynas.errors import PynasError


def find(config: DataConfig) -> Listing:
    """The images that lie at `config.path`, as they lie there; PynasError where they are not as they should be."""
    from pynas.data import folder, shards

    try:
        import PIL.Image  # noqa: F401  # decodes later
    except ModuleNotFoundError:
        raise PynasError(f"data.name: {config.name} needs Pillow: pip install 'pynas-nars[train]'") from None
    return (folder if config.name == "folder" else shards).find(config)
