"""The cache of a `MathVerifier`: it changes no verdict, and forgets what was asked for longest ago."""

from __future__ import annotations

from rewards.math_answers import MathVerifier


def test_the_same_answer_to_another_reference_and_another_answer_to_the_same_are_judged_anew() -> None:
    verifier = MathVerifier()
    asked = [("2", "2"), ("2", "3"), ("3", "3"), ("3", "2"), ("2", "2"), ("2", "3")]
    scores = [verifier.grade(rf"\boxed{{{answer}}}", reference).score for answer, reference in asked]
    assert scores == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert verifier.grade_answer("23", "4").score == 0.0
    assert verifier.grade_answer("2", "34").score == 0.0  # not the same two texts one behind the other
    assert verifier.grade_answer("2", "2").detail["answer"] == "2"


def test_what_was_asked_for_longest_ago_is_forgotten_first() -> None:
    """Room for two: both are kept, and of three the one that was not asked for again goes."""
    verifier = MathVerifier(cache=2)
    first, second = verifier.grade_answer("1", "9"), verifier.grade_answer("2", "9")
    assert verifier.grade_answer("1", "9") is first
    assert verifier.grade_answer("2", "9") is second
    assert verifier.grade_answer("1", "9") is first
    third = verifier.grade_answer("3", "9")
    assert verifier.grade_answer("1", "9") is first
    assert verifier.grade_answer("3", "9") is third
    assert verifier.grade_answer("2", "9") is not second
    none = MathVerifier(cache=0)
    assert none.grade_answer("1", "9") is not none.grade_answer("1", "9")
