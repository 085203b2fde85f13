"""Advantages: what multiplies a rollout's tokens, computed from the rewards of its group.

Only scored rollouts come here; unscored ones are removed before, which is not the same as giving them reward 0.
Standard deviations use Bessel's correction, and an epsilon is added before dividing by them.

A plug-in baseline is ``f(rewards_G, rollouts_G, **args) -> list[float]``: what to subtract from each reward.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from rlvr.config.base import PlugIn
from rlvr.config.groups import (
    Baseline,
    BatchStd,
    EmaBaseline,
    GdpoBaseline,
    GreedyBaseline,
    GroupMean,
    GroupStd,
    LeaveOneOutBaseline,
    LengthWeightedBaseline,
    LogMeanExpBaseline,
    MeanBaseline,
    NoBaseline,
    NoScale,
    PassAtKBaseline,
    Scale,
    Whiten,
)
from rlvr.errors import RlvrError
from rlvr.plugins import load_plugin
from rlvr.records import Rollout


class RewardError(RlvrError, ValueError):
    """Rewards that a slot of the objective cannot take; the message names the slot, the reward and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """The scored rollouts of one group."""

    index: int
    """Place of the group within the step."""
    problem_id: str
    rollouts_G: tuple[Rollout, ...]
    rewards_G: list[float]
    """Shaped."""
    greedy_reward: float | None = None
    """Shaped reward of the greedy completion, where there is one."""
    terms: tuple[tuple[float, list[float]], ...] = ()
    """(weight, scores_G) of each reward term, for baselines that look at them one by one."""


# ---------------------------------------------------------------------------------------------------------- baselines


def mean_baseline(rewards_G: Sequence[float]) -> list[float]:
    """The group's mean for each rollout (GRPO, 2402.03300)."""
    # statistics.mean rounds once, so that equal rewards give advantages of exactly 0
    return [statistics.mean(rewards_G)] * len(rewards_G)


def leave_one_out_baseline(rewards_G: Sequence[float]) -> list[float]:
    """For each rollout the mean of the others (RLOO, 2402.14740); a group of one raises `ValueError`."""
    if len(rewards_G) < 2:
        raise ValueError("a leave-one-out baseline needs a group of at least 2 scored rollouts, got 1")
    mean, size = statistics.mean(rewards_G), len(rewards_G)
    return [reward - (reward - mean) * size / (size - 1) for reward in rewards_G]


def log_mean_exp_baseline(rewards_G: Sequence[float], beta: float) -> list[float]:
    """beta * log((1/G) sum_j exp(r_j / beta)) for each rollout (OAPL's V, 2602.19362)."""
    best = max(rewards_G)
    value = best + beta * math.log(statistics.fmean(math.exp((reward - best) / beta) for reward in rewards_G))
    return [value] * len(rewards_G)


def length_weighted_baseline(rewards_G: Sequence[float], lengths_G: Sequence[int]) -> list[float]:
    """sum_j len_j r_j / sum_j len_j for each rollout (OPO, 2505.23585); the mean where no completion has a token."""
    total = sum(lengths_G)
    if total == 0:
        return mean_baseline(rewards_G)
    # as a distance from one of the rewards, so that equal rewards give advantages of exactly 0
    first = rewards_G[0]
    value = first + math.fsum(n * (r - first) for n, r in zip(lengths_G, rewards_G, strict=True)) / total
    return [value] * len(rewards_G)


