"""Which images: the `data` section of a study and of a training. Defaults live here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Augmentation = Literal["none", "basic", "autoaugment"]

IN_MEMORY = ("fashion-mnist", "digits")
"""Data sets that are small enough to lie in memory as a whole; the others are decoded by worker processes."""


class DataConfig(BaseModel):
    """Which images, how many of them, and how they are split."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["fashion-mnist", "digits", "folder", "webdataset"] = "fashion-mnist"
    """fashion-mnist: 28 x 28, 50 000 + 10 000 + 10 000 images; digits (scikit-learn): 8 x 8, 1 437 + 180 + 180;
    folder: a tree of image files, a folder a class; webdataset: .tar shards. The last two are at `path`.
    """

    path: str | None = None
    """folder: the tree's root, with train/CLASS/*.jpg and val/CLASS/*.jpg (or validation/, and test/), or CLASS/*.jpg;
    webdataset: a pattern such as /data/train-{0000..1023}.tar or /data/train-*.tar, or a folder with .tar files.
    """

    validation_path: str | None = None
    """webdataset: the pattern or folder of the validation shards, where `path` does not hold them."""

    test_path: str | None = None
    """webdataset: the pattern or folder of the test shards, where `path` does not hold them."""

    train: int | None = Field(None, ge=1)
    """Training images to use, stratified by class; None takes all there are."""

    validation: int | None = Field(None, ge=1)
    """Validation images to use, stratified by class; None takes all there are."""

    seed: int = Field(0, ge=0)
    """Decides which images train and which validate, and which classes; not which images of a class are for testing."""

    classes: int | None = Field(None, ge=2)
    """That many classes, drawn by `seed` and numbered from 0 in their old order; None takes all.

    Section 4.1 searches on 200 of ImageNet's, FP-NAS on 100.
    """

    withhold: int | float | Literal["half"] | None = None
    """Training images withheld for validation, stratified by class: a number (section 4.1: 10000), a share below 1, or
    half (FP-NAS). The set's own validation images then are its test images, unless it has some.

    None takes the set's own validation images; digits and fashion-mnist withhold as many as they have test images.
    """

    channels: Literal[1, 3] | None = None
    """folder, webdataset: 3 (RGB, the default) or 1 (grey); fashion-mnist and digits are grey."""

    mean: tuple[float, ...] | None = None
    """folder, webdataset: what is subtracted from each channel, on the scale 0 to 1; None takes ImageNet's, and for
    grey images their average. fashion-mnist and digits are normalised by their own training images.
    """

    deviation: tuple[float, ...] | None = None
    """folder, webdataset: what each channel is then divided by; None as for `mean`."""

    max_bad: float = Field(0.01, ge=0.0, le=1.0)
    """folder, webdataset: share of images, of the training or of the validation ones, that may be missing or corrupt
    and are skipped; more of them end the training.
    """

    @model_validator(mode="after")
    def _fits_together(self) -> DataConfig:
        share, number = isinstance(self.withhold, float), isinstance(self.withhold, int)
        if (share and not 0.0 < self.withhold < 1.0) or (number and self.withhold < 1):  # type: ignore[operator]
            raise ValueError(
                f"data.withhold: got {self.withhold}, allowed: a number of images, a share between 0 and 1, half"
            )
        if self.name in IN_MEMORY:
            self._allow_only_defaults(
                ("path", "validation_path", "test_path", "mean", "deviation", "max_bad"), "folder and webdataset"
            )
            if self.channels == 3:
                raise ValueError(f"data.channels: got 3, {self.name} is grey; allowed: 1")
            return self
        if not self.path:
            raise ValueError(f"data.path: got {self.path!r}, {self.name} needs the path of its images")
        if self.name == "folder":
            self._allow_only_defaults(("validation_path", "test_path"), "webdataset")
        for key in ("mean", "deviation"):
            values = getattr(self, key)
            if values is not None and len(values) != (self.channels or 3):
                raise ValueError(f"data.{key}: got {len(values)} numbers, allowed: one a channel, {self.channels or 3}")
        if self.deviation is not None and min(self.deviation) <= 0.0:
            raise ValueError(f"data.deviation: got {list(self.deviation)}, allowed: numbers above 0")
        return self

    def located(self, folder: Path) -> DataConfig:
        """The same with relative paths read from `folder`, as absolute ones: workers may run elsewhere."""
        paths = {key: getattr(self, key) for key in ("path", "validation_path", "test_path")}
        made = {key: str(folder.resolve() / value) for key, value in paths.items() if value is not None}
        return self.model_copy(update=made)

    def _allow_only_defaults(self, keys: tuple[str, ...], allowed: str) -> None:
        for key in keys:
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                raise ValueError(f"data.{key}: got {value!r} with data.name {self.name}; it is for {allowed}")
