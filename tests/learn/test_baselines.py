"""Baselines and scales beyond the group's mean, by hand; what each does with equal rewards, one completion, no
score."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from rewards import Outcome, Verdict
from rewards.combine import Term
from rlvr.config.algorithm import Algorithm
from rlvr.config.groups import EmaBaseline, GroupMean, Whiten
from rlvr.learn.advantages import (
    MovingAverage,
    RewardError,
    ScoredGroup,
    centre,
    gdpo,
    length_weighted_baseline,
    log_mean_exp_baseline,
    pass_at_k,
    scale,
)
from rlvr.learn.samples import advantages_of, make_samples
from rlvr.records import RolloutGroup
from rlvr.rollout.group_filter import has_enough, has_variance
from tests.learn.groups import group, rollout

KEEP = {"filter": {"type": "keep"}, "scale": {"type": "none"}}


def advantages(
    groups: Sequence[RolloutGroup],
    average: MovingAverage | None = None,
    terms: Sequence[Term] = (),
    **algorithm: object,
) -> list[float]:
    config = Algorithm.model_validate({"scale": {"type": "none"}} | algorithm)
    return [one.advantage for one in make_samples(groups, config, 1, average=average, terms=terms)[0]]


EQUAL_IS_ZERO = [
    {"type": "mean"},
    {"type": "leave_one_out"},
    {"type": "log_mean_exp", "beta": 0.3},
    {"type": "length_weighted"},
    {"type": "pass_at_k", "k": 2},
]


@pytest.mark.parametrize("baseline", EQUAL_IS_ZERO, ids=lambda one: one["type"])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -0.7, 0.0])
def test_equal_rewards_have_advantages_of_exactly_zero(baseline: dict[str, object], reward: float) -> None:
    """For each baseline that comes from the group: a rounding error of 1e-17 over an epsilon of 1e-6 would be seen."""
    unequal = [rollout(reward, tokens=n, index=n) for n in (1, 3, 7)]
    one = replace(group(reward, reward, reward), rollouts=tuple(unequal))
    assert advantages([one], baseline=baseline, filter={"type": "keep"}) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("baseline", EQUAL_IS_ZERO, ids=lambda one: one["type"])
def test_an_unscored_rollout_leaves_every_baseline(baseline: dict[str, object]) -> None:
    """With it the group's advantages are those of the group without it, and it gets none."""
    groups = [group(1.0, None, 0.0, 0.0)]
    config = Algorithm.model_validate({"scale": {"type": "none"}, "baseline": baseline})
    samples, counts = make_samples(groups, config, 1)
    assert [one.advantage for one in samples] == advantages([group(1.0, 0.0, 0.0)], baseline=baseline)
    assert advantages_of(groups, samples)[0][1] is None
    assert (counts["samples/unscored"], counts["samples/trained"]) == (1, 3)


@pytest.mark.parametrize(
    ("baseline", "least"),
    [*((one, 2) for one in EQUAL_IS_ZERO[:4]), ({"type": "pass_at_k", "k": 3}, 4), ({"type": "gdpo"}, 2)],
    ids=lambda one: one["type"] if isinstance(one, dict) else str(one),
)
def test_a_group_below_the_smallest_leaves_the_batch_and_is_counted(baseline: dict[str, object], least: int) -> None:
    scored = [1.0] + [0.0] * (least - 2)
    config = Algorithm.model_validate({"scale": {"type": "none"}, "baseline": baseline})
    assert config.smallest_group() == least
    samples, counts = make_samples([group(*scored, None)], config, 1)
    assert samples == []
    assert counts["groups/too_few_scored"] == 1


# ----------------------------------------------------------------------------------------------------- log mean exp


def test_log_mean_exp_of_two_rewards() -> None:
    """OAPL's note for binary rewards: V = beta ln(p exp(1/beta) + 1 - p); beta 1, p 1/2: ln((e + 1)/2) = 0.6201145."""
    value = 0.62011450695827752
    assert math.log((math.e + 1) / 2) == pytest.approx(value, abs=1e-15)
    assert log_mean_exp_baseline([1.0, 0.0], 1.0) == pytest.approx([value, value], abs=1e-15)
    settings = {"type": "log_mean_exp", "beta": 1.0}
    assert advantages([group(1.0, 0.0)], baseline=settings) == pytest.approx([1 - value, -value], abs=1e-15)


