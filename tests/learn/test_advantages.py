"""Baselines and scales, by hand; and what leaves a batch on the way to the learner."""

from __future__ import annotations

import math

import pytest

from rlvr.config.algorithm import Algorithm
from rlvr.config.groups import NoScale
from rlvr.learn.advantages import leave_one_out_baseline, mean_baseline, scale, standard_deviation
from rlvr.learn.samples import advantages_of, make_samples
from rlvr.records import Rollout, RolloutGroup
from tests.learn.groups import group


def advantages(groups: list[RolloutGroup], **algorithm: object) -> tuple[list[float], dict[str, float]]:
    samples, counts = make_samples(groups, Algorithm.model_validate(algorithm), step=1)
    return [sample.advantage for sample in samples], counts


def test_baselines() -> None:
    """Rewards 1, 0, 0, 0: the mean is 1/4; without itself 0 for the first and 1/3 for the others."""
    assert mean_baseline([1.0, 0.0, 0.0, 0.0]) == [0.25] * 4
    assert leave_one_out_baseline([1.0, 0.0, 0.0, 0.0]) == pytest.approx([0.0, 1 / 3, 1 / 3, 1 / 3], abs=1e-15)
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out_baseline([1.0])


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, -1e-9])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_have_advantages_of_exactly_zero(value: float, size: int) -> None:
    """Floating-point sums would leave 1e-17, which a division by the epsilon of group_std makes visible."""
    assert mean_baseline([value] * size) == [value] * size
    assert leave_one_out_baseline([value] * size) == [value] * size


def test_grpo_divides_by_the_groups_standard_deviation_with_bessels_correction() -> None:
    """Rewards 1, 0, 0, 0: mean 1/4, variance (9/16 + 3/16) / 3 = 1/4, deviation 1/2; epsilon 1e-4."""
    values, _ = advantages([group(1.0, 0.0, 0.0, 0.0)])
    assert values == pytest.approx([0.75 / 0.5001] + [-0.25 / 0.5001] * 3, abs=1e-15)


def test_dr_grpo_does_not_divide() -> None:
    assert advantages([group(1.0, 0.0, 0.0, 0.0)], scale={"type": "none"})[0] == [0.75, -0.25, -0.25, -0.25]


def test_rloo() -> None:
    values, _ = advantages([group(1.0, 0.0, 0.0, 0.0)], baseline={"type": "leave_one_out"}, scale={"type": "none"})
    assert values == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3], abs=1e-15)


def test_reinforce_has_no_baseline() -> None:
    settings = {"baseline": {"type": "none"}, "scale": {"type": "none"}}
    assert advantages([group(1.0, 0.25)], **settings)[0] == [1.0, 0.25]
    assert advantages([group(2.0)], **settings)[0] == [2.0]  # a group of one teaches without a baseline


def test_batch_std_is_over_all_rewards_that_are_trained() -> None:
    """Groups (1, 0) and (3, 1): mean 5/4, squares 1/16 + 25/16 + 49/16 + 1/16 = 76/16, variance 19/12."""
    values, _ = advantages([group(1.0, 0.0), group(3.0, 1.0)], scale={"type": "batch_std", "epsilon": 0.5})
    deviation = math.sqrt(19 / 12) + 0.5
    assert values == pytest.approx([0.5 / deviation, -0.5 / deviation, 1 / deviation, -1 / deviation], abs=1e-15)
    settings = {"baseline": {"type": "none"}, "scale": {"type": "batch_std"}}
    assert advantages([group(1.0)], **settings)[1]["groups/too_few_scored"] == 1  # one reward has no deviation
    assert advantages([], **settings)[0] == []


def test_scale_functions_refuse_what_has_no_deviation() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        standard_deviation([1.0])
    assert scale([[1.0]], [[1.0]], NoScale(type="none")) == [[1.0]]


def test_an_unscored_rollout_leaves_the_baseline_and_is_not_trained() -> None:
    """Not scored is not 0: (1, None, 0) has the mean 1/2, where 0 for None would give 1/3."""
    values, counts = advantages([group(1.0, None, 0.0)], scale={"type": "none"})
    assert values == [0.5, -0.5]
    assert counts["samples/unscored"] == 1
    assert counts["samples/trained"] == 2


