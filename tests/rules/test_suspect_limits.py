"""The limits beyond which a completion of high reward is a suspect; what is done with them is in view and doctor."""

from __future__ import annotations

import pytest

from rlvr.rules.suspects import high_reward, short_limits, unreasoned_limit, words_before_answer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<think> one two </think> <answer> 3 </answer>", 2), (r"so \boxed{1} no, \boxed{2}", 3), ("#### 5", 0),
        ("5", None), ("x " * 800 + "#### 5", 801),
    ],
)  # fmt: skip
def test_words_before_the_answer(text: str, words: int | None) -> None:
    assert words_before_answer(text) == words


def test_high_is_nine_tenths_of_the_way_up() -> None:
    assert high_reward(-1.0, 1.0) == pytest.approx(0.8)


def test_short_is_a_quarter_of_the_median_of_the_step_and_the_ten_before() -> None:
    """The eleventh step before no longer counts; the limit is whole tokens."""
    assert short_limits({1: [100, 102], 2: [20]}) == {1: 25, 2: 25}
    limits = short_limits({1: [1000] * 100} | {step: [8] for step in range(2, 14)})
    assert (limits[11], limits[12], limits[13]) == (250, 2, 2)


def test_answers_at_once_are_suspects_only_where_reasoning_is_the_habit() -> None:
    assert [unreasoned_limit(median) for median in (9.5, 10, 39, 40)] == [None, 1, 3, 4]
