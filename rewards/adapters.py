"""Reward functions that people have already, as verifiers: TRL's `f(prompts, completions, **columns)`."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from rewards.names import NameNotFound, load_named
from rewards.verdict import BadReference, Outcome, Verdict

OFFERED = ("prompts", "completions")
ABSENT = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What TRL's trainer also passes and a grader outside the trainer does not have."""


class TRLRewardVerifier:
    """Runs a TRL reward function, synchronous or not, on one completion at a time.

    The reference is an object with the data's columns that the function asks for, ``{"solution": "42"}``, and
    ``prompt`` if it looks at that. Args: function: ``module:name``; conversational: completions (and prompts) are
    passed as chat messages, as TRL does for conversational data; full_marks: the score that counts as CORRECT;
    lowest_score: what the function gives at worst; key: the column's name where references are bare values.

    A function that returns None (TRL: not applicable to this sample) has not judged: BAD_REFERENCE, no score.
    """

    def __init__(
        self,
        function: str,
        conversational: bool = False,
        full_marks: float = 1.0,
        lowest_score: float = 0.0,
        key: str | None = None,
    ) -> None:
        if not lowest_score < full_marks:
            raise ValueError(f"lowest_score: {lowest_score!r} must be below full_marks {full_marks!r}")
        try:
            found, _ = load_named(function, only_callable=True)
        except NameNotFound as error:
            raise ValueError(f"function: {error}") from None
        self.function: Callable[..., Any] = found
        self.conversational = conversational
        self.full_marks = full_marks
        self.lowest_score = lowest_score
        self.key = key
        self._takes_all, self._needed, self._known = _parameters(found, function)

    def check_reference(self, reference: Any) -> None:
        """Raises `BadReference` when a column that the function asks for is missing."""
        columns = self._columns(reference)
        missing = [name for name in self._needed if name not in columns]
        if missing:
            raise BadReference(
                f"the function asks for {', '.join(missing)}; the reference has {', '.join(columns) or 'none'}"
            )

    def grade(self, completion: str, reference: Any) -> Verdict:
        """The function's score; CORRECT at full marks, WRONG at the lowest score or below, else PARTIAL."""
        columns = self._columns(reference)
        prompt = columns.pop("prompt", "")
        arguments = {name: [value] for name, value in columns.items() if self._takes_all or name in self._known}
        answer = self.function(
            prompts=[self._messages("user", prompt)], completions=[self._messages("assistant", completion)], **arguments
        )
        scores = asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer
        if not isinstance(scores, list | tuple) or len(scores) != 1:
            raise TypeError(f"the function returned {scores!r:.200} for one completion, it must return a list of one")
        return self._verdict(scores[0])

    def _verdict(self, score: float | None) -> Verdict:
        if score is None:
            return Verdict(None, Outcome.BAD_REFERENCE, {"reason": "the function returned None: not applicable"})
        score = float(score)
        if not math.isfinite(score):
            raise ValueError(f"the function returned {score}, a reward is a finite number or None")
        if score >= self.full_marks:
            return Verdict(score, Outcome.CORRECT)
        return Verdict(score, Outcome.WRONG if score <= self.lowest_score else Outcome.PARTIAL)

    def _columns(self, reference: Any) -> dict[str, Any]:
        if self.key is not None:
            return {self.key: reference}
        if not isinstance(reference, Mapping):
            raise BadReference(f"{reference!r:.200} must be an object of columns (or give the column's name as 'key')")
        return dict(reference)

    def _messages(self, role: str, content: Any) -> Any:
        if not self.conversational or not isinstance(content, str):
            return content
        return [{"role": role, "content": content}]


async def _awaited(answer: Any) -> Any:
    return await answer


def _parameters(function: Callable[..., Any], path: str) -> tuple[bool, list[str], set[str]]:
    """Whether it takes any column, the columns that it must have, and all columns that it knows."""
    takes_all, needed, known = False, [], set()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_all = True
        elif name in ABSENT and parameter.default is parameter.empty:
            raise ValueError(f"function: {path!r} asks for {name!r}, which exists only inside TRL's trainer")
        elif name not in (*OFFERED, *ABSENT, "prompt"):
            known.add(name)
            if parameter.default is parameter.empty:
                needed.append(name)
    return takes_all, needed, known
