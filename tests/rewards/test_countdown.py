"""Countdown: exact arithmetic on the given numbers, and nothing else gets through."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import BadReference, Outcome
from rewards.countdown import CountdownVerifier

REFERENCE = {"numbers": [3, 7, 50], "target": 29}
C, W, U, N = Outcome.CORRECT, Outcome.WRONG, Outcome.UNREADABLE, Outcome.NO_ANSWER


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("50-7*3", C),
        ("50 - (7 * 3) = 29", C),
        ("-(7*3) + 50", C),
        (r"50 - 7 \times 3", C),
        ("50 − 7×3", C),
        ("$50-7*3$.", C),
        ("50-7*3=30", W),
        ("50-21", W),
        ("29", W),
        ("50-7-7-7", W),
        ("50-7", W),
        ("50-7*3+3-3", W),
        ("50-7*3*50/50", W),
        ("(50-7)*3", W),
        ("7**3", U),
        ("50-7*3 # ok", U),
        ("__import__('os')", U),
        ("50-7*(3", U),
        ("50-7*3j", U),
        ("50//7*3", U),
        ("3/(7-7)+50", U),
        ("50 7 3", U),
        ("50-7*3 == 29", U),
        ("=29", U),
        ("9" * 50, U),
        ("(" * 100 + "1" + ")" * 100, W),
        ("-" * 200 + "50", U),
        ("1+" * 2000 + "1", U),
    ],
)
def test_outcomes(answer: str, outcome: Outcome) -> None:
    verdict = CountdownVerifier().grade(f"<think>t</think> <answer>{answer}</answer>", REFERENCE)
    assert verdict.outcome is outcome, verdict.detail
    assert verdict.score == (1.0 if outcome is C else 0.0)


def test_no_tag_is_no_answer() -> None:
    assert CountdownVerifier().grade("50-7*3", REFERENCE).outcome is N
    assert CountdownVerifier(extract="boxed").grade(r"\boxed{50-7*3}", REFERENCE).outcome is C


def test_intermediate_fractions_are_exact() -> None:
    """8 / (3 - 8/3) = 24, the classic that floating point misses."""
    reference = {"numbers": [3, 3, 8, 8], "target": 24}
    assert CountdownVerifier().grade("<answer>8/(3-8/3)</answer>", reference).outcome is C


def test_numbers_may_be_left_over_only_if_the_option_says_so() -> None:
    reference = {"numbers": [3, 7, 50], "target": 53}
    text = "<answer>50+3</answer>"
    assert CountdownVerifier().grade(text, reference).outcome is W
    assert CountdownVerifier(use_all=False).grade(text, reference).outcome is C
    assert CountdownVerifier(use_all=False).grade("<answer>50+3+3-3</answer>", reference).outcome is W


def test_partial_credit_only_if_asked_for() -> None:
    verdict = CountdownVerifier(legal_score=0.1).grade("<answer>50+7+3</answer>", REFERENCE)
    assert (verdict.score, verdict.outcome) == (0.1, Outcome.PARTIAL)
    assert CountdownVerifier(legal_score=0.1).grade("<answer>50+7</answer>", REFERENCE).score == 0.0
    with pytest.raises(ValueError, match="legal_score: 1"):
        CountdownVerifier(legal_score=1)
    with pytest.raises(ValueError, match="extract: 'tag'"):
        CountdownVerifier(extract="tag")


@pytest.mark.parametrize(
    "reference",
    [None, "29", {"numbers": [1]}, {"target": 1}, {"numbers": [], "target": 1}, {"numbers": [1.5], "target": 1},
     {"numbers": [True], "target": 1}, {"numbers": [1], "target": "1"}, {"numbers": [-1], "target": 1}],
)  # fmt: skip
def test_broken_references_are_refused(reference: Any) -> None:
    with pytest.raises(BadReference):
        CountdownVerifier().check_reference(reference)


@pytest.mark.slow
@given(st.text(alphabet="0123456789+-*/() =.e_[]", max_size=80))
def test_never_raises(answer: str) -> None:
    assert CountdownVerifier().grade(f"<answer>{answer}</answer>", REFERENCE).outcome.is_scored
