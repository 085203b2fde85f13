"""Supervised fine-tuning: rows of prompt and answer, the negative log-likelihood of the answer, the same learner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rlvr.learn.texts import rows_of
from rlvr.records import Problem, TrainingSample
from rlvr.tasks.templates import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlvr.learn.update import Learner


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """One row: a problem, and the answer to imitate (without the template's prefill, which is part of the prompt)."""

    problem: Problem
    completion: str


def to_samples(
    examples: Iterable[Example], renderer: Renderer, tokenizer: PreTrainedTokenizerBase
) -> list[TrainingSample]:
    """Samples whose loss covers the answer and the end of text, never the prompt."""
    end = (renderer.stop_token_ids[0],) if renderer.stop_token_ids else ()
    samples = []
    for index, example in enumerate(examples):
        prompt = renderer.render(example.problem).ids
        answer = tuple(tokenizer(example.completion, add_special_tokens=False).input_ids) + end
        samples.append(
            TrainingSample(
                ids=prompt + answer,
                loss_mask=(0,) * len(prompt) + (1,) * len(answer),
                behaviour_logprobs=(0.0,) * (len(prompt) + len(answer)),
                advantage=1.0,
                group=index,
            )
        )
    return samples


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
