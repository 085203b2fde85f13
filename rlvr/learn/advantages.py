"""Advantages: what multiplies a rollout's tokens, from the rewards of its group.

Only scored rollouts come here: one that was not scored has left the baseline before, which is not the same as a reward
of 0. Scaling divides by a standard deviation with Bessel's correction plus epsilon.

A plug-in baseline is ``f(rewards_G, rollouts_G, **args) -> list[float]``: what to subtract from each reward.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import assert_never

from rlvr.config.algorithm import Baseline, LeaveOneOutBaseline, MeanBaseline, NoBaseline, Scale
from rlvr.config.base import PlugIn
from rlvr.plugins import load_plugin
from rlvr.records import Rollout


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


def baseline(rewards_G: Sequence[float], rollouts_G: Sequence[Rollout], config: Baseline) -> list[float]:
    """What is subtracted from each reward of a group."""
    match config:
        case MeanBaseline():
            return mean_baseline(rewards_G)
        case LeaveOneOutBaseline():
            return leave_one_out_baseline(rewards_G)
        case NoBaseline():
            return [0.0] * len(rewards_G)
        case PlugIn():
            values = [
                float(value) for value in load_plugin(config.type, config.args, positional=2)(rewards_G, rollouts_G)
            ]
            if len(values) != len(rewards_G):
                raise ValueError(
                    f"baseline {config.type!r} returned {len(values)} values for {len(rewards_G)} rollouts"
                )
            return values
        case _:
            assert_never(config)


def standard_deviation(values: Sequence[float]) -> float:
    """Standard deviation with Bessel's correction; one value has none and raises `ValueError`."""
    if len(values) < 2:
        raise ValueError(f"a standard deviation needs at least 2 rewards, got {len(values)}")
    return statistics.stdev(values)


def scale(
    centred_P_G: Sequence[Sequence[float]], rewards_P_G: Sequence[Sequence[float]], config: Scale
) -> list[list[float]]:
    """Centred rewards divided by nothing (Dr. GRPO, 2503.20783), by the standard deviation of the group's rewards
    (GRPO), or by that of all rewards of the batch (2508.08221)."""
    match config.type:
        case "none":
            return [list(centred_G) for centred_G in centred_P_G]
        case "group_std":
            denominators = [standard_deviation(rewards_G) + config.epsilon for rewards_G in rewards_P_G]
        case "batch_std":
            everyone = [reward for rewards_G in rewards_P_G for reward in rewards_G]
            denominators = [standard_deviation(everyone) + config.epsilon] * len(rewards_P_G) if everyone else []
        case _:
            assert_never(config.type)
    return [
        [value / denominator for value in centred_G]
        for centred_G, denominator in zip(centred_P_G, denominators, strict=True)
    ]
