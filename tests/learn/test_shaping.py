"""Shaping, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from rlvr.config.groups import Shaping
from rlvr.learn.shaping import cosine_length, kimi_length, repetition, shape, soft_overlong
from rlvr.records import Rollout
from tests.learn.groups import rollout


def parse(**settings: object) -> Shaping:
    return TypeAdapter(Shaping).validate_python(settings)


def test_kimi_length_reward_goes_from_one_half_to_minus_one_half_and_never_rewards_a_wrong_completion() -> None:
    """2501.12599, 2.3.3: lengths 10, 15, 30 give lambda 0.5, 0.25, -0.5; a wrong completion gets min(0, lambda)."""
    assert kimi_length([10, 15, 30], [True, True, True]) == [0.5, 0.25, -0.5]
    assert kimi_length([10, 15, 30], [False, False, False]) == [0.0, 0.0, -0.5]
    assert kimi_length([10, 15, 30], [False, True, False]) == [0.0, 0.25, -0.5]


def test_kimi_length_reward_of_equal_lengths_is_zero() -> None:
    assert kimi_length([7, 7], [True, False]) == [0.0, 0.0]
    assert kimi_length([], []) == []


@pytest.mark.parametrize(
    ("length", "punishment"),
    [(0, 0.0), (15, 0.0), (16, 0.0), (17, -0.25), (18, -0.5), (19, -0.75), (20, -1.0), (21, -1.0), (90, -1.0)],
)
def test_soft_overlong_falls_linearly_over_the_buffer(length: int, punishment: float) -> None:
    """2503.14476, eq. 13, with L_max 20 and L_cache 4."""
    assert soft_overlong(length, max_tokens=20, buffer=4) == punishment


def group() -> list[Rollout]:
    """A right completion of 2 tokens, a wrong one of 4, a right one of 6."""
    return [rollout(1.0, tokens=2), rollout(0.0, tokens=4), rollout(1.0, tokens=6)]


def test_terms_are_weighted_and_added_and_each_sees_the_rewards_as_graded() -> None:
    """kimi 0.5, 0, -0.5 times 2; overlong with L_max 6 and L_cache 4: 0, -0.5, -1."""
    shapings = [parse(type="kimi_length", weight=2.0), parse(type="soft_overlong", max_tokens=6, buffer=4)]
    assert shape(group(), shapings, step=1) == [1.0 + 1.0, 0.0 - 0.5, 1.0 - 1.0 - 1.0]
    assert shape(group(), [], step=1) == [1.0, 0.0, 1.0]


def test_the_length_reward_starts_after_its_warm_up() -> None:
    """Kimi k1.5 trains without the penalty first, then with a constant one: steps 1 .. n are without."""
    shapings = [parse(type="kimi_length", warmup_steps=3)]
    assert shape(group(), shapings, step=3) == [1.0, 0.0, 1.0]
    assert shape(group(), shapings, step=4) == [1.5, 0.0, 0.5]


def double_of_step(rewards: list[float], rollouts: list[Rollout], step: int, *, factor: float) -> list[float]:
    return [factor * step + len(one.ids) for one in rollouts]


def too_few(rewards: list[float], rollouts: list[Rollout], step: int) -> list[float]:
    return [0.0]


def test_a_plug_in_sees_rewards_rollouts_and_step() -> None:
    shaping = parse(type="tests.learn.test_shaping:double_of_step", args={"factor": 10})
    assert shape(group(), [shaping], step=2) == [1.0 + 22, 0.0 + 24, 1.0 + 26]
    with pytest.raises(ValueError, match="returned 1 terms for 3 rollouts"):
        shape(group(), [parse(type="tests.learn.test_shaping:too_few")], step=2)


def test_an_unscored_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match="only scored rollouts"):
        shape([rollout(None)], [], step=0)


@pytest.mark.parametrize(
    ("length", "value"), [(0, 2.0), (5, 1.0 + 0.5 * (1 + math.sqrt(0.5))), (10, 1.5), (20, 1.0), (90, 1.0)]
)
def test_cosine_length_goes_along_half_a_cosine(length: int, value: float) -> None:
    """2502.03373: from 2 at 0 to 1 at 20 tokens; at a quarter cos(pi/4) = sqrt(1/2), at half the middle."""
    assert cosine_length(length, 20, (2.0, 1.0)) == pytest.approx(value, abs=1e-15)


def test_cosine_length_has_ends_of_its_own_for_right_and_wrong_and_for_too_long() -> None:
    """Lengths 2, 4, 6 of at most 6 and cos(pi/3) = 1/2, cos(2 pi/3) = -1/2: right 0 to -0.5, wrong -1 to -0.5."""
    settings = {"type": "cosine_length", "max_tokens": 6}
    found = shape(group(), [parse(**settings)], step=1)
    assert found == pytest.approx([1.0 - 0.125, -0.5 - 0.5 * 0.25, 1.0 - 0.5], abs=1e-15)
    found = shape(group(), [parse(**settings, exceeded=-10.0, correct=(2.0, 1.0), wrong=(-10.0, 0.0))], step=1)
    assert found == pytest.approx([1.0 + 1.75, -2.5, 1.0 - 10.0], abs=1e-14)


@pytest.mark.parametrize(
    ("ids", "mask", "value"),
    [
        ((1, 2, 3, 4), (1, 1, 1, 1), 0.0),
        ((7, 7, 7, 7, 7), (1, 1, 1, 1, 1), 1 / 4 - 1),
        ((1, 2, 1, 2, 1), (1, 1, 1, 1, 1), 2 / 4 - 1),
        ((1, 2, 9, 1, 2), (1, 1, 0, 1, 1), 1 / 2 - 1),
        ((1,), (1,), 0.0),
        ((), (), 0.0),
    ],
    ids=["different", "one token", "two bigrams", "not across foreign tokens", "too short", "empty"],
)
def test_repetition_is_the_share_of_ngrams_seen_before(
    ids: tuple[int, ...], mask: tuple[int, ...], value: float
) -> None:
    """Bigrams of token ids: 1 - different / all, as a penalty."""
    assert repetition(ids, mask, 2) == value


def test_repetition_is_weighted() -> None:
    again = replace(rollout(1.0, tokens=5), ids=(4, 4, 4, 4, 4))
    assert shape([again, rollout(0.0, tokens=5)], [parse(type="repetition", weight=3.0)], step=1) == [1.0 - 2.0, 0.0]


def test_what_was_ended_for_repeating_itself_pays_for_it() -> None:
    """Penalty 0.25: from the completion whose finish reason says so and from no other, cut or stopped."""
    ends = ("repetition", "length", "stop")
    completions = [
        replace(rollout(reward, tokens=4), finish_reason=end) for reward, end in zip((1.0, 0.5, 0.0), ends, strict=True)
    ]
    assert shape(completions, [parse(type="repetition_stop", penalty=0.25)], step=1) == [0.75, 0.5, 0.0]
    assert shape(completions, [parse(type="repetition_stop")], step=1) == [0.0, 0.5, 0.0]
