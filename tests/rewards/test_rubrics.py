"""Rubrics written for Prime Intellect's `verifiers` run unchanged, in the same killable workers (the real package)."""

from __future__ import annotations

import pytest

from rewards import BadReference, Outcome
from rewards.pool import GradingPool, VerifierSpec
from rewards.rubrics import RubricVerifier

RIGHT = "<think>2 and 3</think><answer>5</answer>"
ADAPTER = "rewards.rubrics:RubricVerifier"


@pytest.mark.slow
def test_weights_parser_metrics_and_chat_messages() -> None:
    """1 x correct + 0.2 x format, and a metric of weight 0 that asks for prompt, state and task."""
    verifier = RubricVerifier("rubrics_of_others:rubric")
    assert verifier.full_marks == pytest.approx(1.2)
    right = verifier.grade(RIGHT, {"answer": "5", "prompt": "2+3?"})
    assert (right.score, right.outcome) == (pytest.approx(1.2), Outcome.CORRECT)
    assert right.detail["parts"]["words"] == 3.0
    wrong = verifier.grade(RIGHT, "6")  # a bare reference is the answer
    assert (wrong.score, wrong.outcome) == (pytest.approx(0.2), Outcome.PARTIAL)
    assert verifier.grade("no tags", "6").score == pytest.approx(0.04)  # the parser's own share for a format


@pytest.mark.slow
def test_a_factory_with_arguments_and_an_asynchronous_function() -> None:
    """correct 1.0, short 0.5, and `hangs` (here 1) at a penalty of -0.25: 1.25 of at most 1.5."""
    verifier = RubricVerifier("rubrics_of_others:make", {"penalty": -0.25})
    verdict = verifier.grade(RIGHT, {"answer": "5", "info": '{"limit": 200}'})
    assert (verdict.score, verdict.outcome) == (1.25, Outcome.PARTIAL)
    assert verifier.grade(RIGHT, {"answer": "5", "info": {"limit": 3}}).score == 0.75


def test_an_environment_s_group_of_rubrics_gets_the_columns_of_the_row() -> None:
    verifier = RubricVerifier("rubrics_of_others:load_environment")
    verifier.check_reference({"answer": "5", "solution": "think"})
    verdict = verifier.grade(RIGHT, {"answer": "5", "solution": "think"})
    assert (verdict.score, verdict.outcome) == (2.5, Outcome.CORRECT)
    with pytest.raises(BadReference, match="'solution_of_the_row' asks for solution; the reference has answer"):
        verifier.check_reference("5")


def test_a_rubric_with_a_scoring_of_its_own_keeps_it() -> None:
    assert RubricVerifier("rubrics_of_others:Halved").grade(RIGHT, "5").score == 0.5


@pytest.mark.slow
def test_the_package_s_math_rubric() -> None:
    verifier = RubricVerifier("verifiers:MathRubric")
    assert verifier.grade(r"so \boxed{\frac{1}{2}}", "0.5").outcome is Outcome.CORRECT
    assert verifier.grade(r"so \boxed{\frac{1}{3}}", "0.5").outcome is Outcome.WRONG


def test_functions_and_weights_alone_are_enough() -> None:
    verdict = RubricVerifier("rubrics_of_others:plain").grade(RIGHT, "5")
    assert (verdict.score, verdict.detail["parts"]) == (1.5, {"correct": 1.0, "short": 1.0})


def test_text_instead_of_messages() -> None:
    verifier = RubricVerifier("rubrics_of_others:Halved", conversational=False)
    assert verifier.grade(RIGHT, {"answer": "5", "prompt": "2+3?"}).score == 0.5


def test_what_the_package_would_count_as_zero_judges_nobody_here() -> None:
    with pytest.raises(KeyError, match="a bug of the function"):
        RubricVerifier("rubrics_of_others:broken").grade(RIGHT, "5")
    with pytest.raises(TypeError, match="float"):
        RubricVerifier("rubrics_of_others:empty_handed").grade(RIGHT, "5")


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        ("rubrics_of_others", {}, "not of the form 'module:name'"),
        ("no_such_environment:rubric", {}, "there is no module 'no_such_environment'"),
        ("rubrics_of_others:rubrics", {}, "has no 'rubrics'"),
        ("rubrics_of_others:make", {"penlty": 1}, "cannot be called with {'penlty': 1}"),
        ("rubrics_of_others:rubric", {"penalty": 1}, "is a Rubric already"),
        ("rubrics_of_others:grouped", {}, "'of_a_group' scores a whole group"),
        ("rubrics_of_others:nothing", {}, "gives a str; it must give a rubric"),
    ],
)
def test_mistakes_are_named(path: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RubricVerifier(path, args)


def test_an_info_that_is_no_json_is_a_bad_reference() -> None:
    with pytest.raises(BadReference, match=r"info: '\{limit' is neither an object nor its JSON"):
        RubricVerifier("rubrics_of_others:make").check_reference({"answer": "5", "info": "{limit"})


@pytest.mark.slow
def test_in_a_pool_it_can_be_killed_and_its_bugs_are_errors() -> None:
    specs = {
        "make": VerifierSpec(ADAPTER, {"rubric": "rubrics_of_others:make"}),
        "broken": VerifierSpec(ADAPTER, {"rubric": "rubrics_of_others:broken"}),
    }
    with GradingPool(specs, timeout=2.0) as pool:
        verdicts = pool.grade_many([("make", RIGHT, "5"), ("make", "hang", "5"), ("broken", RIGHT, "5")])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT, Outcome.TIMEOUT, Outcome.ERROR]
    assert "raised by the reward function 'raises'" in verdicts[2].detail["traceback"]
