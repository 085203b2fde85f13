"""Plain functions as verifiers: ``f(completion, reference)`` that returns a number, True or False, or a `Verdict`."""

from __future__ import annotations

import inspect
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards.verdict import Outcome, Verdict, Verifier

FULL_MARKS = 1.0
"""The score from which a number counts as CORRECT."""


class FunctionVerifier:
    """Grades by a function of completion and reference.

    =====================  ===============================================================================
    it returns             which becomes
    =====================  ===============================================================================
    ``True``, ``False``    CORRECT with score 1, WRONG with score 0
    a number               that score; CORRECT from 1 on, WRONG at `lowest_score`, PARTIAL between
    a `Verdict`            that verdict
    anything else          an error with a sentence, also NaN and None: nothing was judged, which is not 0
    =====================  ===============================================================================

    Where a function returns less than 0, say so by an attribute of it: ``f.lowest_score = -1.0``. A completion on which
    it hangs or dies gets that score, so that none gains by breaking its grader.
    """

    def __init__(self, function: Callable[..., Any], **args: Any) -> None:
        """`args` are passed to the function at each call, as keyword arguments."""
        self.function, self.args = function, args
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        _check_parameters(function, self.name, args)
        self.lowest_score = float(getattr(function, "lowest_score", 0.0))
        if not self.lowest_score < FULL_MARKS:
            raise ValueError(f"{self.name}.lowest_score must be below {FULL_MARKS:g}, got {self.lowest_score:g}")

    def check_reference(self, reference: Any) -> None:
        """A function says nothing about references: all are taken."""

    def grade(self, completion: str, reference: Any) -> Verdict:
        """The function's word. Raises `TypeError` or `ValueError` where it is not one of those above."""
        given = self.function(completion, reference, **self.args)
        if isinstance(given, Verdict):
            return given
        if isinstance(given, bool):
            return Verdict(float(given), Outcome.CORRECT if given else Outcome.WRONG)
        try:
            score = math.nan if isinstance(given, str) else float(given)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise TypeError(f"{self.name} returned {given!r:.200}; {RULE}")
        if score < self.lowest_score:
            raise ValueError(
                f"{self.name} returned {score:g}, less than its lowest score {self.lowest_score:g}, which a completion "
                f"gets that hangs it: set {self.name}.lowest_score to the least that it returns"
            )
        if score >= FULL_MARKS:
            return Verdict(score, Outcome.CORRECT)
        return Verdict(score, Outcome.WRONG if score == self.lowest_score else Outcome.PARTIAL)


def _check_parameters(function: Callable[..., Any], name: str, args: dict[str, Any]) -> None:
    """Raise `ValueError` for a function that cannot be called with completion, reference and `args`."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some that are written in C do not say
        return
    if "completions" in signature.parameters:
        raise ValueError(
            f"{name} takes lists of completions, as TRL's reward functions do; here a function takes one completion "
            "and its reference. 'rewards.adapters:TRLRewardVerifier' runs TRL's as they are"
        )
    try:
        signature.bind("", "", **args)
    except TypeError as error:
        raise ValueError(f"{name}{signature} cannot be called with (completion, reference): {error}") from None


RULE = "a reward function returns a finite number, True or False, or a rewards.Verdict"


class PickledVerifier:
    """What `rlvr.train` was given and no worker can import: a function or class of a notebook or of the script itself.

    Args: pickle_file: the pickled function, class or verifier; code: a hash of its code, by which a run that goes on
    sees that it was changed; all others go to the function or class.
    """

    def __new__(cls, pickle_file: str, code: str, **args: Any) -> Any:
        """The verifier itself, not one of this class."""
        return as_verifier(pickle.loads(Path(pickle_file).read_bytes()), args)


def as_verifier(target: Any, args: dict[str, Any]) -> Verifier:
    """The verifier that a class makes of `args`, an object that grades as it is, or a function wrapped."""
    if not isinstance(target, type) and not hasattr(target, "grade"):
        return FunctionVerifier(target, **args)
    verifier: Verifier = target(**args) if isinstance(target, type) else target
    return verifier
