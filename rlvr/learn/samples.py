"""From graded groups to training samples: filter, shaping, advantages, masks, in this order.

The filter looks at the rewards as graded, before shaping, as DAPO's does (2503.14476, eq. 11: some but not all
completions are right).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from rewards.combine import Term
from rlvr.config.algorithm import Algorithm
from rlvr.config.groups import OVER_THE_BATCH, GdpoBaseline, KeepGroups
from rlvr.config.schedule import Schedule
from rlvr.learn.advantages import MovingAverage, ScoredGroup, centre, scale
from rlvr.learn.shaping import shape
from rlvr.records import Rollout, RolloutGroup, TrainingSample
from rlvr.rollout.group_filter import has_enough, has_variance, scored_rollouts, term_scores


class StaleTokens(RuntimeError):
    """Tokens of a version that the schedule does not allow were about to be trained: a fault of the program."""


def make_samples(
    groups: Sequence[RolloutGroup],
    algorithm: Algorithm,
    step: int,
    *,
    terms: Sequence[Term] = (),
    average: MovingAverage | None = None,
    schedule: Schedule | None = None,
) -> tuple[list[TrainingSample], dict[str, float]]:
    """Training samples of a step's groups, and counts of everything that was left out, for the metrics.

    A rollout that was not scored leaves the baseline and is not trained. A truncated one that ``truncated: mask``
    takes out of the loss stays in the baseline, and in the list with an all-zero mask, so that completions are counted
    the same with and without the mask. ``terms`` are the recipe's reward terms, for ``baseline: gdpo``; ``average`` is
    the state of ``baseline: ema``, which the step's rewards then move. With a `schedule`, tokens past its bound on age
    are masked where it says so; anywhere else they raise `StaleTokens`, and so do tokens of a version to come.
    """
    kept, counts = _filter(groups, algorithm, step, terms)
    if isinstance(algorithm.scale, OVER_THE_BATCH) and sum(len(group.rollouts_G) for group in kept) < 2:
        counts["groups/too_few_scored"] += len(kept)
        counts["groups/trained"] -= len(kept)
        kept = []
    centred_P_G = [centre(group, algorithm.baseline, average) for group in kept]
    advantages_P_G = scale(centred_P_G, [group.rewards_G for group in kept], algorithm.scale)
    if average is not None:
        average.move(kept)

    samples: list[TrainingSample] = []
    ages: list[int] = []
    stale = 0
    for group, advantages_G in zip(kept, advantages_P_G, strict=True):
        for rollout, advantage in zip(group.rollouts_G, advantages_G, strict=True):
            masked = algorithm.truncated == "mask" and rollout.is_truncated
            counts["samples/truncated_masked"] += masked
            fresh_T = _fresh(rollout, step, schedule)
            tokens = list(zip(rollout.weight_version, rollout.loss_mask, fresh_T, strict=True))
            ages += [step - 1 - version for version, mask, fresh in tokens if mask and fresh]
            stale += sum(mask and not fresh for _, mask, fresh in tokens)
            samples.append(_sample(rollout, advantage, group.index, masked, fresh_T))
    shaped = [reward for group in kept for reward in group.rewards_G]
    graded = [rollout.reward for group in kept for rollout in group.rollouts_G if rollout.reward is not None]
    counts["samples/trained"] = sum(1 for sample in samples if sample.trained_tokens)
    counts["reward/shaping"] = statistics.fmean(shaped) - statistics.fmean(graded) if shaped else 0.0
    if schedule is not None and ages:
        counts |= {"staleness/mean": statistics.fmean(ages), "staleness/max": float(max(ages))}
    if schedule is not None:
        counts["staleness/masked"] = float(stale)
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


def _filter(
    groups: Sequence[RolloutGroup], algorithm: Algorithm, step: int, terms: Sequence[Term]
) -> tuple[list[ScoredGroup], dict[str, float]]:
    """The groups that are trained, shaped and without their unscored rollouts, and how many were not, by cause."""
    counts = dict.fromkeys(
        ("groups/total", "groups/trained", "groups/zero_variance", "groups/too_few_scored",
         "samples/unscored", "samples/truncated_masked"), 0.0,
    )  # fmt: skip
    kept: list[ScoredGroup] = []
    for index, group in enumerate(groups):
        scored = scored_rollouts(group)
        counts["groups/total"] += 1
        counts["samples/unscored"] += len(group.rollouts) - len(scored)
        if not has_enough(group, algorithm):
            counts["groups/too_few_scored"] += 1
            continue
        if not has_variance(group, algorithm, terms):
            counts["groups/zero_variance"] += 1
            if not isinstance(algorithm.filter, KeepGroups):
                continue
        greedy = group.greedy
        kept.append(
            ScoredGroup(
                index=index,
                problem_id=group.problem.id,
                rollouts_G=scored,
                rewards_G=shape(scored, algorithm.shaping, step),
                greedy_reward=shape([greedy], algorithm.shaping, step)[0]
                if greedy and greedy.reward is not None
                else None,
                terms=term_scores(group, scored, terms) if isinstance(algorithm.baseline, GdpoBaseline) else (),
            )
        )
    counts["groups/trained"] = float(len(kept))
    return kept, counts


def _fresh(rollout: Rollout, step: int, schedule: Schedule | None) -> tuple[bool, ...]:
    """For each token whether its age allows it to be trained at `step`, which starts from weights of version step - 1.

    Raises `StaleTokens` for a token that should never have come here.
    """
    if schedule is None:
        return (True,) * len(rollout.ids)
    fresh_T = tuple(step - 1 - version <= schedule.bound for version in rollout.weight_version)
    trained = [version for version, mask in zip(rollout.weight_version, rollout.loss_mask, strict=True) if mask]
    name = f"rollout {rollout.problem_id}/{rollout.visit}/{rollout.sample_index}"
    if any(version >= step for version in trained):
        raise StaleTokens(
            f"{name} has tokens of version {max(trained)}, step {step} starts from version {step - 1}: engine and "
            "learner disagree about versions"
        )
    if schedule.stale_policy != "mask" and trained and step - 1 - min(trained) > schedule.bound:
        raise StaleTokens(
            f"{name} has tokens of version {min(trained)}, more than {schedule.bound} older than version {step - 1}, "
            f"from which step {step} starts"
        )
    return fresh_T


def _sample(rollout: Rollout, advantage: float, group: int, masked: bool, fresh_T: tuple[bool, ...]) -> TrainingSample:
    """Prompt and completion of one rollout in one row."""
    prompt = len(rollout.prompt_ids)
    mask = tuple(int(m and f and not masked) for m, f in zip(rollout.loss_mask, fresh_T, strict=True))
    return TrainingSample(
        ids=rollout.prompt_ids + rollout.ids,
        loss_mask=(0,) * prompt + mask,
        behaviour_logprobs=(0.0,) * prompt
        + tuple(lp if m else 0.0 for lp, m in zip(rollout.behaviour_logprobs, mask, strict=True)),
        advantage=advantage,
        group=group,
    )
