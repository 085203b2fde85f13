"""From graded groups to samples: which tokens are trained at which age, by hand, and what is counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import TypeAdapter

from rlvr.config.algorithm import Algorithm
from rlvr.config.schedule import Schedule
from rlvr.learn.samples import StaleTokens, groups_with_tokens, make_samples, places_of
from rlvr.records import RolloutGroup
from tests.learn.groups import group, rollout

PLAIN = Algorithm.model_validate({"scale": {"type": "none"}})


def schedule(**settings: Any) -> Schedule:
    found: Schedule = TypeAdapter(Schedule).validate_python({"type": "partial", "max_staleness": 1} | settings)
    return found


def aged(*versions: tuple[int, ...], mask: tuple[int, ...] = (1, 1, 1)) -> RolloutGroup:
    """A group of a right answer and wrong ones, with the versions of their three tokens each."""
    answers = tuple(
        replace(rollout(float(index == 0), index=index, loss_mask=mask), weight_version=of_one)
        for index, of_one in enumerate(versions)
    )
    return replace(group(1.0), rollouts=answers)


@pytest.mark.parametrize("policy", ["wait", "drop"])
def test_a_token_past_the_bound_is_a_fault_of_the_program_unless_it_is_masked(policy: str) -> None:
    """Bound 1: step 3 starts from version 2, so that version 1 is allowed and version 0 is not."""
    make_samples([aged((1, 1, 2), (2, 2, 2))], PLAIN, 3, schedule=schedule(on_stale=policy))
    with pytest.raises(StaleTokens, match="tokens of version 0, more than 1 older than version 2"):
        make_samples([aged((0, 1, 2), (2, 2, 2))], PLAIN, 3, schedule=schedule(on_stale=policy))


@pytest.mark.parametrize("policy", ["wait", "drop", "mask"])
def test_a_token_of_the_version_that_the_step_is_about_to_make_is_a_fault(policy: str) -> None:
    """Step 3 makes version 3; nothing can have been sampled from it."""
    with pytest.raises(StaleTokens, match="tokens of version 3, step 3 starts from version 2"):
        make_samples([aged((2, 2, 3), (2, 2, 2))], PLAIN, 3, schedule=schedule(on_stale=policy))


def test_tokens_that_are_not_trained_may_have_any_version_and_no_say_in_ages() -> None:
    """The second token of each answer is a tool's: its version 9 is looked at by nobody. Ages of the others at step 3:
    1 and 0, 0 and 0."""
    samples, counts = make_samples(
        [aged((1, 9, 2), (2, 9, 2), mask=(1, 0, 1))], PLAIN, 3, schedule=schedule(on_stale="drop")
    )
    assert (counts["staleness/mean"], counts["staleness/max"], counts["staleness/masked"]) == (0.25, 1.0, 0.0)
    assert [sample.loss_mask for sample in samples] == [(0, 0, 1, 0, 1)] * 2
    ancient = aged((1, 0, 2), (2, 0, 2), mask=(1, 0, 1))
    _, counts = make_samples([ancient], PLAIN, 3, schedule=schedule(on_stale="drop"))
    assert counts["staleness/max"] == 1.0


def test_masked_tokens_are_counted_and_leave_the_sample() -> None:
    """Bound 1 at step 4, which starts from version 3: tokens of versions 0 and 1 are masked, 2 and 3 are trained."""
    samples, counts = make_samples([aged((0, 1, 2), (3, 3, 3))], PLAIN, 4, schedule=schedule(on_stale="mask"))
    assert [sample.loss_mask for sample in samples] == [(0, 0, 0, 0, 1), (0, 0, 1, 1, 1)]
    assert [sample.behaviour_logprobs for sample in samples] == [(0, 0, 0, 0, -2.5), (0, 0, -0.5, -1.5, -2.5)]
    assert [sample.advantage for sample in samples] == [0.5, -0.5]
    assert (counts["staleness/masked"], counts["staleness/mean"], counts["staleness/max"]) == (2.0, 0.25, 1.0)
    assert counts["samples/trained"] == 2


def test_without_a_schedule_no_age_is_known() -> None:
    samples, counts = make_samples([aged((0, 0, 7), (7, 7, 7))], PLAIN, 1)
    assert not [key for key in counts if key.startswith("staleness/")]
    assert [sample.trained_tokens for sample in samples] == [3, 3]


def test_places_and_logged_groups_by_hand() -> None:
    """Group 0 has equal rewards and is left out; of group 1 the second answer has no score."""
    groups = [group(1.0, 1.0), group(1.0, None, 0.0)]
    samples, counts = make_samples(groups, PLAIN, 1)
    assert places_of(groups, samples) == [[None, None], [0, None, 1]]
    assert [sample.group for sample in samples] == [1, 1]
    assert groups_with_tokens(groups, samples, 1) == {1}
    assert groups_with_tokens(groups, samples, 2) == {0, 1}
    assert (counts["groups/total"], counts["groups/trained"], counts["groups/zero_variance"]) == (2, 1, 1)
    assert (counts["samples/unscored"], counts["samples/trained"], counts["groups/too_few_scored"]) == (1, 2, 0)
    assert (counts["advantage/abs_mean"], counts["reward/shaping"]) == (0.5, 0.0)


def test_a_group_of_equal_rewards_that_is_kept_is_still_counted() -> None:
    keep = Algorithm.model_validate({"scale": {"type": "none"}, "filter": {"type": "keep"}})
    samples, counts = make_samples([group(1.0, 1.0)], keep, 1)
    assert len(samples) == 2
    assert (counts["groups/zero_variance"], counts["groups/trained"]) == (1, 1)


def test_an_empty_step_has_no_mean() -> None:
    samples, counts = make_samples([], PLAIN, 1, schedule=schedule())
    assert samples == []
    assert (counts["advantage/abs_mean"], counts["reward/shaping"], counts["staleness/masked"]) == (0.0, 0.0, 0.0)
    assert "staleness/mean" not in counts


def test_a_truncated_completion_is_masked_only_where_the_recipe_says_so() -> None:
    cut = replace(group(1.0, 0.0), rollouts=(rollout(1.0), rollout(0.0, index=1, finish_reason="length")))
    for policy, trained in (("mask", [3, 0]), ("train", [3, 3])):
        samples, counts = make_samples([cut], PLAIN.model_copy(update={"truncated": policy}), 1)
        assert [sample.trained_tokens for sample in samples] == trained
        assert counts["samples/truncated_masked"] == trained.count(0)


def test_a_group_that_is_left_out_does_not_end_the_step() -> None:
    """One score too few, equal rewards, then one that teaches."""
    samples, counts = make_samples([group(1.0, None), group(0.0, 0.0), group(1.0, 0.0)], PLAIN, 1)
    assert [sample.group for sample in samples] == [2, 2]
    assert (counts["groups/too_few_scored"], counts["groups/zero_variance"], counts["groups/trained"]) == (1, 1, 1)
    assert (counts["groups/total"], counts["samples/unscored"]) == (3, 1)
