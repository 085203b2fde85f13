"""Direct preference optimisation: rows of prompt, chosen and rejected answer, the same learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvr.records import Problem, TrainingSample
from rlvr.sft import Example, batches, to_samples
from rlvr.tasks.rows import ProblemError
from rlvr.tasks.templates import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlvr.learn.preference import DirectPreference
    from rlvr.learn.update import Learner

Pair = tuple[TrainingSample, TrainingSample]
"""The chosen answer, advantage 1, and the rejected one, advantage -1."""


def to_pairs(
    rows: Sequence[Problem], rejected: str, renderer: Renderer, tokenizer: PreTrainedTokenizerBase
) -> list[Pair]:
    """Pairs of rows whose reference is the chosen answer and whose column `rejected` holds the other: each text, or a
    list of one assistant message. Raises `ProblemError` naming the row."""
    texts = [(_answer(row, row.reference, "chosen"), _answer(row, _column(row, rejected), "rejected")) for row in rows]
    for row, (chosen, other) in zip(rows, texts, strict=True):
        if chosen == other:
            raise ProblemError(f"{row.source}: the chosen and the rejected answer are the same: {chosen!r:.80}")
    chosen_P, rejected_P = (
        to_samples([Example(row, pair[side]) for row, pair in zip(rows, texts, strict=True)], renderer, tokenizer)
        for side in (0, 1)
    )
    return [(one, dataclasses.replace(other, advantage=-1.0)) for one, other in zip(chosen_P, rejected_P, strict=True)]


def _column(row: Problem, name: str) -> Any:
    if name not in row.meta:
        raise ProblemError(
            f"{row.source}: no column {name!r} (key dpo.rejected); columns besides: {', '.join(row.meta)}"
        )
    return row.meta[name]


def _answer(row: Problem, value: Any, side: str) -> str:
    messages = value if isinstance(value, list) else [{"role": "assistant", "content": value}]
    if len(messages) == 1 and isinstance(messages[0], dict) and messages[0].get("role") == "assistant":
        content = messages[0].get("content")
        if isinstance(content, str) and content.strip():
            return content
    raise ProblemError(
        f"{row.source}: dpo.{side} names an answer: text, or a list of one assistant message with text; "
        f"got {value!r:.80}"
    )


def with_reference(learner: Learner, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with the log-probabilities of `learner`'s policy as it is now, the reference; all ranks call it."""
    flat = [sample for pair in pairs for sample in pair]
    scores = learner.score([sample.ids for sample in flat])
    known = [
        dataclasses.replace(
            sample, behaviour_logprobs=tuple(lp if m else 0.0 for lp, m in zip(found, sample.loss_mask, strict=True))
        )
        for sample, found in zip(flat, scores, strict=True)
    ]
    return list(zip(known[::2], known[1::2], strict=True))


def prefer(
    learner: Learner,
    objective: DirectPreference,
    pairs: Sequence[Pair],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    save_to: Path | None = None,
) -> None:
    """Train `learner` on `pairs` for `steps` optimiser steps against its own starting policy; `report` gets each
    step's metrics, on every rank."""
    known = with_reference(learner, pairs)
    for step, batch in enumerate(batches(known, batch_size, steps, seed), start=1):
        report(step, learner.preference_update([sample for pair in batch for sample in pair], objective))
    if save_to is not None:
        learner.save_policy(save_to)
