"""What rules see of a run: each metric's first value, the latest steps, the best reward, the evaluations."""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from rlvr.config import Recipe
from rlvr.runlog.glossary import find, reproducible
from rlvr.runlog.thresholds import at

_LEFT_OUT = ("warnings/", "tokens/", "eval/")
_EVAL = re.compile(r"eval/(?P<name>[\w.-]+)/(?P<measure>pass@1|avg@\d+)")
EVALS = 16
"""Latest evaluations that are kept; the first one always is."""
UNREADABLE = ("no_answer", "unreadable", "bad_format")
"""Outcomes of a text in which the verifier found nothing that it could judge."""


class History:
    """A run's metrics as far as the rules need them, of bounded size; `add` takes the lines in order.

    Only reproducible numbers are kept: what a rule says must not depend on the clock.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.steps = 0
        """Training steps seen."""
        self.latest: deque[dict[str, float]] = deque(maxlen=int(at("window")))
        """The latest steps, oldest first."""
        self._first: dict[str, float] = {}
        self._best: list[float] = []
        self.evals: list[dict[str, float]] = []
        """Evaluations, oldest first: ``step``, and ``NAME`` with ``NAME/low`` and ``NAME/high`` for each eval set."""

    def add(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Take in a step's line; step 0 holds only evaluations. A number that is null is one that was not finite."""
        numbers = {key: value for key, value in metrics.items() if value is not None and math.isfinite(value)}
        if evaluated := _evaluations(numbers):
            self.evals.append({"step": float(step)} | evaluated)
            del self.evals[1:-EVALS]
        if "rollouts/count" not in numbers:
            return
        self.steps += 1
        line = {"step": float(step)} | {
            key: value
            for key, value in reproducible(numbers).items()
            if not key.startswith(_LEFT_OUT) and find(key) is not None
        }
        self.latest.append(line)
        for key, value in line.items():
            self._first.setdefault(key, value)
        self._note_best()

    def _note_best(self) -> None:
        """The best reward so far, of the first step alone or of a few in a row, with its standard error."""
        count = 1 if self.steps == 1 else int(at("steps"))
        lines = [line for line in list(self.latest)[-count:] if "reward/mean" in line]
        if len(lines) < count:
            return
        mean = statistics.fmean(line["reward/mean"] for line in lines)
        if not self._best or mean > self._best[0]:
            self._best = [mean, _error_of_mean([_error(line) for line in lines]), lines[-1]["step"]]

    # ---------------------------------------------------------------------------------------------------- one number

    def start(self, key: str) -> float | None:
        """A number's first value; None if it never was."""
        return self._first.get(key)

    def last(self, key: str) -> list[float]:
        """Its values in the last few steps; empty unless each of them has one."""
        lines = list(self.latest)[-int(at("steps")) :]
        values = [line[key] for line in lines if key in line]
        return values if len(values) == at("steps") else []

    def now(self, key: str) -> float | None:
        """Mean of the last few values, though they may be some steps old; None where there are not as many."""
        values = [line[key] for line in self.latest if key in line][-int(at("steps")) :]
        return statistics.fmean(values) if len(values) == at("steps") else None

    def grown(self, key: str) -> float | None:
        """`now` over `start`; None where either is missing or nothing came first."""
        first, now = self.start(key), self.now(key)
        return now / first if first is not None and now is not None and first > 0 else None

    def total(self, key: str) -> float:
        """Sum over the latest steps."""
        return sum(line.get(key, 0.0) for line in self.latest)

    def shown(self, key: str, count: int = 3) -> str:
        """The latest values as evidence: ``step 12: length/truncated 0.97``."""
        lines = [line for line in self.latest if key in line][-count:]
        return "; ".join(f"step {line['step']:.0f}: {key} {line[key]:.3g}" for line in lines)

    def compared(self, key: str) -> str:
        """First value and latest as evidence."""
        first = self.start(key)
        return f"first {key} {first:.3g}; {self.shown(key)}" if first is not None else self.shown(key)

    # -------------------------------------------------------------------------------------------------------- derived

    @property
    def is_young(self) -> bool:
        """Too few steps or completions to say anything."""
        return self.steps < at("steps") or self.total("rollouts/count") < at("completions")

    @property
    def is_comparable(self) -> bool:
        """True if all steps' problems are equally hard; a sampler that uses success rates keeps the reward flat."""
        return self.recipe.problems.sampler.type == "shuffled"

    @property
    def is_on_policy(self) -> bool:
        """Every token was sampled by the weights of the step before; else mismatch/abs holds the policy's own way."""
        return self.recipe.rollout.schedule.bound == 0

    @property
    def first_term(self) -> str:
        """The term that says whether an answer is right."""
        return self.recipe.rewards.terms[0].name

    def outcome(self, *names: str, term: str | None = None) -> list[float]:
        """Share of verdicts with one of some outcomes in each of the last few steps; the first term's by default."""
        columns = [self.last(f"outcome/{term or self.first_term}/{name}") for name in names]
        return [sum(values) for values in zip(*columns, strict=True)] if all(columns) else []

    def outcome_at_start(self, *names: str, term: str | None = None) -> float:
        """The same in the first step."""
        return sum(self.start(f"outcome/{term or self.first_term}/{name}") or 0.0 for name in names)

    def correct(self) -> float | None:
        """Share of right completions in the last few steps."""
        values = self.outcome("correct")
        return statistics.fmean(values) if values else None

    @property
    def has_learned(self) -> bool:
        """The share of right completions has risen, or the reward beyond chance."""
        now = self.correct()
        risen = now is not None and now - self.outcome_at_start("correct") >= at("learned")
        return risen or self.reward_change() >= at("errors")

    @property
    def is_solved(self) -> bool:
        """The policy has learned, and nearly all completions are right."""
        now = self.correct()
        return now is not None and now >= at("solved") and self.has_learned

    def reward_change(self) -> float:
        """Reward of the last few steps minus that of the first, in standard errors of the difference."""
        values = self.last("reward/mean")
        if not values or self.steps <= at("steps"):
            return 0.0
        return _in_errors(statistics.fmean(values) - self._first["reward/mean"], _error(self._first), self._error_now())

    def _error_now(self) -> float:
        return _error_of_mean([_error(line) for line in list(self.latest)[-int(at("steps")) :]])

    @property
    def has_recovered(self) -> bool:
        """The reward is not lower than at the start, by as much as chance explains."""
        return self.reward_change() > -at("recovered")

    def reward_fall(self) -> tuple[float, float, float] | None:
        """(best, now, step of the best) where the reward has fallen from its best by more than chance and by
        `reward_fallen` of what it was above its floor; None where it has not."""
        values = self.last("reward/mean")
        if not values or not self._best:
            return None
        best, error, step = self._best
        now = statistics.fmean(values)
        fall = best - now
        floor = min(0.0, *(line["reward/mean"] for line in self.latest if "reward/mean" in line))
        far = floor >= 0 and fall >= at("reward_fallen") * best
        far = far or (floor < 0 and fall >= at("reward_fallen") * (self.start("reward/std") or math.inf))
        if fall > 0 and far and _in_errors(fall, error, self._error_now()) >= at("errors"):
            return best, now, step
        return None

    @property
    def is_constant(self) -> bool:
        """Every completion of every step seen has had the same reward."""
        spreads = [line["reward/std"] for line in self.latest if "reward/std" in line]
        means = {round(line["reward/mean"], 9) for line in self.latest if "reward/mean" in line}
        first, means_at_start = self.start("reward/std"), {round(self._first.get("reward/mean", 0.0), 9)}
        rounding = 1e-9  # rounding of a mean
        return first is not None and max([first, *spreads]) < rounding and means == means_at_start

    @property
    def zero_variance(self) -> float | None:
        """Share of the latest steps' groups whose completions all have one reward; None with too few groups."""
        groups = self.total("groups/total")
        return self.total("groups/zero_variance") / groups if groups >= at("groups") else None

    @property
    def was_flat(self) -> bool:
        """Whether the first step's groups had nothing to compare either."""
        groups = self.start("groups/total")
        return bool(groups) and (self.start("groups/zero_variance") or 0.0) / (groups or 1.0) >= at("variance_low")

    def state_dict(self) -> dict[str, Any]:
        """All that was kept."""
        return {
            "steps": self.steps, "latest": [dict(line) for line in self.latest], "first": dict(self._first),
            "best": list(self._best), "evals": [dict(evaluation) for evaluation in self.evals],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was kept."""
        self.steps, self._first, self._best = state["steps"], dict(state["first"]), list(state["best"])
        self.latest = deque((dict(line) for line in state["latest"]), maxlen=self.latest.maxlen)
        self.evals = [dict(evaluation) for evaluation in state["evals"]]


def _evaluations(numbers: Mapping[str, float]) -> dict[str, float]:
    """The first of pass@1 and avg@k of each eval set, with the ends of its interval."""
    accuracies: dict[str, float] = {}
    for key, value in numbers.items():
        match = _EVAL.fullmatch(key)
        if match is not None and match["name"] not in accuracies:
            name = match["name"]
            accuracies |= {name: value, f"{name}/low": numbers.get(f"{key}_low", value)}
            accuracies[f"{name}/high"] = numbers.get(f"{key}_high", value)
    return accuracies


def _error(line: Mapping[str, float]) -> float:
    """Standard error of a step's mean reward; with one group, as if its completions were independent."""
    alone = line.get("reward/std", 0.0) / math.sqrt(line.get("rollouts/count") or 1.0)
    return line.get("reward/se", alone)


def _error_of_mean(errors: list[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors)) / len(errors) if errors else 0.0


def _in_errors(difference: float, *errors: float) -> float:
    """A difference over the standard error of both its sides."""
    error = math.sqrt(sum(group_error**2 for group_error in errors))
    if error == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / error