def test_log_mean_exp_goes_from_the_best_reward_to_the_mean() -> None:
    """beta -> 0 is the maximum (no overflow of exp(1000)), beta -> infinity the mean, between them it falls."""
    rewards = [1.0, 0.0, 0.0, 0.0]
    assert log_mean_exp_baseline(rewards, 1e-3)[0] == pytest.approx(1.0 - 1e-3 * math.log(4), abs=1e-12)
    assert log_mean_exp_baseline(rewards, 1e5)[0] == pytest.approx(0.25, abs=1e-5)
    values = [log_mean_exp_baseline(rewards, beta)[0] for beta in (0.1, 0.5, 1.0, 5.0)]
    assert values == sorted(values, reverse=True)


# -------------------------------------------------------------------------------------------------- length-weighted


def test_length_weighted() -> None:
    """Lengths 1, 3, 4 with rewards 1, 0, 1/2: (1 + 0 + 2) / 8 = 3/8; foreign tokens do not count."""
    assert length_weighted_baseline([1.0, 0.0, 0.5], [1, 3, 4]) == [0.375] * 3
    assert length_weighted_baseline([1.0, 0.0], [0, 0]) == [0.5, 0.5]  # no token anywhere: the mean
    rollouts = (rollout(1.0, tokens=3, loss_mask=(1, 0, 0)), rollout(0.0, tokens=3))
    one = replace(group(1.0, 0.0), rollouts=rollouts)
    assert advantages([one], baseline={"type": "length_weighted"}) == [0.75, -0.25]


# -------------------------------------------------------------------------------------------------------- pass at k


def test_pass_at_k_in_the_papers_closed_form() -> None:
    """n 4, c 1, k 2: rho = 1 - C(3,2)/C(4,2) = 1/2, sigma 1/2; right (1 - 1/2)/(1/2); wrong: of the 3 pairs that hold
    it one has the right completion, 1/3 - 1/2 = -1/6, over 1/2."""
    sigma = 0.5 + 1e-6
    expected = [0.5 / sigma] + [(1 / 3 - 0.5) / sigma] * 3
    settings = {"type": "pass_at_k", "k": 2}
    assert advantages([group(1.0, 0.0, 0.0, 0.0)], baseline=settings) == pytest.approx(expected, abs=1e-15)
    plain = advantages([group(1.0, 0.0, 0.0, 0.0)], baseline=settings | {"normalise": False})
    assert plain == pytest.approx([0.5, -1 / 6, -1 / 6, -1 / 6], abs=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(8, 1, 4), (8, 3, 4), (8, 6, 3), (5, 4, 1), (8, 5, 4), (4, 2, 3)])
