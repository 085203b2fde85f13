import itertools
import math
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rewards import Outcome
from rlvr.rollout.evaluate import (
    comparison,
    interval,
    maj_at_k,
    mean_interval,
    pass_at_k,
    problem_result,
    summarise,
)
from rlvr.runlog.console import eval_lines
from tests.builders import make_group, make_rollout

RIGHT, WRONG, ERROR, NOTHING = Outcome.CORRECT, Outcome.WRONG, Outcome.ERROR, Outcome.NO_ANSWER


def brute_pass(correct: list[bool], k: int) -> Fraction:
    draws = list(itertools.combinations(correct, k))
    return Fraction(sum(any(draw) for draw in draws), len(draws))


def brute_maj(correct: list[bool], answers: list[str | None], k: int) -> Fraction:
    """The definition itself: every draw, every tied answer, the share of right ones among equal answers."""
    right = {
        a: Fraction(sum(c for c, b in zip(correct, answers, strict=True) if b == a), answers.count(a)) for a in answers
    }
    total, draws = Fraction(0), list(itertools.combinations(answers, k))
    for draw in draws:
        votes = Counter(answer for answer in draw if answer is not None)
        if votes:
            tied = [answer for answer, count in votes.items() if count == max(votes.values())]
            total += sum((right[answer] for answer in tied), Fraction(0)) / len(tied)
    return total / len(draws)


def test_pass_at_k_by_hand() -> None:
    """n = 4, c = 1, k = 2: 1 - C(3,2)/C(4,2) = 1/2."""
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_at_k(5, 0, 3) == 0.0
    assert pass_at_k(5, 5, 1) == 1.0
    assert pass_at_k(5, 3, 3) == 1.0
    assert pass_at_k(1000, 1, 1) == pytest.approx(0.001)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
@settings(max_examples=60, deadline=None)
def test_pass_at_k_is_the_mean_over_all_draws(correct: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(correct)))
    assert pass_at_k(len(correct), sum(correct), k) == pytest.approx(float(brute_pass(correct, k)), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_what_it_is_not_defined_for(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"got n = {n}, c = {c}, k = {k}"):
        pass_at_k(n, c, k)


def test_maj_at_k_by_hand() -> None:
    """Completions a a b with a right. k = 1: 2/3. k = 2: aa wins, ab and ab tie: (1 + 1/2 + 1/2) / 3. k = 3: a wins."""
    correct, answers = [True, True, False], ["a", "a", "b"]
    assert maj_at_k(correct, answers, 1) == pytest.approx(2 / 3)
    assert maj_at_k(correct, answers, 2) == pytest.approx(2 / 3)
    assert maj_at_k(correct, answers, 3) == 1.0


def test_answers_without_content_do_not_vote() -> None:
    """One vote for the right answer beats two answers that say nothing; a draw of nothing is wrong."""
    assert maj_at_k([True, False, False], ["a", None, None], 3) == 1.0
    assert maj_at_k([True, False, False], ["a", None, None], 2) == pytest.approx(2 / 3)
    assert maj_at_k([False, False], [None, None], 2) == 0.0


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", "c", "d", None])), min_size=1, max_size=7), st.data()
)
@settings(max_examples=150, deadline=None)
def test_maj_at_k_is_the_mean_over_all_draws_and_all_lots(
    pairs: list[tuple[bool, str | None]], data: st.DataObject
) -> None:
    correct, answers = [right and answer is not None for right, answer in pairs], [answer for _, answer in pairs]
    k = data.draw(st.integers(1, len(pairs)))
    assert maj_at_k(correct, answers, k) == pytest.approx(float(brute_maj(correct, answers, k)), abs=1e-12)


def test_maj_at_k_of_many_answers_stays_a_probability() -> None:
    """n = 64, k = 32: counts near C(64, 32) = 1.8e18 do not spoil the sum; right and wrong answers share all draws."""
    answers = [f"{i % 7}" for i in range(64)]
    each = [maj_at_k([answer == str(i) for answer in answers], answers, 32) for i in range(7)]
    assert math.fsum(each) == pytest.approx(1.0, abs=1e-12)


