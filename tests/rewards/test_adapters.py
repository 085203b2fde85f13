"""TRL reward functions run unchanged, in the same killable workers."""

from __future__ import annotations

import pytest

from rewards import BadReference, Outcome
from rewards.adapters import TRLRewardVerifier
from rewards.pool import GradingPool, VerifierSpec


def test_columns_reach_the_function_and_its_score_comes_back() -> None:
    verifier = TRLRewardVerifier("trl_functions:exact")
    assert verifier.grade("5", {"solution": "5", "prompt": "2+3"}).outcome is Outcome.CORRECT
    wrong = verifier.grade("6", {"solution": "5", "other": 1})
    assert (wrong.score, wrong.outcome) == (0.0, Outcome.WRONG)
    assert TRLRewardVerifier("trl_functions:exact", key="solution").grade("5", "5").score == 1.0


def test_conversational_completions_are_messages() -> None:
    verdict = TRLRewardVerifier("trl_functions:chat_length", conversational=True).grade("12345", {})
    assert (verdict.score, verdict.outcome) == (0.5, Outcome.PARTIAL)


def test_asynchronous_functions_and_none() -> None:
    verifier = TRLRewardVerifier("trl_functions:asynchronous")
    assert verifier.grade("it is 5", {"solution": "5"}).score == 1.0
    skipped = verifier.grade("it is 5", {"solution": ""})
    assert (skipped.score, skipped.outcome) == (None, Outcome.BAD_REFERENCE)


def test_mistakes_are_named() -> None:
    with pytest.raises(BadReference, match="asks for solution; the reference has answer"):
        TRLRewardVerifier("trl_functions:exact").check_reference({"answer": "5"})
    with pytest.raises(BadReference, match="must be an object of columns"):
        TRLRewardVerifier("trl_functions:exact").check_reference("5")
    with pytest.raises(ValueError, match="asks for 'completion_ids'"):
        TRLRewardVerifier("trl_functions:inside_only")
    with pytest.raises(ValueError, match="has no function or class 'exat'"):
        TRLRewardVerifier("trl_functions:exat")
    with pytest.raises(ValueError, match="lowest_score: 1"):
        TRLRewardVerifier("trl_functions:exact", lowest_score=1.0)


def test_in_a_pool_a_broken_function_judges_nobody() -> None:
    adapter = "rewards.adapters:TRLRewardVerifier"
    names = ("exact", "asynchronous", "broken", "flat")
    specs = {name: VerifierSpec(adapter, {"function": f"trl_functions:{name}"}) for name in names}
    with GradingPool(specs) as pool:
        verdicts = pool.grade_many([(name, "5", {"solution": "5"}) for name in names])
    assert [verdict.score for verdict in verdicts] == [1.0, 1.0, None, None]
    assert "a reward is a finite number" in verdicts[2].detail["reason"]
    assert "a list of one" in verdicts[3].detail["reason"]
