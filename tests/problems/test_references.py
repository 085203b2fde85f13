"""References are checked by their verifiers, in the pool, before a run starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rewards.pool import GradingPool, VerifierSpec
from rlvr.config import RewardTerm
from rlvr.problems import ProblemError, check_references
from rlvr.records import Problem

COUNTDOWN, MATHS = "rewards.countdown:CountdownVerifier", "rewards.math_answers:MathVerifier"
TERMS = [RewardTerm(name="game", verifier=COUNTDOWN), RewardTerm(name="maths", verifier=MATHS)]


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    specs = {term.name: VerifierSpec(term.verifier) for term in TERMS}
    with GradingPool(specs, timeout=30.0) as pool:
        yield pool


def problem(line: int, reference: Any, verifiers: tuple[str, ...] | None) -> Problem:
    return Problem(
        id=str(line), prompt="?", reference=reference, key="k", source=f"rows.jsonl:{line}", verifiers=verifiers
    )


GAME = {"numbers": [1, 2], "target": 3}


@pytest.mark.slow
def test_each_problem_is_checked_by_the_terms_that_apply_to_it(pool: GradingPool) -> None:
    check_references([problem(1, GAME, ("game",)), problem(2, "42", ("maths",))], pool, TERMS)
    check_references([problem(1, GAME, None)], pool, TERMS[:1])


def test_broken_references_are_named_by_row_term_and_reason(pool: GradingPool) -> None:
    rows = [problem(1, GAME, ("game",)), problem(2, {"numbers": [1]}, ("game",)), problem(3, GAME, None)]
    with pytest.raises(ProblemError) as caught:
        check_references(rows, pool, TERMS)
    message = str(caught.value)
    assert "2 of 4 references" in message
    assert "rows.jsonl:2: game:" in message
    assert "has no 'target'" in message
    assert "rows.jsonl:3: maths:" in message
    assert "rows.jsonl:1" not in message


def test_many_broken_references_are_counted(pool: GradingPool) -> None:
    with pytest.raises(ProblemError, match="and 15 more"):
        check_references([problem(line, "", None) for line in range(20)], pool, TERMS[:1])


def test_a_problem_that_names_no_term_of_the_recipe_is_refused(pool: GradingPool) -> None:
    with pytest.raises(ProblemError, match=r"rows.jsonl:1: no reward term is named 'games'; terms: game, maths"):
        check_references([problem(1, GAME, ("games",))], pool, TERMS)


def test_the_refusal_names_the_eval_set_and_how_to_go_without(pool: GradingPool) -> None:
    with pytest.raises(ProblemError, match=r"1 of 1 references of eval set 'held_out' .*problems\.eval=\[\]"):
        check_references([problem(1, "x", ("game",))], pool, TERMS, eval_set="held_out")
