"""The learning rate: the paper's decay interpolated to steps, and the warm-up."""

import pytest

from pynas.train.config import TrainingConfig
from pynas.train.schedule import Schedule


def test_decay_is_the_papers_per_epoch_and_interpolated_within() -> None:
    schedule = Schedule.of(TrainingConfig(lr_decay=0.963), steps_per_epoch=10)
    assert schedule.factor(0) == 1.0
    assert schedule.factor(10) == pytest.approx(0.963)
    assert schedule.factor(5) == pytest.approx(0.963**0.5)
    assert schedule.factor(1500) == pytest.approx(0.963**150)


@pytest.mark.parametrize("epochs", [1, 6, 150, 400])
def test_by_default_the_papers_total_decay_is_spread_over_the_training(epochs: int) -> None:
    schedule = Schedule.of(TrainingConfig(epochs=epochs), steps_per_epoch=7)
    assert schedule.factor(7 * epochs) == pytest.approx(0.963**150)


def test_warmup_rises_linearly_to_the_whole_rate_and_decay_starts_after_it() -> None:
    schedule = Schedule.of(TrainingConfig(epochs=12, warmup_epochs=2.0), steps_per_epoch=5)
    assert [schedule.factor(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert schedule.factor(10) == 1.0
    assert schedule.factor(60) == pytest.approx(0.963**150)


def test_a_warmup_that_ends_within_a_step() -> None:
    schedule = Schedule.of(TrainingConfig(epochs=3, warmup_epochs=0.25), steps_per_epoch=5)  # 1.25 steps
    factors = [schedule.factor(step) for step in range(15)]
    assert max(factors) <= 1.0
    assert factors[0] == pytest.approx(0.8)
    assert factors[1] == 1.0
    assert factors[2:] == sorted(factors[2:], reverse=True)


def test_half_a_cosine_from_the_end_of_the_warmup_to_zero() -> None:
    schedule = Schedule.of(TrainingConfig(epochs=12, warmup_epochs=2.0, schedule="cosine"), steps_per_epoch=5)
    assert schedule.factor(4) == pytest.approx(0.5)
    assert schedule.factor(10) == 1.0
    assert schedule.factor(35) == pytest.approx(0.5)
    assert schedule.factor(60) == pytest.approx(0.0, abs=1e-12)
    factors = [schedule.factor(step) for step in range(10, 61)]
    assert factors == sorted(factors, reverse=True)


def test_a_warmup_as_long_as_the_training() -> None:
    schedule = Schedule.of(TrainingConfig(epochs=2, warmup_epochs=2, schedule="cosine"), steps_per_epoch=5)
    assert [schedule.factor(step) for step in (0, 9)] == pytest.approx([0.1, 1.0])
