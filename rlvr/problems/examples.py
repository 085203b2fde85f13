"""Training samples from rows to imitate (SFT) and from pairs to prefer (DPO)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlvr.problems.rows import ProblemError
from rlvr.problems.templates import Renderer
from rlvr.records import Problem, TrainingSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Example:
    """One row: a problem, and the completion to imitate (without the template's prefill, which is part of the
    prompt)."""

    problem: Problem
    completion: str


def to_samples(
    examples: Iterable[Example], renderer: Renderer, tokenizer: PreTrainedTokenizerBase
) -> list[TrainingSample]:
    """Samples whose loss covers the completion and the end of text, never the prompt."""
    end = (renderer.stop_token_ids[0],) if renderer.stop_token_ids else ()
    samples = []
    for index, example in enumerate(examples):
        prompt = renderer.render(example.problem).ids
        completion = tuple(tokenizer(example.completion, add_special_tokens=False).input_ids) + end
        samples.append(
            TrainingSample(
                ids=prompt + completion,
                loss_mask=(0,) * len(prompt) + (1,) * len(completion),
                behaviour_logprobs=(0.0,) * (len(prompt) + len(completion)),
                advantage=1.0,
                group=index,
            )
        )
    return samples


Pair = tuple[TrainingSample, TrainingSample]
"""The chosen completion, advantage 1, and the rejected one, advantage -1."""


def to_pairs(
    rows: Sequence[Problem], rejected: str, renderer: Renderer, tokenizer: PreTrainedTokenizerBase
) -> list[Pair]:
    """Pairs of rows whose reference is the chosen completion and whose column `rejected` holds the other: each text, or
    a list of one assistant message. Raises `ProblemError` naming the row."""
    texts = [
        (_completion(row, row.reference, "chosen"), _completion(row, _column(row, rejected), "rejected"))
        for row in rows
    ]
    for row, (chosen, rejected) in zip(rows, texts, strict=True):
        if chosen == rejected:
            raise ProblemError(f"{row.source}: the chosen and the rejected completion are the same: {chosen!r:.80}")
    chosen_P, rejected_P = (
        to_samples([Example(row, pair[side]) for row, pair in zip(rows, texts, strict=True)], renderer, tokenizer)
        for side in (0, 1)
    )
    return [
        (chosen, dataclasses.replace(rejected, advantage=-1.0))
        for chosen, rejected in zip(chosen_P, rejected_P, strict=True)
    ]


def _column(row: Problem, name: str) -> Any:
    if name not in row.meta:
        raise ProblemError(
            f"{row.source}: no column {name!r} (key dpo.rejected); columns besides: {', '.join(row.meta)}"
        )
    return row.meta[name]


def _completion(row: Problem, value: Any, side: str) -> str:
    messages = value if isinstance(value, list) else [{"role": "assistant", "content": value}]
    if len(messages) == 1 and isinstance(messages[0], dict) and messages[0].get("role") == "assistant":
        content = messages[0].get("content")
        if isinstance(content, str) and content.strip():
            return content
    raise ProblemError(
        f"{row.source}: dpo.{side} must name a completion: text, or a list of one assistant message with text; "
        f"got {value!r:.80}"
    )
