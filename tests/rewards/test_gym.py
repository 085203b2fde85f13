"""reasoning-gym's own scorers behind the verifier protocol."""

from __future__ import annotations

from typing import Any

import pytest

from rewards import BadReference, Outcome
from rewards.gym import ReasoningGymVerifier

ENTRY = {"question": "4 - 1 - 7 =", "answer": "-4", "metadata": {"difficulty": {"num_terms": (2, 6)}}}
REFERENCE = {"dataset": "chain_sum", "config": {}, "entry": repr(ENTRY)}


@pytest.mark.parametrize(
    ("completion", "outcome", "score"),
    [
        ("<think>4-8</think> <answer>-4</answer>", Outcome.CORRECT, 1.0),
        ("<answer>5</answer>", Outcome.WRONG, 0.0),
        ("it is -4", Outcome.NO_ANSWER, 0.0),
        ("", Outcome.NO_ANSWER, 0.0),
    ],
)
def test_outcomes(completion: str, outcome: Outcome, score: float) -> None:
    verdict = ReasoningGymVerifier().grade(completion, REFERENCE)
    assert (verdict.outcome, verdict.score) == (outcome, score)


def test_a_score_between_0_and_1_is_partial() -> None:
    """letter_jumble's scorer pays for a part of the words: 1 of 2 right gives something between 0 and 1."""
    entry = {
        "question": "?",
        "answer": "good day",
        "metadata": {"num_words": 2, "original_words": ["good", "day"], "scrambled_words": ["odog", "ayd"]},
    }
    reference = {"dataset": "letter_jumble", "config": {}, "entry": repr(entry)}
    verdict = ReasoningGymVerifier().grade("<answer>good dog</answer>", reference)
    assert verdict.outcome is Outcome.PARTIAL
    assert verdict.score is not None
    assert 0.0 < verdict.score < 1.0


def test_other_extraction_modes() -> None:
    verifier = ReasoningGymVerifier(extract="boxed")
    assert verifier.grade(r"so \boxed{-4}", REFERENCE).outcome is Outcome.CORRECT
    with pytest.raises(ValueError, match="extract"):
        ReasoningGymVerifier(extract="bxed")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("-4", "must be an object"),
        ({"dataset": "chain_sum", "config": {}}, "must be an object with dataset, config and entry"),
        ({**REFERENCE, "dataset": "no_such"}, "reasoning-gym has no 'no_such'"),
        ({**REFERENCE, "entry": "__import__('os')"}, "no Python literal"),
        ({**REFERENCE, "entry": 4}, "no Python literal"),
        ({**REFERENCE, "entry": "{'answer': '1'}"}, "must have question, answer and metadata"),
    ],
)
def test_references_that_cannot_be_scored(reference: Any, said: str) -> None:
    with pytest.raises(BadReference) as caught:
        ReasoningGymVerifier().check_reference(reference)
    assert said in str(caught.value)


def test_an_answer_that_its_own_scorer_refuses_is_a_bad_reference() -> None:
    entry = {"question": "reach 5", "answer": "1 + 1", "metadata": {"numbers": [1, 1], "target": 5}}
    reference = {"dataset": "countdown", "config": {}, "entry": repr(entry)}
    with pytest.raises(BadReference, match="gives its own answer 0"):
        ReasoningGymVerifier().check_reference(reference)