def test_interval_by_hand() -> None:
    """Values 1, 1/2, 0, 1/2 of 4 problems: mean 1/2, squared deviations 1/2, at most 3/4; effective draws
    4 (3/4 + 1/2) / (1/2 + 1/2) = 5; Wilson: (1/2 + z^2/10 -+ z sqrt(1/20 + z^2/100)) / (1 + z^2/5)."""
    z2 = 1.959963984540054**2
    found = interval([1.0, 0.5, 0.0, 0.5], 8)
    half = math.sqrt(z2) * math.sqrt(1 / 20 + z2 / 100)
    assert found.mean == 0.5
    assert found.low == pytest.approx((0.5 + z2 / 10 - half) / (1 + z2 / 5))
    assert found.high == pytest.approx((0.5 + z2 / 10 + half) / (1 + z2 / 5))


def test_interval_of_problems_answered_once_is_nearly_wilsons_for_that_many_draws() -> None:
    """7 of 10: 10 (1.89 + 0.5) / (2.1 + 0.5) = 9.19 effective draws. Wilson's for 10 draws is (0.3968, 0.8922)."""
    found, z2, n = interval([1.0] * 7 + [0.0] * 3, 10), 1.959963984540054**2, 23.9 / 2.6
    roots = np.roots([1 + z2 / n, -(2 * 0.7 + z2 / n), 0.7**2])  # (mean - p)^2 = z^2 p (1 - p) / n
    assert (found.low, found.high) == (pytest.approx(min(roots)), pytest.approx(max(roots)))
    assert (found.low, found.high) == (pytest.approx(0.3968, abs=0.02), pytest.approx(0.8922, abs=0.02))


def test_interval_has_a_width_at_zero_and_one() -> None:
    """All wrong in 50 problems: high end z^2 / (n + z^2), whatever the number of answers to each."""
    z2 = 1.959963984540054**2
    assert interval([0.0] * 50, 800).high == pytest.approx(z2 / (50 + z2))
    assert interval([0.0] * 50, 800).low == 0.0
    assert interval([1.0] * 50, 800).low == pytest.approx(50 / (50 + z2))
    assert interval([1.0] * 50, 800).high == 1.0
    lone = interval([0.5], 4)
    assert lone.low < 0.15
    assert lone.high > 0.85


def test_interval_counts_problems_not_answers() -> None:
    """Problems that are always or never solved: more answers to each tell nothing, the interval stays as wide."""
    few = interval([1.0, 0.0] * 20, 40)
    many = interval([1.0, 0.0] * 20, 40 * 64)
    assert (few.low, few.high) == (many.low, many.high)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_intervals_cover_the_truth_about_95_times_in_a_hundred(rate: float) -> None:
    """40 problems of differing difficulty, 8 answers each, 600 repetitions with a fixed seed: a 95 % interval covers
    in fewer than 92 % of 600 with probability 0.001. The normal interval covers 74 % at the rate 0.02."""
    random_numbers = np.random.default_rng(0)
    concentration = 1.5
    hits = 0
    for _ in range(600):
        difficulty = random_numbers.beta(rate * concentration, (1 - rate) * concentration, size=40)
        found = interval(list(random_numbers.binomial(8, difficulty) / 8), 320)
        hits += found.low <= rate <= found.high
    assert hits / 600 > 0.92


def test_votes_come_from_the_verdicts_answer_then_from_the_text() -> None:
    group = make_group(
        make_rollout(RIGHT, answer=42, text="so 42"),
        make_rollout(WRONG, text=" 43 "),
        make_rollout(NOTHING, text="hm"),
        make_rollout(Outcome.TIMEOUT, text="2^2^2^2^2^2"),
        make_rollout(ERROR),
    )
    result = problem_result(group)
    assert result.answers == ("42", "43", None, None)
    assert result.correct == (True, False, False, False)
    assert result.unscored == 1


def test_summary_by_hand() -> None:
    """Problem a: 3 of 4 right; problem b: 1 of 2 scored, 2 not scored."""
    groups = [
        make_group(
            *[make_rollout(RIGHT, answer="1")] * 3, make_rollout(WRONG, answer="2", finish="length"), problem="a"
        ),
        make_group(
            make_rollout(RIGHT, answer="1"),
            make_rollout(NOTHING),
            make_rollout(ERROR),
            make_rollout(ERROR),
            problem="b",
        ),
    ]
    metrics = summarise("held_out", groups, [1, 2, 4])
    found = {key.removeprefix("eval/held_out/"): value for key, value in metrics.items()}
    assert found["pass@1"] == pytest.approx((0.75 + 0.5) / 2)
    assert found["pass@2"] == pytest.approx((1.0 + 1.0) / 2)
    assert found["pass@4"] == 1.0  # of problem a alone
    assert found["maj@2"] == pytest.approx((0.75 + 1.0) / 2)  # a: 3 of 6 draws agree, 3 tie; b: 1 votes alone
    assert found["maj@4"] == 1.0
    assert found["avg@4"] == pytest.approx((0.75 + 0.5) / 2)
    assert (found["problems"], found["samples"], found["unscored"], found["short"]) == (2.0, 8.0, 0.25, 0.5)
    assert (found["truncated"], found["no_answer"], found["length"]) == (0.125, 0.125, 3.0)
    assert all(found[f"{key}_low"] <= found[key] <= found[f"{key}_high"] for key in ("pass@1", "pass@2", "maj@4"))
    assert "maj@1" not in found


