"""Which completions become rows: small tables with the right results, each rule, filter and bound on either side."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.config.select import Select
from rlvr.problems.rows import ProblemError
from rlvr.problems.select import Sampled, Selected, passes, read_sampled, repeated_share, select
from rlvr.problems.templates import Prompt
from rlvr.records import Problem


def problem(id_: str, **meta: Any) -> Problem:
    return Problem(id=id_, prompt=f"What is {id_}?", reference="1", key=id_, meta=meta)


PROBLEMS = [problem("a"), problem("b"), problem("c")]


def sample(id_: str, text: str, right: bool | None, tokens: int | None = None, **fields: Any) -> Sampled:
    values: dict[str, Any] = {"step": 1, "finish_reason": "stop"} | fields
    return Sampled(f"f:{text}", id_, values["step"], text, tokens or len(text), values["finish_reason"], right)


SAMPLED = [
    sample("b", "bbbb", True), sample("a", "aaaaa", False), sample("a", "aaa", True), sample("a", "aaaa", True),
    sample("a", "aaa", True, step=2), sample("b", "bb", True), sample("b", "b", False), sample("c", "c", False),
    sample("c", "cc", None),
]  # fmt: skip


def chosen(result: Selected, key: str = "completion") -> list[str]:
    return [row[key] for row in result.rows]


def run(sampled: Sequence[Sampled] = SAMPLED, **keys: Any) -> Selected:
    return select(sampled, PROBLEMS, Select.model_validate(keys), seed=0, count_tokens=len)


def test_correct_takes_the_first_in_the_order_of_the_problems() -> None:
    result = run()
    assert chosen(result) == ["aaa", "bbbb"]
    assert result.rows[0] == {
        "prompt": "What is a?", "completion": "aaa", "problem_id": "a", "tokens": 3, "step": 1, "sampled_at": "f:aaa",
    }  # fmt: skip
    assert result.counts == {
        "completions": 9, "left out: not scored": 1, "problems": 3, "right": 5, "wrong": 3, "left out: equal texts": 1,
        "left out: more than keep": 2, "problems left out: right not within [1, ]": 1, "rows": 2,
    }  # fmt: skip


def test_keep_takes_more_and_equal_texts_once() -> None:
    assert chosen(run(keep=3)) == ["aaa", "aaaa", "bbbb", "bb"]


def test_the_shortest_by_tokens() -> None:
    assert chosen(run(rule="shortest_correct")) == ["aaa", "bb"]
    assert chosen(run(rule="shortest_correct", keep=2)) == ["aaa", "aaaa", "bb", "bbbb"]
    tied = [sample("a", "first", True, 5), sample("a", "other", True, 5)]
    assert chosen(run(tied, rule="shortest_correct")) == ["first"]


def test_random_ones_are_drawn_by_the_seed_and_the_problem() -> None:
    many = [sample("a", f"x{index}", True) for index in range(20)]
    draws = [
        chosen(select(many, PROBLEMS, Select(rule="random_correct", keep=3), seed=seed, count_tokens=len))
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 3


def test_pairs_of_right_and_wrong() -> None:
    result = run(rule="pairs", keep=2)
    assert [(row["chosen"], row["rejected"], row["rejected_tokens"]) for row in result.rows] == [
        ("aaa", "aaaaa", 5),
        ("bb", "b", 1),
    ]


def test_pairs_as_in_kimi() -> None:
    """Wrong ones only if longer; right ones from 1.5 times the length."""
    sampled = [
        sample("a", "r4", True, 4), sample("a", "r5", True, 5), sample("a", "r6", True, 6), sample("a", "w3", False, 3),
        sample("a", "w4", False, 4), sample("a", "w5", False, 5),
    ]  # fmt: skip
    result = run(sampled, rule="pairs", rejects="longer", keep=9)
    assert [(row["chosen"], row["rejected"]) for row in result.rows] == [("r4", "w5"), ("r4", "r6")]
    none = run(sampled[:2], rule="pairs", rejects="longer")
    assert none.rows == []
    assert none.counts["problems left out: nothing to reject"] == 1


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"right": [3, None]}, ["aaa"]),
        ({"right": [1, 2]}, ["bbbb"]),
        ({"wrong": [1, 1]}, ["aaa", "bbbb"]),
        ({"wrong": [2, None]}, []),
        ({"steps": [2, None]}, ["aaa"]),
        ({"steps": [None, 1], "rule": "shortest_correct"}, ["aaa", "bb"]),
    ],
)
def test_bounds(keys: dict[str, Any], expected: list[str]) -> None:
    assert chosen(run(**keys)) == expected


@pytest.mark.parametrize(
    ("filter_", "good", "bad"),
    [
        ({"type": "finished"}, {}, {"finish_reason": "length"}),
        ({"type": "language", "language": "en"}, {"text": "we add the two numbers and it is so"},
         {"text": "wir addieren die beiden Zahlen und das ist nicht so"}),
        ({"type": "paragraph", "most_words": 3}, {"text": "a b c\n\nd e f"}, {"text": "a b c d"}),
        ({"type": "no_code_block"}, {"text": "`x` is 1"}, {"text": "```python\nx = 1\n```"}),
        ({"type": "repetition", "ngram": 2, "most": 0.5}, {"text": "a b a b a"}, {"text": "a b a b a b a"}),
        ({"type": "length", "least": 2, "most": 4}, {"tokens": 4}, {"tokens": 5}),
        ({"type": "length", "least": 2, "most": 4}, {"tokens": 2}, {"tokens": 1}),
        ({"type": "same_tokens"}, {"text": "abc", "tokens": 4}, {"text": "abc", "tokens": 5}),
        ({"type": "same_tokens"}, {"text": "abc", "tokens": 3}, {"text": "abc", "tokens": 2}),
    ],
)  # fmt: skip
def test_each_filter_on_either_side(filter_: dict[str, Any], good: dict[str, Any], bad: dict[str, Any]) -> None:
    chosen_filter = Select.model_validate({"filters": [filter_]}).filters[0]
    for fields, expected in ((good, True), (bad, False)):
        one = sample("a", **({"text": "some text", "right": True} | fields))
        assert passes(one, chosen_filter, len) is expected
    result = run([sample("a", **({"text": "some text", "right": True} | bad))], filters=[filter_])
    assert result.counts[f"left out: {filter_['type']}"] == 1
    assert result.counts["problems left out: no right completion passes the filters"] == 1


def test_repeated_share_by_hand() -> None:
    assert repeated_share("a b a b a", 2) == 0.5  # ab ba ab ba: 2 of 4 stood before
    assert repeated_share("a b c", 4) == 0.0


def test_a_row_keeps_the_columns_that_a_template_may_use() -> None:
    topic = problem("a", topic="sums", prompt="hidden")
    (row,) = select([sample("a", "x", True)], [topic], Select(), seed=0, count_tokens=len).rows
    assert (row["topic"], row["prompt"]) == ("sums", "What is a?")


RECORD = {
    "problem_id": "a", "prompt": "User: What is a? <think>", "text": "<think> so", "tokens": 2, "step": 3,
    "finish_reason": "stop", "verdicts": {"accuracy": {"score": 1.0}, "format": {"score": None}},
}  # fmt: skip


def render(one: Problem) -> Prompt:
    text = f"User: {one.prompt} <think>"
    return Prompt(ids=(1,), text=text, prefill="<think>", source="")


def read(record: dict[str, Any], term: str = "accuracy", **keys: Any) -> Sampled:
    problems = {one.id: one for one in PROBLEMS}
    return read_sampled(record, "f:7", problems, render, Select.model_validate(keys), term)


def test_a_line_loses_the_prefill_and_gets_its_outcome() -> None:
    assert read(RECORD) == Sampled("f:7", "a", 3, " so", 2, "stop", True)
    assert read(RECORD, success=1.1).is_right is False
    assert read(RECORD, term="format").is_right is None


@pytest.mark.parametrize(
    ("change", "term", "message"),
    [
        (
            {"problem_id": "z"},
            "accuracy",
            r"f:7: problem 'z' is none of the recipe's problems.train; .*RUN/recipe.yaml",
        ),
        ({"prompt": "Q: What is a?"}, "accuracy", "f:7: the recipe's template renders .*'User: .*from 'Q: What is a"),
        ({"text": " so"}, "accuracy", "f:7: the recipe's template renders"),
        ({}, "style", "f:7: no verdict of the term 'style' .select.term.; there are accuracy, format"),
        ({"tokens": None}, "accuracy", "f:7: no 'tokens'; lines must be those of a run's rollouts.jsonl"),
    ],
)
def test_lines_that_do_not_fit_the_recipe_are_named(change: dict[str, Any], term: str, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        read(RECORD | change, term)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.text("xyz", min_size=1, max_size=3), st.booleans()), max_size=20),
    st.randoms(use_true_random=False),
)
def test_rows_are_right_completions_and_shortest_ones_do_not_depend_on_the_order(
    drawn: list[tuple[str, str, bool]], rng: random.Random
) -> None:  # fmt: skip
    """Every row's completion was sampled for its problem and is right; lengths are the same in any order."""
    sampled = [sample(id_, text, right) for id_, text, right in drawn]
    result = run(sampled, rule="shortest_correct", keep=2)
    for row in result.rows:
        assert any((one.problem_id, one.completion, one.is_right) == (row["problem_id"], row["completion"], True)
                   for one in sampled)  # fmt: skip
    shuffled = rng.sample(sampled, len(sampled))
    again = run(shuffled, rule="shortest_correct", keep=2)
    assert [(row["problem_id"], row["tokens"]) for row in result.rows] == [
        (row["problem_id"], row["tokens"]) for row in again.rows
    ]
