"""The learning rate's curve, by hand."""

from __future__ import annotations

import pytest

from rlvr.config.recipe import LRSchedule
from rlvr.learn.lr_schedule import learning_rate


def curve(total: int, **schedule: object) -> list[float]:
    return [learning_rate(update, total, 2.0, LRSchedule.model_validate(schedule)) for update in range(total)]


def test_constant() -> None:
    assert curve(3) == [2.0, 2.0, 2.0]
    assert curve(4, warmup_steps=2) == [1.0, 2.0, 2.0, 2.0]


def test_linear_ends_at_its_final_share_with_the_last_step() -> None:
    assert curve(5, type="linear") == [2.0, 1.5, 1.0, 0.5, 0.0]
    assert curve(5, type="linear", final=0.5) == [2.0, 1.75, 1.5, 1.25, 1.0]
    assert curve(5, type="linear", warmup_steps=2) == [1.0, 2.0, 2.0, 1.0, 0.0]


def test_cosine() -> None:
    assert curve(5, type="cosine", final=0.5) == pytest.approx([2.0, 2.0 - 0.1464466, 1.5, 1.1464466, 1.0])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_a_run_of_one_step_and_a_run_that_is_all_warm_up_train_at_the_peak(kind: str) -> None:
    assert curve(1, type=kind) == [2.0]
    assert curve(3, type=kind, warmup_steps=2)[-1] == 2.0
    assert curve(2, type=kind, warmup_steps=4) == [0.5, 1.0]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_steps_beyond_the_end_stay_at_the_final_rate(kind: str) -> None:
    assert learning_rate(9, 5, 2.0, LRSchedule.model_validate({"type": kind, "final": 0.25})) == 0.5
