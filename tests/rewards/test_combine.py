"""Weights and gates; what was not scored makes the sum unknown, never smaller."""

from __future__ import annotations

import pytest

from rewards import Outcome, Verdict
from rewards.combine import Term, combine

RIGHT = Verdict(1.0, Outcome.CORRECT)
HALF = Verdict(0.5, Outcome.PARTIAL)
WRONG = Verdict(0.0, Outcome.WRONG)
ERROR = Verdict(None, Outcome.ERROR)


def test_scores_are_weighted_and_added() -> None:
    assert combine({"math": RIGHT, "format": HALF}, [Term("math"), Term("format", 0.2)]) == pytest.approx(1.1)
    assert combine({"math": RIGHT, "length": HALF}, [Term("math"), Term("length", -1.0)]) == 0.5


def test_a_gate_needs_full_marks() -> None:
    terms = [Term("math", 1.0, gate="format"), Term("format", 0.1)]
    assert combine({"math": RIGHT, "format": RIGHT}, terms) == pytest.approx(1.1)
    assert combine({"math": RIGHT, "format": HALF}, terms) == pytest.approx(0.05)
    assert combine({"math": RIGHT, "format": WRONG}, terms) == 0.0
    assert combine({"math": RIGHT, "format": RIGHT}, [Term("math", gate="format")]) == 1.0  # the gate is no term


def test_a_gate_that_is_full_marks_by_score_but_not_by_outcome_stays_shut() -> None:
    odd = Verdict(1.0, Outcome.PARTIAL)
    assert combine({"math": RIGHT, "format": odd}, [Term("math", gate="format")]) == 0.0


def test_a_needed_verdict_without_a_score_leaves_the_reward_open() -> None:
    terms = [Term("math", 1.0, gate="format"), Term("style", 0.1)]
    assert combine({"math": ERROR, "format": RIGHT, "style": RIGHT}, terms) is None
    assert combine({"math": RIGHT, "format": ERROR, "style": RIGHT}, terms) is None
    assert combine({"math": RIGHT, "format": RIGHT, "style": ERROR}, terms) is None


def test_a_verdict_behind_a_closed_gate_is_not_needed() -> None:
    assert combine({"math": ERROR, "format": WRONG}, [Term("math", gate="format")]) == 0.0


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="'mth'; there are: math"):
        combine({"math": RIGHT}, [Term("mth")])
    with pytest.raises(ValueError, match="there is none of 'format'"):
        combine({"math": RIGHT}, [Term("math", gate="format")])
    with pytest.raises(ValueError, match="at least one term"):
        combine({"math": RIGHT}, [])
    with pytest.raises(ValueError, match="twice"):
        combine({"math": RIGHT}, [Term("math"), Term("math")])
    with pytest.raises(ValueError, match="own gate"):
        Term("math", gate="math")
    with pytest.raises(ValueError, match="weight: nan"):
        Term("math", float("nan"))
