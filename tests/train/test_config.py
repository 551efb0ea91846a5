"""Configuration: defaults are the paper's, and a mistake is refused with its name."""

import pytest
from pydantic import ValidationError

from pynas.data.config import DataConfig
from pynas.train.config import TrainingConfig


def test_defaults_are_the_papers() -> None:
    training = TrainingConfig()
    assert (training.epochs, training.batch_size, training.momentum) == (150, 256, 0.9)
    assert (training.label_smoothing, training.warmup_epochs, training.lr_decay) == (0.1, 0.0, None)


@pytest.mark.parametrize(
    ("model", "values", "name"),
    [
        (TrainingConfig, {"epoch": 3}, "epoch"),
        (TrainingConfig, {"epochs": 0}, "epochs"),
        (TrainingConfig, {"ema_decay": 1.0}, "ema_decay"),
        (TrainingConfig, {"device": "tpu"}, "device"),
        (DataConfig, {"name": "imagenet"}, "name"),
        (DataConfig, {"train": 0}, "train"),
    ],
)
def test_mistakes_are_refused(model: type, values: dict, name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(**values)
    assert caught.value.errors()[0]["loc"] == (name,)


def test_an_unknown_data_set_is_told_the_allowed_ones() -> None:
    with pytest.raises(ValidationError, match="'fashion-mnist', 'digits', 'folder' or 'webdataset'"):
        DataConfig(name="imagenet")


def test_values_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainingConfig().epochs = 3