def pass_at_k(rewards_G: Sequence[float], k: int, *, normalise: bool, epsilon: float) -> list[float]:
    """Advantages when a group counts as all its subsets of k completions, each as good as its best (2508.10751).

    With R(S) = max of r over S: A_i = mean of R over the subsets that hold i, minus the mean rho over all subsets;
    with ``normalise`` divided by their standard deviation sigma plus epsilon. For c right completions of n with rewards
    1 and 0: rho = 1 - C(n-c, k) / C(n, k), sigma = sqrt(rho (1 - rho)), A_right = (1 - rho) / sigma and
    A_wrong = (1 - rho - C(n-c-1, k-1) / C(n-1, k-1)) / sigma. For other rewards the same sums, in order of size.
    """
    size, smallest = len(rewards_G), min(rewards_G)
    if size <= k:
        raise ValueError(f"pass_at_k needs more than k = {k} scored rollouts in a group, got {size}")
    order = sorted(range(size), key=lambda index: rewards_G[index])
    ranked = [rewards_G[index] - smallest for index in order]  # from the least one, so that equal rewards are exactly 0
    # the best of a subset is the one of rank j (from 0) in C(j, k-1) of all subsets
    best = [math.comb(j, k - 1) / math.comb(size, k) for j in range(size)]
    mean = math.fsum(share * value for share, value in zip(best, ranked, strict=True))
    deviation = math.sqrt(math.fsum(share * (value - mean) ** 2 for share, value in zip(best, ranked, strict=True)))
    # of the C(n-1, k-1) subsets that hold i, j > i is the best in C(j-1, k-2): i, j, and others below j
    above = [ranked[j] * math.comb(j - 1, k - 2) if k > 1 and j > 0 else 0.0 for j in range(size)]
    advantages = [0.0] * size
    for rank, index in enumerate(order):
        own = ranked[rank] * math.comb(rank, k - 1)
        value = math.fsum([own, *above[rank + 1 :]]) / math.comb(size - 1, k - 1)
        advantages[index] = (value - mean) / (deviation + epsilon if normalise else 1.0)
    return advantages


def gdpo(terms: Sequence[tuple[float, Sequence[float]]], epsilon: float) -> list[float]:
    """sum over reward terms of weight * (score - mean) / (std + epsilon), mean and std within the group (GDPO,
    2601.05242); `whiten` makes it the paper's."""
    normal = [
        [weight * (score - statistics.mean(scores_G)) / (standard_deviation(scores_G) + epsilon) for score in scores_G]
        for weight, scores_G in terms
    ]
    return [math.fsum(of_one) for of_one in zip(*normal, strict=True)]


