"""Builders of graded groups."""

from __future__ import annotations

from collections.abc import Mapping

from rewards import Outcome, Verdict
from rlvr.records import FinishReason, Problem, Rollout, RolloutGroup


def rollout(
    reward: float | None,
    *,
    tokens: int = 3,
    finish_reason: FinishReason = "stop",
    verdicts: Mapping[str, Verdict] | None = None,
    index: int = 0,
    loss_mask: tuple[int, ...] | None = None,
) -> Rollout:
    """A completion of some tokens to the prompt (5, 6); right if its reward is above 0."""
    if verdicts is None and reward is None:
        verdicts = {"answer": Verdict(None, Outcome.ERROR)}
    elif verdicts is None:
        verdicts = {"answer": Verdict(reward, Outcome.CORRECT if reward else Outcome.WRONG)}
    return Rollout(
        problem_id="p",
        visit=0,
        sample_index=index,
        request_seed=index,
        prompt_ids=(5, 6),
        ids=tuple(range(10, 10 + tokens)),
        loss_mask=loss_mask or (1,) * tokens,
        behaviour_logprobs=tuple(-0.5 - t for t in range(tokens)),
        weight_version=(0,) * tokens,
        text="",
        finish_reason=finish_reason,
        verdicts=verdicts,
        reward=reward,
    )


def group(*rewards: float | None, finish_reasons: Mapping[int, FinishReason] | None = None) -> RolloutGroup:
    """One group with these rewards."""
    ends: dict[int, FinishReason] = dict.fromkeys(range(len(rewards)), "stop")
    ends.update(finish_reasons or {})
    rollouts = tuple(rollout(reward, index=i, finish_reason=ends[i]) for i, reward in enumerate(rewards))
    return RolloutGroup(problem=Problem(id="p", prompt="?", reference="1", key="p"), visit=0, rollouts=rollouts)