def test_partial_marks_count_in_the_reward_and_in_nothing_else() -> None:
    half = Outcome.PARTIAL
    groups = [make_group(make_rollout(half), make_rollout(WRONG), problem="a"), make_group(make_rollout(half))]
    metrics = summarise("e", groups, [1])
    assert metrics["eval/e/avg@2"] == 0.0
    assert metrics["eval/e/reward"] == pytest.approx((0.25 + 0.5) / 2)
    assert metrics["eval/e/reward_low"] < metrics["eval/e/reward"] < metrics["eval/e/reward_high"]


def test_the_interval_of_rewards_outside_0_and_1_is_that_of_their_scale() -> None:
    plain, wide = interval([0.0, 0.5, 1.0], 12), mean_interval([-2.0, 0.0, 2.0], 12)
    assert mean_interval([0.0, 0.5, 1.0], 12) == plain
    assert (wide.low, wide.high) == pytest.approx((-2 + 4 * plain.low, -2 + 4 * plain.high))


def test_greedy_answers_are_counted_apart() -> None:
    """Of three problems one is right greedily and one cannot be scored; sampled accuracy and counts stay as without."""
    sampled = [make_group(make_rollout(WRONG), make_rollout(RIGHT), problem=name) for name in "abc"]
    greedy = [make_rollout(outcome, sample=-1) for outcome in (RIGHT, WRONG, ERROR)]
    beside = [replace(group, greedy=rollout) for group, rollout in zip(sampled, greedy, strict=True)]
    without, found = summarise("x", sampled, [1]), summarise("x", beside, [1])
    assert found["eval/x/greedy"] == 0.5
    assert found["eval/x/greedy_low"] < 0.5 < found["eval/x/greedy_high"]
    assert {key: value for key, value in found.items() if "greedy" not in key} == without
    assert eval_lines(found)[0].startswith("eval x: pass@1 0.500 [")
    assert "greedy 0.500 [" in eval_lines(found)[0]


def test_an_evaluation_without_a_scored_answer_reports_none() -> None:
    metrics = summarise("x", [make_group(make_rollout(ERROR))], [1])
    assert "eval/x/pass@1" not in metrics
    assert metrics["eval/x/unscored"] == 1.0
    assert summarise("x", [], [1])["eval/x/problems"] == 0.0


def test_order_of_groups_and_answers_does_not_matter() -> None:
    groups = [
        make_group(
            *(make_rollout([RIGHT, WRONG][(i * j) % 2], answer=str((i * j) % 2)) for j in range(4)), problem=f"{i}"
        )
        for i in range(9)
    ]
    shuffled = random.Random(0).sample(groups, len(groups))
    assert summarise("x", groups, [1, 2]) == pytest.approx(summarise("x", shuffled, [1, 2]))


def test_comparison_prints_both_columns_with_intervals() -> None:
    before = summarise("held_out", [make_group(make_rollout(WRONG))], [1])
    after = summarise("held_out", [make_group(make_rollout(RIGHT))], [1])
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison({"before": before, "after": after}))
    text = console.export_text()
    row = next(line for line in text.splitlines() if "held_out/pass@1" in line)
    assert "0.000 [0.000, 0.793]" in row
    assert "1.000 [0.207, 1.000]" in row
    assert "_low" not in text


def test_an_interval_has_no_more_draws_than_there_were_answers() -> None:
    """The problems of `test_interval_by_hand`, worth 5 effective draws, with 4 answers: (1/2 + z^2/8 -+
    z sqrt(1/16 + z^2/64)) / (1 + z^2/4)."""
    z2 = 1.959963984540054**2
    found = interval([1.0, 0.5, 0.0, 0.5], 4)
    half = math.sqrt(z2) * math.sqrt(1 / 16 + z2 / 64)
    assert found.low == pytest.approx((0.5 + z2 / 8 - half) / (1 + z2 / 4))
    assert found.high == pytest.approx((0.5 + z2 / 8 + half) / (1 + z2 / 4))
