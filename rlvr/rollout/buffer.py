"""Groups on their way to the learner: drawn, sampled over one or several steps, finished but not trained yet.

A token's age is counted in weight versions: the step that makes version v + 1 trains on tokens of version v at age 0.
With a bound of k, a group whose oldest token has version v can be trained up to the step that makes version v + k + 1,
its deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlvr.config.schedule import Schedule
from rlvr.records import Problem, RolloutGroup
from rlvr.rollout.journal import Journal


@dataclass(slots=True)
class Pending:
    """One visit of one problem, from drawing to training."""

    problem: Problem
    visit: int
    order: int
    """How many groups were drawn before."""
    admitted: int
    """Version of the engine when sampling could begin: no token that is not in the journal yet is older."""
    journal: Journal = field(default_factory=Journal)
    group: RolloutGroup | None = None
    """Set when the last completion is graded."""
    task: asyncio.Task[RolloutGroup] | None = None
    since: float = field(default_factory=time.monotonic)
    """When it was drawn, or restored."""

    @property
    def oldest(self) -> int:
        """Version of its oldest token, or the oldest that its first token can have."""
        known = self.journal.oldest()
        return self.admitted if known is None else min(known, self.admitted)

    def __str__(self) -> str:
        state = "finished" if self.group is not None else f"{self.journal.tokens()} tokens so far"
        return f"{self.problem.id} (visit {self.visit}, {state}, {time.monotonic() - self.since:.0f} s)"


class Buffer:
    """The pending groups in the order of drawing; stateful."""

    def __init__(self, schedule: Schedule, prompts: int, problems: Iterable[Problem]) -> None:
        """`prompts` are the groups that the learner takes a step; `problems` all that can be drawn."""
        self._schedule, self._prompts = schedule, prompts
        self._problems: Mapping[str, Problem] = {problem.id: problem for problem in problems}
        self._drawn = 0
        self.pending: list[Pending] = []

    def add(self, visits: Sequence[tuple[Problem, int]], version: int) -> None:
        """Problems that were just drawn, to be sampled from weights of `version` on."""
        for problem, visit in visits:
            self.pending.append(Pending(problem, visit, self._drawn, version))
            self._drawn += 1

    def unfinished(self) -> list[Pending]:
        """Groups whose completions are not all there."""
        return [pending for pending in self.pending if pending.group is None]

    def take(self, count: int, step: int) -> list[RolloutGroup] | None:
        """The `count` finished groups that are to be trained at `step`, in the order of drawing, which then leave the
        buffer; None where `can_take` says no."""
        chosen = self._choose(count, step)
        if chosen is None:
            return None
        orders = {pending.order for pending in chosen}
        self.pending = [pending for pending in self.pending if pending.order not in orders]
        chosen.sort(key=lambda pending: pending.order)
        return [pending.group for pending in chosen if pending.group is not None]

    def can_take(self, count: int, step: int) -> bool:
        """False where the learner has to wait: fewer than `count` groups are finished, or under ``on_stale: wait``
        those that would be left could not all be trained before their deadlines, ``prompts`` of them a step."""
        return self._choose(count, step) is not None

    def _choose(self, count: int, step: int) -> list[Pending] | None:
        finished = [pending for pending in self.pending if pending.group is not None]
        if len(finished) < count:
            return None
        if self._schedule.stale_policy == "wait":
            finished.sort(key=self._deadline)  # stable: the earliest drawn first among equals
        chosen = finished[:count]
        if self._schedule.stale_policy == "wait":
            orders = {pending.order for pending in chosen}
            deadlines = sorted(self._deadline(pending) for pending in self.pending if pending.order not in orders)
            if any(deadline < step + 1 + i // self._prompts for i, deadline in enumerate(deadlines)):
                return None
        return chosen

    def drop_stale(self, step: int) -> list[Pending]:
        """Throw away the groups from which `step` may not learn any more; none under ``on_stale: wait``.

        ``drop``: a token is past the bound. ``mask``: the group is finished and all its tokens are.
        """
        bound, dropped = self._schedule.bound, []
        for pending in self.pending:
            if self._schedule.stale_policy == "drop":
                is_stale = step - 1 - pending.oldest > bound
            else:
                newest = [max(rollout.weight_version, default=pending.oldest) for rollout in _rollouts(pending)]
                is_stale = bool(newest) and step - 1 - max(newest) > bound
            if is_stale and self._schedule.stale_policy != "wait":
                dropped.append(pending)
        gone = {pending.order for pending in dropped}
        self.pending = [pending for pending in self.pending if pending.order not in gone]
        for pending in dropped:
            if pending.task is not None:
                pending.task.cancel()
        return dropped

    def counts(self, step: int, dropped: Sequence[Pending]) -> dict[str, float]:
        """``buffer/...``: what `step` left here, and what it found too old."""
        ages = [step - 1 - pending.oldest for pending in self.pending]
        return {
            "buffer/unfinished": float(len(self.unfinished())),
            "buffer/finished": float(len(self.pending) - len(self.unfinished())),
            "buffer/tokens": float(sum(pending.journal.tokens() for pending in self.pending)),
            "buffer/oldest": float(max(ages, default=0)),
            "buffer/dropped_stale": float(len(dropped)),
            "tokens/dropped": float(sum(pending.journal.tokens() for pending in dropped)),
        }

    def cancel(self) -> None:
        """Stop all work; what the journals hold stays."""
        for pending in self.pending:
            if pending.task is not None:
                pending.task.cancel()
                pending.task = None

    def _deadline(self, pending: Pending) -> int:
        return pending.oldest + self._schedule.bound + 1

    def state_dict(self) -> dict[str, Any]:
        """The journal of each pending group; finished groups are rebuilt from it."""
        groups = [
            {
                "problem": pending.problem.id,
                "visit": pending.visit,
                "order": pending.order,
                "admitted": pending.admitted,
            }
            | pending.journal.state_dict()
            for pending in self.pending
        ]
        return {"drawn": self._drawn, "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hold what the state held, with nothing running. Raises `ValueError` for a problem that is not there."""
        unknown = [group["problem"] for group in state["groups"] if group["problem"] not in self._problems]
        if unknown:
            raise ValueError(
                f"the checkpoint holds {len(unknown)} unfinished groups of problems that the data no longer have: "
                f"{', '.join(unknown[:5])}; restore problems.train"
            )
        self.cancel()
        self._drawn = state["drawn"]
        self.pending = [
            Pending(
                self._problems[group["problem"]],
                group["visit"],
                group["order"],
                group["admitted"],
                Journal.from_state(group),
            )
            for group in state["groups"]
        ]


def _rollouts(pending: Pending) -> Iterable[Any]:
    return () if pending.group is None else pending.group.rollouts
