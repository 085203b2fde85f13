"""Metrics of a step: pure functions from what happened to ``{key: number}``.

`rlvr.runlog.glossary` defines each key. A quantity that is undefined in a step (the mean reward when no rollout was
scored, the standard error of one group) has no key in the result; it is never reported as 0.
"""

from __future__ import annotations

import math
import resource
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rewards import Outcome
from rewards.hybrid import agreement
from rlvr.records import Rollout, RolloutGroup, TrainingSample


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Rewards, outcomes, groups and lengths of the rollouts of one step, before any group is left out."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if not rollouts:
        return {"rollouts/count": 0.0, "tokens/generated": 0.0}
    return {
        **_reward_metrics(groups),
        **_outcome_metrics(rollouts),
        **_hybrid_metrics(rollouts),
        **_group_metrics(groups),
        **_length_metrics(rollouts),
        **_greedy_metrics(groups),
        "rollouts/several_versions": sum(len(set(rollout.weight_version)) > 1 for rollout in rollouts) / len(rollouts),
        "tokens/generated": float(sum(sum(rollout.loss_mask) for rollout in [*rollouts, *_greedy(groups)])),
        "tokens/prompt": float(sum(len(rollout.prompt_ids) for rollout in rollouts)),
        "time/grade_max": max(rollout.grade_seconds for rollout in rollouts),
    }


def _reward_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    rewards_P_G = [[reward for reward in group.rewards_G if reward is not None] for group in groups]
    rewards = [reward for rewards_G in rewards_P_G for reward in rewards_G]
    result: dict[str, float] = {}
    if rewards:
        result["reward/mean"] = statistics.fmean(rewards)
        result["reward/std"] = statistics.pstdev(rewards)
    if (error := clustered_standard_error(rewards_P_G)) is not None:
        result["reward/se"] = error
    scores: dict[str, list[float]] = {}
    for group in groups:
        for rollout in group.rollouts:
            for name, verdict in rollout.verdicts.items():
                if verdict.score is not None:
                    scores.setdefault(name, []).append(verdict.score)
    return result | {f"reward/{name}": statistics.fmean(values) for name, values in scores.items()}


def clustered_standard_error(values_P_G: Sequence[Sequence[float]]) -> float | None:
    """Standard error of the mean of all values, whose groups are independent and whose members are not.

    sqrt(P/(P-1) * sum_p (sum_g (x_pg - mean))^2) / N, the cluster-robust estimate (Liang and Zeger 1986; for evals
    Miller 2024, arXiv 2411.00640, section 2.2); None with fewer than two groups that hold a value.
    """
    clusters = [values for values in values_P_G if values]
    if len(clusters) < 2:
        return None
    count = sum(len(values) for values in clusters)
    mean = math.fsum(value for values in clusters for value in values) / count
    squares = math.fsum(math.fsum(value - mean for value in values) ** 2 for values in clusters)
    return math.sqrt(squares * len(clusters) / (len(clusters) - 1)) / count


def _outcome_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    counts: dict[str, Counter[Outcome]] = {}
    for rollout in rollouts:
        for name, verdict in rollout.verdicts.items():
            counts.setdefault(name, Counter())[verdict.outcome] += 1
    return {
        f"outcome/{name}/{outcome.value.lower()}": counter[outcome] / counter.total()
        for name, counter in counts.items()
        for outcome in Outcome
    }


def _hybrid_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Rules against judge for each term graded by a `HybridVerifier`, whose details alone hold both keys."""
    details: dict[str, list[Mapping[str, Any]]] = {}
    for rollout in rollouts:
        for name, verdict in rollout.verdicts.items():
            if verdict.detail.keys() >= {"rules", "decided_by"}:
                details.setdefault(name, []).append(verdict.detail)
    agreements = {name: agreement(of_name) for name, of_name in details.items()}
    rates = {f"judge/{name}/agreement": counts.rate for name, counts in agreements.items() if counts.rate is not None}
    shares = {f"judge/{name}/repaired": counts.repaired / counts.graded for name, counts in agreements.items()}
    return rates | shares


def _group_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    right_P_G = [[right for r in group.rollouts if (right := r.is_correct) is not None] for group in groups]
    judged = [right_G for right_G in right_P_G if right_G]
    return {
        "groups/all_correct": float(sum(all(right_G) for right_G in judged)),
        "groups/none_correct": float(sum(not any(right_G) for right_G in judged)),
    }


def _greedy(groups: Sequence[RolloutGroup]) -> list[Rollout]:
    return [group.greedy for group in groups if group.greedy is not None]


def _greedy_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    rewards = [rollout.reward for rollout in _greedy(groups) if rollout.reward is not None]
    return {"greedy/reward": statistics.fmean(rewards)} if rewards else {}


def refill_metrics(counts: Mapping[str, float], wanted: int) -> dict[str, float]:
    """How a step's groups compare with the ``prompts_per_step`` that were wanted, from the counts of `make_samples`."""
    return {
        "groups/extra": counts["groups/total"] - wanted,
        "groups/missing": wanted - counts["groups/trained"],
    }


def _length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    lengths = [len(rollout.ids) for rollout in rollouts]
    ends = Counter(rollout.finish_reason for rollout in rollouts)
    result = {
        "rollouts/count": float(len(rollouts)),
        "rollouts/unscored": sum(rollout.reward is None for rollout in rollouts) / len(rollouts),
        "length/mean": statistics.fmean(lengths),
        "length/max": float(max(lengths)),
        "length/truncated": ends["length"] / len(rollouts),
        "finish/stop": ends["stop"] / len(rollouts),
        "finish/abort": ends["abort"] / len(rollouts),
        "finish/repetition": ends["repetition"] / len(rollouts),
    }
    for name, wanted in (("correct", True), ("wrong", False)):
        if of_kind := [len(rollout.ids) for rollout in rollouts if rollout.is_correct is wanted]:
            result[f"length/mean_{name}"] = statistics.fmean(of_kind)
    return result


def sample_metrics(samples: Sequence[TrainingSample]) -> dict[str, float]:
    """Metrics of what the learner is given, after groups were left out and completions masked."""
    return {"advantage/abs_max": max((abs(sample.advantage) for sample in samples), default=0.0)}


def memory_metrics() -> dict[str, float]:
    """Peak memory of this process so far, and of its GPU where it has one, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    result = {"memory/peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if torch.cuda.is_available():
        result["memory/gpu_peak"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def throughput_metrics(metrics: Mapping[str, float], peak_flops: float) -> dict[str, float]:
    """Rates, from the tokens, operations and times of the same step, and what a trained token cost.

    ``peak_flops`` are the operations a second that all of the run's devices reach together.
    """
    result = {}
    for name, phase in (("mfu/update", "time/forward_backward"), ("mfu/step", "time/step")):
        if "update/flops" in metrics and metrics[phase] > 0:
            result[name] = metrics["update/flops"] / (metrics[phase] * peak_flops)
    if metrics["time/step"] > 0:
        result["tokens/per_second"] = metrics["tokens/generated"] / metrics["time/step"]
    if metrics["time/beside/sampling"] > 0:
        result["tokens/generated_per_second"] = metrics["tokens/generated"] / metrics["time/beside/sampling"]
    if metrics.get("tokens/trained", 0) > 0:
        result["tokens/generated_per_trained"] = metrics["tokens/generated"] / metrics["tokens/trained"]
    return result
