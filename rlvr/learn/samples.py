"""From graded groups to what the learner trains on: filter, shaping, advantages, masks, in this order.

The filter looks at the rewards as graded, before shaping, as DAPO's does (2503.14476, eq. 11: some but not all
answers are right).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from rlvr.config.algorithm import Algorithm
from rlvr.learn.advantages import baseline, scale
from rlvr.learn.shaping import shape
from rlvr.records import Rollout, RolloutGroup, TrainingSample

Kept = tuple[int, tuple[Rollout, ...]]
"""A group that is trained: its index within the step, and its scored rollouts."""


def make_samples(
    groups: Sequence[RolloutGroup], algorithm: Algorithm, step: int
) -> tuple[list[TrainingSample], dict[str, float]]:
    """Training samples of a step's groups, and counts of everything that was left out, for the metrics.

    A rollout that was not scored leaves the baseline and is not trained. A truncated one that ``truncated: mask``
    takes out of the loss stays in the baseline, and in the list with an all-zero mask, so that answers are counted
    the same with and without the mask.
    """
    kept, counts = _filter(groups, algorithm)
    rewards_P_G = [shape(rollouts_G, algorithm.shaping, step) for _, rollouts_G in kept]
    centred_P_G = [
        [reward - b for reward, b in zip(rewards_G, baseline(rewards_G, rollouts_G, algorithm.baseline), strict=True)]
        for rewards_G, (_, rollouts_G) in zip(rewards_P_G, kept, strict=True)
    ]
    if algorithm.scale.type == "batch_std" and sum(len(rewards_G) for rewards_G in rewards_P_G) < 2:
        counts["groups/too_few_scored"] += len(kept)
        counts["groups/trained"] -= len(kept)
        kept, rewards_P_G, centred_P_G = [], [], []
    advantages_P_G = scale(centred_P_G, rewards_P_G, algorithm.scale)

    samples: list[TrainingSample] = []
    for (index, rollouts_G), advantages_G in zip(kept, advantages_P_G, strict=True):
        for rollout, advantage in zip(rollouts_G, advantages_G, strict=True):
            masked = algorithm.truncated == "mask" and rollout.is_truncated
            counts["samples/truncated_masked"] += masked
            samples.append(_sample(rollout, advantage, index, masked))
    shaped = [reward for rewards_G in rewards_P_G for reward in rewards_G]
    graded = [rollout.reward for _, rollouts_G in kept for rollout in rollouts_G if rollout.reward is not None]
    counts["samples/trained"] = sum(1 for sample in samples if sample.trained_tokens)
    counts["reward/shaping"] = statistics.fmean(shaped) - statistics.fmean(graded) if shaped else 0.0
    counts["advantage/abs_mean"] = statistics.fmean(abs(sample.advantage) for sample in samples) if samples else 0.0
    return samples, counts


def places_of(groups: Sequence[RolloutGroup], samples: Sequence[TrainingSample]) -> list[list[int | None]]:
    """For each rollout of each group the index of its sample by `make_samples`, None where it was not trained."""
    queues: dict[int, Iterator[int]] = {
        group: iter([index for index, sample in enumerate(samples) if sample.group == group])
        for group in {sample.group for sample in samples}
    }
    return [
        [next(queues[index]) if index in queues and rollout.reward is not None else None for rollout in group.rollouts]
        for index, group in enumerate(groups)
    ]


def advantages_of(groups: Sequence[RolloutGroup], samples: Sequence[TrainingSample]) -> list[list[float | None]]:
    """The advantage of each rollout of each group by `make_samples`, None where it was not trained."""
    return [
        [None if place is None else samples[place].advantage for place in places_G]
        for places_G in places_of(groups, samples)
    ]


def groups_with_tokens(groups: Sequence[RolloutGroup], samples: Sequence[TrainingSample], count: int) -> set[int]:
    """The `count` groups whose tokens are logged: the first that are trained, then the first of the others."""
    trained = {sample.group for sample in samples}
    return set(sorted(range(len(groups)), key=lambda index: index not in trained)[:count])


def _filter(groups: Sequence[RolloutGroup], algorithm: Algorithm) -> tuple[list[Kept], dict[str, float]]:
    """The groups that are trained, without their unscored rollouts, and how many were not, by cause."""
    counts = dict.fromkeys(
        ("groups/total", "groups/trained", "groups/zero_variance", "groups/too_few_scored",
         "samples/unscored", "samples/truncated_masked"), 0.0,
    )  # fmt: skip
    kept: list[Kept] = []
    for index, group in enumerate(groups):
        scored = tuple(rollout for rollout in group.rollouts if rollout.reward is not None)
        counts["groups/total"] += 1
        counts["samples/unscored"] += len(group.rollouts) - len(scored)
        if len(scored) < algorithm.smallest_group():
            counts["groups/too_few_scored"] += 1
            continue
        # A group of one answer has no variance to speak of, and without a baseline it does teach.
        if len(scored) > 1 and len({rollout.reward for rollout in scored}) == 1:
            counts["groups/zero_variance"] += 1
            if algorithm.filter.type == "drop":
                continue
        kept.append((index, scored))
    counts["groups/trained"] = float(len(kept))
    return kept, counts


def _sample(rollout: Rollout, advantage: float, group: int, masked: bool) -> TrainingSample:
    """Prompt and answer of one rollout in one row."""
    prompt = len(rollout.prompt_ids)
    mask = (0,) * len(rollout.ids) if masked else rollout.loss_mask
    return TrainingSample(
        ids=rollout.prompt_ids + rollout.ids,
        loss_mask=(0,) * prompt + mask,
        behaviour_logprobs=(0.0,) * prompt
        + tuple(lp if m else 0.0 for lp, m in zip(rollout.behaviour_logprobs, mask, strict=True)),
        advantage=advantage,
        group=group,
    )
