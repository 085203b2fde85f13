"""Decides which groups can teach: enough scored rollouts, and rewards that differ.

Sampling uses it to refill a step, the learner to leave the other groups out.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.combine import Term, combine
from rlvr.config.algorithm import Algorithm
from rlvr.config.groups import GdpoBaseline, GreedyBaseline
from rlvr.records import Rollout, RolloutGroup


def has_enough(group: RolloutGroup, algorithm: Algorithm) -> bool:
    """True where a group has all the scores that the baseline and the scale need."""
    if isinstance(algorithm.baseline, GreedyBaseline) and (group.greedy is None or group.greedy.reward is None):
        return False
    return len(scored_rollouts(group)) >= algorithm.smallest_group()


def has_variance(group: RolloutGroup, algorithm: Algorithm, terms: Sequence[Term] = ()) -> bool:
    """False where the scored completions, two or more, have equal rewards; for ``gdpo``, equal scores in each term.

    A group of one completion has no variance to speak of, and without a baseline it does teach.
    """
    scored = scored_rollouts(group)
    if len(scored) < 2:
        return True
    if isinstance(algorithm.baseline, GdpoBaseline):
        return any(len(set(scores_G)) > 1 for _, scores_G in term_scores(group, scored, terms))
    return len({rollout.reward for rollout in scored}) > 1


def scored_rollouts(group: RolloutGroup) -> tuple[Rollout, ...]:
    return tuple(rollout for rollout in group.rollouts if rollout.reward is not None)


def term_scores(
    group: RolloutGroup, scored: Sequence[Rollout], terms: Sequence[Term]
) -> tuple[tuple[float, list[float]], ...]:
    """(weight, scores_G) of each reward term of a problem; with a closed gate a score is 0, as in the reward."""
    own = [term for term in terms if group.problem.verifiers is None or term.name in group.problem.verifiers]
    if not own:
        raise ValueError(f"baseline 'gdpo' needs the reward terms of problem {group.problem.id!r}, and got none")
    scores = [
        (term.weight, [combine(rollout.verdicts, [Term(term.name, 1.0, term.gate)]) for rollout in scored])
        for term in own
    ]
    return tuple((weight, [score for score in scores_G if score is not None]) for weight, scores_G in scores)
