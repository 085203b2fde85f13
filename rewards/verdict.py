"""What a verifier says, and every way in which saying it can fail.

The error model, written down once:

========================  =======  ==========================================================================
outcome                   score    meaning
========================  =======  ==========================================================================
``CORRECT``               number   the answer earns full marks
``PARTIAL``               number   the answer earns part of the marks
``WRONG``                 number   an answer was read and is not right
``NO_ANSWER``             number   the text holds nothing that the rules accept as an answer
``UNREADABLE``            number   an answer was found but cannot be read (no syntax, too long, too deep)
``BAD_FORMAT``            number   the text breaks the structure that was asked for
``TIMEOUT``               number   the grader did not finish on this text within its limit and was killed
``CRASHED``               number   the grader's process died on this text (memory limit, stack, signal)
``BAD_REFERENCE``         None     the problem's own reference cannot be graded against: the data are broken
``ERROR``                 None     the verifier raised, or the machinery failed: nobody's answer was judged
========================  =======  ==========================================================================

What the model's text causes has a score (the verifier's ``lowest_score`` for ``TIMEOUT`` and ``CRASHED``), because
the policy must not gain by breaking its grader. What the model did not cause has no score: "not scored" is not 0,
and whoever consumes verdicts has to leave such a rollout out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable


class Outcome(StrEnum):
    """How a grading ended; the table above says what each one means."""

    CORRECT = "CORRECT"
    PARTIAL = "PARTIAL"
    WRONG = "WRONG"
    NO_ANSWER = "NO_ANSWER"
    UNREADABLE = "UNREADABLE"
    BAD_FORMAT = "BAD_FORMAT"
    TIMEOUT = "TIMEOUT"
    CRASHED = "CRASHED"
    BAD_REFERENCE = "BAD_REFERENCE"
    ERROR = "ERROR"

    @property
    def is_scored(self) -> bool:
        """True where a verdict of this outcome carries a number."""
        return self not in (Outcome.BAD_REFERENCE, Outcome.ERROR)


class BadReference(ValueError):
    """The reference of a problem cannot be graded against; the message says why. Raised by `check_reference`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of grading one completion.

    Example: ``Verdict(1.0, Outcome.CORRECT, {"answer": "42"})``.

    Raises `ValueError` when score and outcome contradict each other: a scored outcome needs a finite number, an
    unscored one needs ``None``.
    """

    score: float | None
    """The marks, usually between 0 and 1; None where nothing was judged."""
    outcome: Outcome
    """How the grading ended."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able facts for people: the extracted answer, the judge's word, a traceback."""

    def __post_init__(self) -> None:
        if self.outcome.is_scored:
            if self.score is None or not math.isfinite(self.score):
                raise ValueError(f"a verdict of outcome {self.outcome} needs a finite score, got {self.score!r}")
        elif self.score is not None:
            raise ValueError(
                f"a verdict of outcome {self.outcome} judges nothing: its score is None, not {self.score!r}"
            )


@runtime_checkable
class Verifier(Protocol):
    """What a grader of one's own has to offer; nothing is inherited, nothing registered.

    A class may also declare ``lowest_score: float`` (0.0 if it does not): the score of a completion on which the
    grader hung or died, and the least that `grade` ever returns.
    """

    def check_reference(self, reference: Any) -> None:
        """Raise `BadReference` if nothing could be graded against this reference. Called when data are loaded."""

    def grade(self, completion: str, reference: Any) -> Verdict:
        """Judge one completion. Runs in a killable worker process: it may be slow, never asynchronous."""