def test_pass_at_k_is_the_papers_formula_for_rewards_of_1_and_0(n: int, c: int, k: int) -> None:
    """2508.10751 (rho, sigma, A_right, A_wrong as its code has them), whether or not n - c is below k."""
    rho = 1 - math.comb(n - c, k) / math.comb(n, k)
    sigma = math.sqrt(rho * (1 - rho)) + 1e-6
    right, wrong = (1 - rho) / sigma, (1 - rho - math.comb(n - c - 1, k - 1) / math.comb(n - 1, k - 1)) / sigma
    found = pass_at_k([1.0] * c + [0.0] * (n - c), k, normalise=True, epsilon=1e-6)
    assert found == pytest.approx([right] * c + [wrong] * (n - c), abs=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_what_all_subsets_say(k: int) -> None:
    """The definition, subset by subset, for rewards of any size with ties."""
    rewards = [0.3, -1.0, 2.0, 0.3, 0.0, 1.5]
    subsets = list(itertools.combinations(range(6), k))
    best = {subset: max(rewards[i] for i in subset) for subset in subsets}
    mean, deviation = statistics.fmean(best.values()), statistics.pstdev(best.values())
    expected = [
        (statistics.fmean(value for subset, value in best.items() if i in subset) - mean) / (deviation + 0.1)
        for i in range(6)
    ]
    assert pass_at_k(rewards, k, normalise=True, epsilon=0.1) == pytest.approx(expected, abs=1e-12)


def test_pass_at_1_is_the_mean_baseline_and_a_group_of_k_is_refused() -> None:
    assert pass_at_k([1.0, 0.0, 0.25], 1, normalise=False, epsilon=1.0) == pytest.approx(
        [1 - 5 / 12, -5 / 12, 0.25 - 5 / 12], abs=1e-15
    )
    with pytest.raises(ValueError, match="more than k = 3 scored rollouts in a group, got 3"):
        pass_at_k([1.0, 0.0, 0.0], 3, normalise=True, epsilon=1.0)


# -------------------------------------------------------------------------------------------------------------- EMA


def test_one_average_for_the_run() -> None:
    """Decay 3/4: 0, then 1/4 of the first step's mean 1/2, then 3/4 * 1/8 + 1/4 * 1: no reward is in its own baseline;
    a step without scores moves nothing."""
    config = EmaBaseline(type="ema", decay=0.75)
    average = MovingAverage(config)
    settings = {**KEEP, "baseline": config.model_dump()}
    assert advantages([group(1.0, 0.0), group(1.0, None), group(0.0)], average, **settings) == [1.0, 0.0, 1.0, 0.0]
    assert average.of("whatever") == 0.125
    assert advantages([group(None)], average, **settings) == []
    assert advantages([group(1.0)], average, **settings) == [0.875]
    assert average.of("p") == 0.75 * 0.125 + 0.25


def test_one_average_for_each_problem() -> None:
    """Decay 1/2 from 1/2: the two visits of one step see the same average, and move it one after the other."""
    config = EmaBaseline(type="ema", decay=0.5, per="problem", initial=0.5)
    average = MovingAverage(config)
    other = group(0.0, 0.0)
    other = replace(other, problem=replace(other.problem, id="q"))
    settings = {**KEEP, "baseline": config.model_dump()}
    found = advantages([group(1.0, 0.0), other, group(1.0)], average, **settings)
    assert found == [0.5, -0.5, -0.5, -0.5, 0.5]
    assert (average.of("p"), average.of("q"), average.of("never seen")) == (0.75, 0.25, 0.5)


def test_the_state_of_the_averages_is_exact_and_belongs_to_its_kind() -> None:
    config = EmaBaseline(type="ema", per="problem")
    average = MovingAverage(config)
    average.move([scored(1 / 3, 0.1)])
    again = MovingAverage(config)
    again.load_state_dict(average.state_dict())
    assert again.of("p") == average.of("p") != 0.0
    busy = MovingAverage(config)  # one that has moved already takes over the state all the same
    busy.move([scored(1.0, 1.0), replace(scored(1.0), problem_id="later")])
    busy.load_state_dict(average.state_dict())
    assert (busy.of("p"), busy.of("later")) == (average.of("p"), 0.0)
    with pytest.raises(ValueError, match=r"averages per problem, algorithm\.baseline\.per is 'run'"):
        MovingAverage(EmaBaseline(type="ema")).load_state_dict(average.state_dict())
    with pytest.raises(ValueError, match="needs the averages of earlier steps"):
        centre(scored(1.0), config)


def scored(*rewards: float) -> ScoredGroup:
    return ScoredGroup(index=0, problem_id="p", rollouts_G=(), rewards_G=list(rewards))


# ----------------------------------------------------------------------------------------------------------- greedy


def test_greedy_subtracts_the_shaped_reward_of_the_greedy_completion() -> None:
    """ReMax: rewards 1, 0 and 1/2 for the greedy completion, which is 4 tokens too long and loses 1; it is not trained,
    and even one completion, or completions of equal rewards, teach."""
    greedy = rollout(0.5, tokens=6, index=-1)
    settings = {**KEEP, "baseline": {"type": "greedy"}}
    assert advantages([replace(group(1.0, 0.0), greedy=greedy)], **settings) == [0.5, -0.5]
    assert advantages([replace(group(1.0), greedy=greedy)], **settings) == [0.5]
    assert advantages([replace(group(1.0, 1.0), greedy=greedy)], **settings) == [0.5, 0.5]
    overlong = [{"type": "soft_overlong", "max_tokens": 6, "buffer": 2}]
    assert advantages([replace(group(1.0, 0.0), greedy=greedy)], shaping=overlong, **settings) == [1.5, 0.5]


@pytest.mark.parametrize("greedy", [None, rollout(None)], ids=["missing", "unscored"])
def test_a_group_whose_greedy_completion_has_no_score_is_left_out_and_counted(greedy: object) -> None:
    one = replace(group(1.0, 0.0), greedy=greedy)
    config = Algorithm.model_validate({**KEEP, "baseline": {"type": "greedy"}})
    samples, counts = make_samples([one], config, 1)
    assert (samples, counts["groups/too_few_scored"]) == ([], 1)
    assert not has_enough(one, config)
    with pytest.raises(ValueError, match="problem 'p' has no greedy completion"):
        centre(scored(1.0), config.baseline)


# ------------------------------------------------------------------------------------------------------------- GDPO


def judged(*scores_G: Mapping[str, float]) -> RolloutGroup:
    """A group in which each completion has these scores, 1 being CORRECT, and their sum as reward."""
    rollouts = tuple(
        rollout(
            sum(scores.values()),
            index=index,
            verdicts={name: Verdict(s, Outcome.CORRECT if s == 1 else Outcome.WRONG) for name, s in scores.items()},
        )
        for index, scores in enumerate(scores_G)
    )
    return replace(group(0.0), rollouts=rollouts)


def test_gdpo_normalises_each_term_before_it_adds_them() -> None:
    """Scores (1, 0) and (2, 4) with weights 1 and 1/2: each term's deviation is sqrt(1/2) and sqrt(2), epsilon 0 here
    nearly: 1/sqrt 2 - 1/2 * 1/sqrt 2 for the first completion; the terms' sizes do not matter."""
    found = gdpo([(1.0, [1.0, 0.0]), (0.5, [2.0, 4.0])], epsilon=1e-12)
    assert found == pytest.approx([0.5 / math.sqrt(2), -0.5 / math.sqrt(2)], abs=1e-9)
    assert gdpo([(1.0, [1.0, 0.0]), (0.5, [3.0, 3.0])], epsilon=0.5) == pytest.approx(
        [0.5 / (math.sqrt(0.5) + 0.5), -0.5 / (math.sqrt(0.5) + 0.5)], abs=1e-15
    )


def test_gdpo_tells_apart_what_has_the_same_sum_and_whitens_the_batch() -> None:
    """Completions (1, 0), (0, 1), (0, 0) of weights 2 and 1: by terms the first two differ, which the sum of equal
    weights would hide; afterwards mean 0 and deviation 1 over the batch."""
    terms = [Term("answer", 2.0), Term("format", 1.0)]
    one = judged({"answer": 1, "format": 0}, {"answer": 0, "format": 1}, {"answer": 0, "format": 0})
    deviation = statistics.stdev([1.0, 0.0, 0.0]) + 1e-4
    third = 1 / (3 * deviation)
    plain = [2 * 2 * third - third, -2 * third + 2 * third, -2 * third - third]
    assert advantages([one], baseline={"type": "gdpo"}, terms=terms) == pytest.approx(plain, abs=1e-12)
    white = advantages([one], baseline={"type": "gdpo"}, scale={"type": "whiten", "epsilon": 1e-12}, terms=terms)
    assert statistics.fmean(white) == pytest.approx(0.0, abs=1e-12)
    assert statistics.stdev(white) == pytest.approx(1.0, abs=1e-9)
    assert white == pytest.approx([value / statistics.stdev(plain) for value in plain], abs=1e-9)


def test_for_gdpo_a_group_has_variance_where_a_term_has() -> None:
    """Equal sums of unequal terms teach, equal terms do not; other baselines see the sums."""
    terms = [Term("answer"), Term("format")]
    crossed = judged({"answer": 1, "format": 0}, {"answer": 0, "format": 1})
    equal = judged({"answer": 1, "format": 0}, {"answer": 1, "format": 0})
    config = Algorithm.model_validate({"baseline": {"type": "gdpo"}, "scale": {"type": "whiten"}})
    assert has_variance(crossed, config, terms)
    assert not has_variance(equal, config, terms)
    assert not has_variance(crossed, Algorithm())
    samples, counts = make_samples([crossed, equal], config, 1, terms=terms)
    assert ({one.group for one in samples}, counts["groups/zero_variance"]) == ({0}, 1)


def test_gdpo_takes_a_problems_own_terms_and_minds_their_gates() -> None:
    """Behind a closed gate a score is 0; a term that does not judge the problem is not asked."""
    terms = [Term("answer", 1.0, gate="format"), Term("format", 0.0), Term("other", 9.0)]
    one = judged({"answer": 1, "format": 1}, {"answer": 1, "format": 0})
    one = replace(one, problem=replace(one.problem, verifiers=("answer", "format")))
    half = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert advantages([one], baseline={"type": "gdpo"}, terms=terms) == pytest.approx([half, -half], abs=1e-12)
    with pytest.raises(ValueError, match="'gdpo' needs the reward terms of problem 'p'"):
        advantages([one], baseline={"type": "gdpo"})


# ------------------------------------------------------------------------------------------------------------ scales


def test_maxrl_divides_by_the_groups_mean() -> None:
    """Rewards 1, 0, 0, 0: (1 - 1/4)/(1/4) = 3 and -1; a group of mean 0 has advantages of 0."""
    settings = {"scale": {"type": "group_mean", "epsilon": 1e-9}, "filter": {"type": "keep"}}
    found = advantages([group(1.0, 0.0, 0.0, 0.0), group(0.0, 0.0)], **settings)
    assert found == pytest.approx([3.0, -1.0, -1.0, -1.0, 0.0, 0.0], abs=1e-7)
    with pytest.raises(RewardError, match=r"must not be negative, got -0\.5 of 2 rewards, the least -1"):
        scale([[0.5, -0.5]], [[0.0, -1.0]], GroupMean(type="group_mean"))


def test_whitening_is_over_the_batch_and_takes_the_mean_away() -> None:
    """REINFORCE++ without baseline: rewards 1, 0 and 3, 2 have mean 3/2 and squares 1/4 + 9/4 + 9/4 + 1/4 = 5, variance
    5/3; its -baseline: group means first, so that +-1/2 remain, of variance 1/3."""
    deviation = math.sqrt(5 / 3) + 0.5
    white = {"scale": {"type": "whiten", "epsilon": 0.5}}
    found = advantages([group(1.0, 0.0), group(3.0, 2.0)], baseline={"type": "none"}, **white)
    assert found == pytest.approx([-0.5 / deviation, -1.5 / deviation, 1.5 / deviation, 0.5 / deviation], abs=1e-15)
    half = 0.5 / (math.sqrt(1 / 3) + 0.5)
    assert advantages([group(1.0, 0.0), group(3.0, 2.0)], **white) == pytest.approx([half, -half] * 2, abs=1e-15)
    assert scale([[0.7, 0.7], [0.7]], [[0.7, 0.7], [0.7]], Whiten(type="whiten")) == [[0.0, 0.0], [0.0]]


def test_a_batch_of_one_rollout_cannot_be_whitened_and_is_counted() -> None:
    config = Algorithm.model_validate({"baseline": {"type": "none"}, "scale": {"type": "whiten"}})
    samples, counts = make_samples([group(1.0, None)], config, 1)
    assert (samples, counts["groups/too_few_scored"], counts["groups/trained"]) == ([], 1, 0)
    assert make_samples([], config, 1)[0] == []
