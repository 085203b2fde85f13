"""Evaluation metrics from graded completions: pass@k, maj@k and avg@k, each with a 95 % confidence interval.

Problems are independent draws, completions to one problem are not: every estimate is a mean over problems, and
every interval counts problems, not completions (Miller 2024, arXiv 2411.00640). Unscored completions are left out and
counted; a problem with fewer than k scored completions has no pass@k and is counted as ``short``.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from rewards import Outcome
from rlvr.records import Rollout, RolloutGroup

_Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""

_NO_VOTE = frozenset({Outcome.NO_ANSWER, Outcome.TIMEOUT, Outcome.CRASHED})
"""Outcomes that leave nothing to vote for, unless the verdict names an answer all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemResult:
    """The scored completions to one problem.

    Example: ``ProblemResult(problem_id="7", correct=(True, False), answers=("42", None), unscored=0)``.
    """

    problem_id: str
    correct: tuple[bool, ...]
    """[n] for each scored completion, whether it is right."""
    answers: tuple[str | None, ...]
    """[n] what each one votes for in maj@k; None where no answer was found."""
    unscored: int
    """Completions that were not judged; they are in no tuple."""
    rewards: tuple[float, ...] = ()
    """[n] the reward of each one, before shaping; the same as `correct` only where no verdict is PARTIAL."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of n completions, c of them right, drawn without replacement, hold a right one.

    The unbiased estimate 1 - C(n-c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374, eq. 1).
    Raises `ValueError` unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n = {n}, c = {c}, k = {k}")
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 1.0


def maj_at_k(correct: Sequence[bool], answers: Sequence[str | None], k: int) -> float:
    """Probability that a majority vote of k of the n answers, drawn without replacement, is right.

    The answer given most often wins; a tie is broken by lot among the tied, and an answer of None votes for nothing
    (a draw without any vote is wrong). Exact: the mean over all C(n, k) draws and all lots, by counting. Equal
    answers that were judged differently count as right by the share of them that is.
    """
    if not 1 <= k <= len(answers) or len(correct) != len(answers):
        raise ValueError(f"maj@k needs n judged answers and 1 <= k <= n, got {len(correct)}, {len(answers)}, k = {k}")
    votes = Counter(answer for answer in answers if answer is not None)
    right = Counter(answer for answer, is_right in zip(answers, correct, strict=True) if is_right)
    silent = sum(answer is None for answer in answers)
    total = 0.0
    for answer, size in votes.items():
        if right[answer]:
            others = [count for other, count in votes.items() if other != answer]
            total += right[answer] / size * _winning_draws(size, others, silent, k)
    return total / math.comb(len(answers), k)


def _winning_draws(size: int, others: Sequence[int], silent: int, k: int) -> float:
    """Draws of k in which one answer, given `size` times, wins against answers given `others` times.

    For each number v of votes that it may get: C(size, v) times the draws of the rest in which nobody has more than v,
    each divided by the number of the tied. ``ways[s, t]`` counts the draws of s others, t of them tied at v.
    """
    total = 0.0
    for v in range(1, min(size, k) + 1):
        rest = k - v
        ways = np.zeros((rest + 1, rest // v + 1))
        ways[0, 0] = 1.0
        for count in others:
            grown = ways.copy()  # u = 0 votes for this answer
            for u in range(1, min(count, v, rest) + 1):
                factor = math.comb(count, u)
                if u < v:
                    grown[u:] += factor * ways[:-u]
                else:
                    grown[u:, 1:] += factor * ways[:-u, :-1]
            ways = grown
        drawn = np.arange(rest + 1)
        quiet = np.array([math.comb(silent, rest - s) for s in drawn], dtype=float)
        shares = 1.0 / np.arange(1, ways.shape[1] + 1)
        total += math.comb(size, v) * float(quiet @ ways @ shares)
    return total


def interval(values_P: Sequence[float], draws: int) -> Estimate:
    """Mean of one value in [0, 1] a problem, with Wilson's 95 % interval for the effective number of draws.

    That number is P / d: d is the variance between problems over mean * (1 - mean), which it reaches when all
    completions to a problem are alike (Wilson 1927; for clusters Dean and Pagano 2015, doi:10.1093/jssam/smv024); never
    more than `draws`, the completions there were. A handful of problems shows too little variance where the rare
    solvable one is not among them, so d is drawn towards 1 by two problems' worth of evidence. The normal interval
    would have no width at 0 and 1, where evaluations of small models begin and of good ones end.
    """
    count, mean = len(values_P), statistics.fmean(values_P)
    between = (count - 1) * statistics.variance(values_P) if count > 1 else 0.0
    at_most = (count - 1) * mean * (1 - mean)
    effective = min(float(draws), count * (at_most + 2 * 0.25) / (between + 2 * 0.25))
    shrink = 1 + _Z**2 / effective
    centre = (mean + _Z**2 / (2 * effective)) / shrink
    half = _Z / shrink * math.sqrt(mean * (1 - mean) / effective + _Z**2 / (4 * effective**2))
    return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(values_P: Sequence[float], draws: int) -> Estimate:
    """Mean of one value a problem, of any size, with its 95 % interval: `interval` on the scale from the lowest to the
    highest of the values, 0 and 1 included."""
    low, high = min(0.0, *values_P), max(1.0, *values_P)
    scaled = interval([(value - low) / (high - low) for value in values_P], draws)
    return Estimate(*(low + end * (high - low) for end in (scaled.mean, scaled.low, scaled.high)))


def problem_result(group: RolloutGroup) -> ProblemResult:
    """The scored completions of one group; `Rollout.is_correct` says which are right."""
    judged = [(right, rollout) for rollout in group.rollouts if (right := rollout.is_correct) is not None]
    return ProblemResult(
        problem_id=group.problem.id,
        correct=tuple(right for right, _ in judged),
        answers=tuple(_vote(rollout) for _, rollout in judged),
        unscored=len(group.rollouts) - len(judged),
        rewards=tuple(rollout.reward for _, rollout in judged if rollout.reward is not None),
    )


def _vote(rollout: Rollout) -> str | None:
    """What a rollout votes for: the answer that its first verdict found, else its whole text if it has an answer."""
    verdict = next(iter(rollout.verdicts.values()))
    if (answer := verdict.detail.get("answer")) is not None:
        return str(answer)
    return None if verdict.outcome in _NO_VOTE else rollout.text.strip()


def summarise(name: str, groups: Sequence[RolloutGroup], k: Sequence[int]) -> dict[str, float]:
    """``eval/NAME/...`` of one evaluation: pass@k, maj@k for each k, avg@n, the mean reward, the greedy completions'
    accuracy where there are any, the intervals of these, and what was left out."""
    results = [problem_result(group) for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scored = [result for result in results if result.correct]
    largest = max((len(group.rollouts) for group in groups), default=0)
    estimates: dict[str, Estimate] = {}
    for size in sorted(set(k)):
        enough = [result for result in scored if len(result.correct) >= size]
        if not enough:
            continue
        draws = sum(len(result.correct) for result in enough)
        estimates[f"pass@{size}"] = interval(
            [pass_at_k(len(result.correct), sum(result.correct), size) for result in enough], draws
        )
        if size > 1:  # a vote of one is pass@1
            estimates[f"maj@{size}"] = interval(
                [maj_at_k(result.correct, result.answers, size) for result in enough], draws
            )
    if scored:
        draws = sum(len(result.correct) for result in scored)
        estimates[f"avg@{largest}"] = interval([statistics.fmean(result.correct) for result in scored], draws)
    rewarded = [result for result in scored if result.rewards]
    if rewarded:
        draws = sum(len(result.rewards) for result in rewarded)
        estimates["reward"] = mean_interval([statistics.fmean(result.rewards) for result in rewarded], draws)
    if greedy := [float(right) for group in groups if group.greedy and (right := group.greedy.is_correct) is not None]:
        estimates["greedy"] = interval(greedy, len(greedy))
    numbers = {
        "problems": float(len(results)),
        "samples": float(len(rollouts)),
        "unscored": sum(result.unscored for result in results) / max(1, len(rollouts)),
        "short": sum(len(result.correct) < max(k) for result in results) / max(1, len(results)),
    }
    if rollouts:
        numbers["truncated"] = sum(rollout.is_truncated for rollout in rollouts) / len(rollouts)
        numbers["length"] = statistics.fmean(len(rollout.ids) for rollout in rollouts)
        numbers["no_answer"] = sum(_found_nothing(rollout) for rollout in rollouts) / len(rollouts)
    shown: dict[str, float] = {}
    for key, estimate in estimates.items():
        shown |= {key: estimate.mean, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
    return {f"eval/{name}/{key}": value for key, value in (shown | numbers).items()}


def _found_nothing(rollout: Rollout) -> bool:
    verdict = next(iter(rollout.verdicts.values()), None)
    return verdict is not None and verdict.outcome is Outcome.NO_ANSWER


def comparison(columns: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of evaluations side by side: ``comparison({"before": metrics_0, "after": metrics_60})``."""
    table = Table(title="Evaluation (95 % confidence interval over problems)", title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    keys = [key for metrics in columns.values() for key in metrics if key.startswith("eval/")]
    for key in dict.fromkeys(keys):
        if not key.endswith(("_low", "_high")):
            table.add_row(key.removeprefix("eval/"), *(_cell(metrics, key) for metrics in columns.values()))
    return table


def _cell(metrics: Mapping[str, float], key: str) -> str:
    if key not in metrics:
        return "-"
    if f"{key}_low" in metrics:
        return f"{metrics[key]:.3f} [{metrics[f'{key}_low']:.3f}, {metrics[f'{key}_high']:.3f}]"
    value = metrics[key]
    return f"{value:.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.3g}"