class MovingAverage:
    """State of ``baseline: ema``: averages of the rewards of earlier steps, for all problems or for each.

    A step's advantages are against the averages before it, so that no reward is in its own baseline; `move` follows.
    """

    def __init__(self, config: EmaBaseline) -> None:
        self._config = config
        self._values: dict[str, float] = {}

    def of(self, problem_id: str) -> float:
        """The baseline for a problem's rollouts."""
        return self._values.get(self._key(problem_id), self._config.initial)

    def move(self, groups: Sequence[ScoredGroup]) -> None:
        """Take in the shaped rewards of a step: their mean (``run``), or each group's in order (``problem``)."""
        if self._config.per == "problem":
            news = [(group.problem_id, group.rewards_G) for group in groups]
        else:
            news = [("", [reward for group in groups for reward in group.rewards_G])]
        for problem_id, rewards in news:
            if rewards:
                decay = self._config.decay
                self._values[self._key(problem_id)] = decay * self.of(problem_id) + (1 - decay) * statistics.mean(
                    rewards
                )

    def state_dict(self) -> dict[str, Any]:
        """All averages."""
        return {"per": self._config.per, "values": dict(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned. Raises `ValueError` if it was of the other kind."""
        if state["per"] != self._config.per:
            raise ValueError(
                f"the checkpoint holds averages per {state['per']}, algorithm.baseline.per is {self._config.per!r}; "
                "set it back, or start a new run"
            )
        self._values = dict(state["values"])

    def _key(self, problem_id: str) -> str:
        return problem_id if self._config.per == "problem" else ""


def centre(group: ScoredGroup, config: Baseline, average: MovingAverage | None = None) -> list[float]:
    """A group's rewards after the baseline: each minus it, or what the baseline says instead.

    Raises `ValueError` where the group lacks what the baseline needs, and for a plug-in that returns another number
    of values.
    """
    rewards_G = group.rewards_G
    match config:
        case MeanBaseline():
            baseline_G = mean_baseline(rewards_G)
        case LeaveOneOutBaseline():
            baseline_G = leave_one_out_baseline(rewards_G)
        case LogMeanExpBaseline():
            baseline_G = log_mean_exp_baseline(rewards_G, config.beta)
        case LengthWeightedBaseline():
            baseline_G = length_weighted_baseline(rewards_G, [sum(rollout.loss_mask) for rollout in group.rollouts_G])
        case PassAtKBaseline():
            return pass_at_k(rewards_G, config.k, normalise=config.normalise, epsilon=config.epsilon)
        case GdpoBaseline():
            return gdpo(group.terms, config.epsilon)
        case EmaBaseline():
            if average is None:
                raise ValueError("baseline 'ema' needs the averages of earlier steps, and got none")
            baseline_G = [average.of(group.problem_id)] * len(rewards_G)
        case GreedyBaseline():
            if group.greedy_reward is None:
                raise ValueError(
                    f"baseline 'greedy': the group of problem {group.problem_id!r} has no greedy completion"
                )
            baseline_G = [group.greedy_reward] * len(rewards_G)
        case NoBaseline():
            return list(rewards_G)
        case PlugIn():
            plugged = load_plugin(config.type, config.args, positional=2)
            baseline_G = [float(value) for value in plugged(rewards_G, group.rollouts_G)]
            if len(baseline_G) != len(rewards_G):
                raise ValueError(
                    f"baseline {config.type!r} returned {len(baseline_G)} values for {len(rewards_G)} rollouts"
                )
        case _:
            assert_never(config)
    return [reward - value for reward, value in zip(rewards_G, baseline_G, strict=True)]


# -------------------------------------------------------------------------------------------------------------- scale


def standard_deviation(values: Sequence[float]) -> float:
    """Standard deviation with Bessel's correction; one value has none and raises `ValueError`."""
    if len(values) < 2:
        raise ValueError(f"a standard deviation needs at least 2 rewards, got {len(values)}")
    return statistics.stdev(values)


def scale(
    centred_P_G: Sequence[Sequence[float]], rewards_P_G: Sequence[Sequence[float]], config: Scale
) -> list[list[float]]:
    """Centred rewards divided by nothing (Dr. GRPO, 2503.20783), by the standard deviation of the group's rewards
    (GRPO, 2402.03300), by that of all rewards of the batch (2508.08221), by the group's mean reward (MaxRL,
    2602.02710), or whitened over the batch (REINFORCE++, 2501.03262).

    Raises `RewardError` for ``group_mean`` where a group's mean is negative.
    """
    everyone = [value for centred_G in centred_P_G for value in centred_G]
    shift = 0.0
    match config:
        case NoScale():
            denominators = [1.0] * len(centred_P_G)
        case GroupStd():
            denominators = [standard_deviation(rewards_G) + config.epsilon for rewards_G in rewards_P_G]
        case GroupMean():
            denominators = [_mean_of(rewards_G) + config.epsilon for rewards_G in rewards_P_G]
        case BatchStd():
            rewards = [reward for rewards_G in rewards_P_G for reward in rewards_G]
            denominators = [standard_deviation(rewards) + config.epsilon] * len(rewards_P_G) if rewards else []
        case Whiten():
            shift = statistics.mean(everyone) if everyone else 0.0
            denominators = [standard_deviation(everyone) + config.epsilon] * len(centred_P_G) if everyone else []
        case _:
            assert_never(config)
    return [
        [(value - shift) / denominator for value in centred_G]
        for centred_G, denominator in zip(centred_P_G, denominators, strict=True)
    ]


def _mean_of(rewards_G: Sequence[float]) -> float:
    """A group's mean reward, which MaxRL takes for a probability."""
    mean = statistics.mean(rewards_G)
    if mean < 0:
        raise RewardError(
            f"algorithm.scale 'group_mean' divides by a group's mean reward, which must not be negative, got {mean:g} "
            f"of {len(rewards_G)} rewards, the least {min(rewards_G):g}; use rewards of 0 and more without penalties, "
            "or another scale"
        )
    return mean
