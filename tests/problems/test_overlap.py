"""What training and evaluation share: found by key and by words, acted on by the recipe's choice."""

from __future__ import annotations

import pytest

from rlvr.config.problems import Arithmetic
from rlvr.problems import ProblemError, apply_overlap, find_overlap, load_problems
from rlvr.problems.keys import problem_key
from rlvr.records import Problem

STORY = (
    "A farmer has 12 hens and each of them lays 3 eggs a day. He sells the eggs at the market in the town "
    "for 2 dollars a dozen. How much money does he make in a week of seven days?"
)


def problem(name: str, prompt: str) -> Problem:
    return Problem(id=name, prompt=prompt, reference="1", key=problem_key(prompt), source=f"{name}.jsonl:1")


TRAIN = [problem("a", "What is 3*7?"), problem("b", STORY.replace("12", "15")), problem("c", "Name a prime.")]
EVALS = {
    "sums": [problem("x", "what is 7 * 3"), problem("y", "What is 8*9?")],
    "stories": [problem("z", STORY)],
}


def test_equal_and_near_problems_are_found_with_their_places() -> None:
    overlap = find_overlap(TRAIN, EVALS)
    assert [(p.train.id, p.eval_set, p.evaluation.id) for p in overlap.same] == [("a", "sums", "x")]
    assert [(p.train.id, p.eval_set, p.evaluation.id) for p in overlap.near] == [("b", "stories", "z")]
    # 41 words make 29 runs of 13; the changed number is the 4th word and breaks the first 4 of them
    assert overlap.near[0].share == pytest.approx(25 / 29)
    report = "\n".join(overlap.lines())
    assert "1 of 3 training problems are the same problem as one of eval set 'sums'" in report
    assert "a.jsonl:1 = sums x.jsonl:1" in report
    assert "b.jsonl:1 = stories z.jsonl:1 (86% of its 13-grams)" in report


def test_boilerplate_is_no_overlap() -> None:
    """A shared run of 13 words and more is not enough when most of the problem differs."""
    tail = " Find the remainder when the number of such ways in all is divided by 1000 exactly."
    one = problem(
        "one", "Count the paths from the origin to the point (8,8) on the grid, step by step up or right." + tail
    )
    two = problem(
        "two", "Let N be the sum of all the positive odd divisors of 2024 that are not squares of a prime." + tail
    )
    assert find_overlap([one], {"eval": [two]}).near == ()


def test_no_overlap_says_nothing() -> None:
    overlap = find_overlap(TRAIN[2:], EVALS)
    assert (overlap.same, overlap.near, overlap.lines()) == ((), (), [])
    assert apply_overlap(TRAIN[2:], overlap, "refuse") == TRAIN[2:]


def test_refuse_drop_and_report() -> None:
    overlap = find_overlap(TRAIN, EVALS)
    with pytest.raises(ProblemError) as caught:
        apply_overlap(TRAIN, overlap, "refuse")
    for part in ("a.jsonl:1 = sums x.jsonl:1", "problems.overlap", "'drop'", "'report'"):
        assert part in str(caught.value)
    assert [p.id for p in apply_overlap(TRAIN, overlap, "drop")] == ["b", "c"]  # near ones stay
    assert apply_overlap(TRAIN, overlap, "report") == TRAIN
    with pytest.raises(ProblemError, match="leaves nothing"):
        apply_overlap(TRAIN[:1], find_overlap(TRAIN[:1], EVALS), "drop")


def test_near_pairs_alone_refuse_nothing() -> None:
    overlap = find_overlap(TRAIN[1:], EVALS)
    assert overlap.near
    assert apply_overlap(TRAIN[1:], overlap, "refuse") == TRAIN[1:]


def test_generated_splits_are_disjoint_and_the_whole_is_not() -> None:
    def pairs(**keys: object) -> list[Problem]:
        return load_problems(Arithmetic.model_validate({"type": "arithmetic", "held_out": 0.25, **keys}))

    held = {"held_out": pairs(split="eval")}
    assert find_overlap(pairs(split="train"), held).same == ()
    overlap = find_overlap(pairs(split="all"), held)
    assert {p.train.id for p in overlap.same} == {p.id for p in held["held_out"]}
    assert {p.id for p in apply_overlap(pairs(split="all"), overlap, "drop")} == {p.id for p in pairs(split="train")}


def test_a_generated_question_is_found_in_a_file_of_questions() -> None:
    generated = load_problems(Arithmetic.model_validate({"type": "arithmetic", "low": 7, "high": 8}))
    overlap = find_overlap(generated, {"file": [problem("row", "what is 8 * 7 ?")]})
    assert {p.train.id for p in overlap.same} == {"arithmetic/7*8", "arithmetic/8*7"}


def test_a_long_list_of_pairs_is_cut_and_counted() -> None:
    train = [problem(f"t{number}", f"What is {number}+100?") for number in range(9)]
    lines = find_overlap(train, {"eval": train}).lines()
    assert len(lines) == 1 + 5 + 1
    assert "9 of 9" in lines[0]
    assert "4 more pairs" in lines[-1]