def test_a_group_with_too_few_scored_rollouts_is_dropped_and_counted() -> None:
    values, counts = advantages([group(1.0, None), group(None, None), group(1.0, 0.0)], scale={"type": "none"})
    assert values == [0.5, -0.5]
    assert (counts["groups/total"], counts["groups/too_few_scored"], counts["groups/trained"]) == (3, 2, 1)
    assert counts["samples/unscored"] == 3


def test_groups_of_equal_rewards_are_dropped_or_kept_and_counted_either_way() -> None:
    groups = [group(1.0, 1.0), group(0.0, 0.0), group(1.0, 0.0)]
    values, counts = advantages(groups)
    assert len(values) == 2
    assert (counts["groups/zero_variance"], counts["groups/trained"]) == (2, 1)
    values, counts = advantages(groups, filter={"type": "keep"})
    assert values[:4] == [0.0] * 4
    assert (counts["groups/zero_variance"], counts["groups/trained"]) == (2, 3)


def test_the_filter_looks_at_rewards_as_graded_before_shaping() -> None:
    """DAPO, 2503.14476 eq. 11: some but not all completions are right; the length reward does not make a group
    mixed."""
    shaping = [{"type": "soft_overlong", "max_tokens": 3, "buffer": 2}]
    assert advantages([group(1.0, 1.0)], shaping=shaping)[0] == []
    values, counts = advantages([group(1.0, 0.0)], shaping=shaping, scale={"type": "none"})
    assert values == [0.5, -0.5]
    assert counts["reward/shaping"] == -1.0


def test_a_masked_truncated_completion_stays_in_the_baseline_and_in_the_count_of_completions() -> None:
    cut = group(1.0, 0.0, finish_reasons={1: "length"})
    algorithm = Algorithm.model_validate({"truncated": "mask", "scale": {"type": "none"}})
    samples, counts = make_samples([cut], algorithm, step=1)
    assert [sample.advantage for sample in samples] == [0.5, -0.5]
    assert [sample.trained_tokens for sample in samples] == [3, 0]
    assert samples[1].behaviour_logprobs == (0.0,) * 5
    assert (counts["samples/truncated_masked"], counts["samples/trained"]) == (1, 1)
    samples, counts = make_samples([cut], Algorithm(scale=NoScale(type="none")), step=1)
    assert [sample.trained_tokens for sample in samples] == [3, 3]
    assert counts["samples/truncated_masked"] == 0


def test_a_sample_is_prompt_and_completion_and_only_the_completion_is_trained() -> None:
    (sample, _), _ = make_samples([group(1.0, 0.0)], Algorithm(scale=NoScale(type="none")), step=1)
    assert sample.ids == (5, 6, 10, 11, 12)
    assert sample.loss_mask == (0, 0, 1, 1, 1)
    assert sample.behaviour_logprobs == (0.0, 0.0, -0.5, -1.5, -2.5)


def test_groups_are_told_apart_by_place_not_by_prompt() -> None:
    """The same problem drawn twice is two groups with two baselines."""
    samples, _ = make_samples([group(1.0, 0.0), group(0.0, 1.0)], Algorithm(scale=NoScale(type="none")), step=1)
    assert [(sample.group, sample.advantage) for sample in samples] == [(0, 0.5), (0, -0.5), (1, -0.5), (1, 0.5)]


def test_advantages_of_names_every_rollout() -> None:
    groups = [group(1.0, 1.0), group(1.0, None, 0.0)]
    samples, _ = make_samples(groups, Algorithm(scale=NoScale(type="none")), step=1)
    assert advantages_of(groups, samples) == [[None, None], [0.5, None, -0.5]]


def highest(rewards: list[float], rollouts: list[Rollout]) -> list[float]:
    return [max(rewards)] * len(rollouts)


def one_value(rewards: list[float], rollouts: list[Rollout]) -> list[float]:
    return [0.0]


def test_a_plug_in_baseline() -> None:
    settings = {"baseline": {"type": "tests.learn.test_advantages:highest"}, "scale": {"type": "none"}}
    assert advantages([group(1.0, 0.0)], **settings)[0] == [0.0, -1.0]
    with pytest.raises(ValueError, match="returned 1 values for 2 rollouts"):
        advantages([group(1.0, 0.0)], **(settings | {"baseline": {"type": "tests.learn.test_advantages:one_value"}}))
