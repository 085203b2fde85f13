"""Ends a run in which too many rollouts could not be scored."""

from __future__ import annotations

from collections.abc import Sequence

from rlvr.errors import RlvrError
from rlvr.records import RolloutGroup


class TooManyUnscored(RlvrError, RuntimeError):
    """More rollouts of a step than the recipe allows could not be scored: a verifier is broken, not the policy."""


def check_scored(groups: Sequence[RolloutGroup], allowed: float) -> None:
    """Raise `TooManyUnscored` if more than the share ``allowed`` of all rollouts have no reward."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    unscored = [rollout for rollout in rollouts if rollout.reward is None]
    if len(unscored) > allowed * len(rollouts):
        verdicts = next(iter(unscored)).verdicts.items()
        name, verdict = next((name, verdict) for name, verdict in verdicts if not verdict.outcome.is_scored)
        raise TooManyUnscored(
            f"{len(unscored)} of {len(rollouts)} rollouts could not be scored, rewards.max_unscored allows "
            f"{allowed:.0%}; the first is {unscored[0].problem_id!r}, where term {name!r} said {verdict.outcome}:\n"
            f"{verdict.detail.get('error', dict(verdict.detail))}"
        )
