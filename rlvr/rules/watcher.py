"""A metric rule with the function that decides, and helpers that several of them share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvr.rules.finding import Finding, Grade
from rlvr.rules.history import History
from rlvr.rules.rule import Rule
from rlvr.runlog.glossary import find
from rlvr.runlog.thresholds import at

Look = Callable[[History, Rule], Finding | None]

IN_A_ROW = f"{at('steps'):g} steps in a row"
LATEST = f"the last {at('window'):g} steps"

FLAT = (
    "always_right", "all_wrong", "constant_reward", "no_variance", "entropy_gone", "no_progress", "solved",
    "gradient_zero",
)  # fmt: skip
"""What a cause before the update leads to: a reward without differences, and an update without a gradient."""
DAMAGE = (
    "length_exploding", "length_collapsing", "all_truncated", "often_truncated", "no_answer", "entropy_exploding",
    "gradient_exploding", "clip_share", "reward_collapsed", "dead_term", "mismatch_growing",
)  # fmt: skip
"""What a policy shows that its updates have wrecked."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """A rule, what decides whether it fires, and which others follow from it."""

    rule: Rule
    look: Look
    explains: frozenset[str]
    """Names of rules that are not worth acting on where this one has fired."""

    def __call__(self, history: History) -> Finding | None:
        """The rule's finding, if it fires; pure. Metrics that the run lacks are left out of the evidence."""
        finding = self.look(history, self.rule)
        return finding and dataclasses.replace(finding, evidence=tuple(filter(None, finding.evidence)))


def watcher(
    name: str, grade: Grade, fires: str, advice: str, *, explains: Sequence[str] = ()
) -> Callable[[Look], Watcher]:
    """Make a function the code of a rule."""
    rule = Rule(name=name, grade=grade, fires=fires, advice=advice)
    return lambda look: Watcher(rule, look, frozenset(explains) - {name})


def healthy(key: str) -> tuple[float, float]:
    """Healthy range of a metric in the glossary, infinite where it has no bound."""
    metric = find(key)
    low, high = (metric.healthy if metric is not None else None) or (None, None)
    return (-float("inf") if low is None else low), (float("inf") if high is None else high)
