"""Supervised fine-tuning on rows of prompt and completion: negative log-likelihood, with the same learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rlvr.learn.texts import rows_of
from rlvr.records import TrainingSample

if TYPE_CHECKING:
    from rlvr.learn.update import Learner


T = TypeVar("T")


def batches(samples: Sequence[T], batch_size: int, steps: int, seed: int) -> list[list[T]]:
    """`steps` batches without replacement within an epoch, each epoch in an order of its own."""
    return [[samples[row] for row in rows_of(len(samples), batch_size, step, seed)] for step in range(steps)]


def fit(
    learner: Learner,
    samples: Sequence[TrainingSample],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    save_to: Path | None = None,
) -> None:
    """Train `learner` on `samples` for `steps` optimiser steps; `report` gets each step's metrics, on every rank."""
    if not samples:
        raise ValueError("there is nothing to fine-tune on: the data set has no rows")
    for step, batch in enumerate(batches(samples, batch_size, steps, seed), start=1):
        report(step, learner.sft_update(batch))
    if save_to is not None:
        learner.save_policy(save_to)
