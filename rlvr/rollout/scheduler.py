"""Moves rollout groups from the problem that was drawn to the step that trains them; rank 0 only.

The training loop calls plain methods of `Rollouts`, which wait for those of `Scheduler` in the event loop of a thread.
A group is one visit of one problem: G rollouts. These are its states, and `Scheduler` decides on every change:

| state       | begins when                       | moved here by (call)                  | in a checkpoint           |
|-------------|-----------------------------------|---------------------------------------|---------------------------|
| drawn       | the sampler hands out the problem | `_admit` (`Buffer.add`)               | problem, visit, order     |
| waiting     | its workflow asks for tokens      | `_start` (`Gate.enter`)               | as drawn                  |
| sampling    | the gate is open                  | `_admit` (`Gate.open`)                | tokens that were returned |
| interrupted | step or budget ends               | `_stop_sampling` (`Engine.interrupt`) | tokens so far; waits      |
| grading     | a rollout has its last token      | its workflow (`Session.finish`)       | its tokens; graded again  |
| finished    | the last verdict is there         | `_finish`                             | tokens and verdicts       |
| taken       | the schedule gives it to a step   | `_finished` (`Buffer.take`)           | nothing                   |
| dropped     | it is too old, before a step      | `take` (`Buffer.drop_stale`)          | nothing                   |

Rollouts of one group are sampled and graded at the same time, so "sampling" and "grading" overlap within a group.
Tokens and verdicts are its `Journal`. A restored group starts its workflow again, which reads from the journal what it
was given before (`_wake_restored`), and so is back in the state that it was in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import Tensor

from rlvr.config import Recipe
from rlvr.config.groups import GreedyBaseline, RefillGroups
from rlvr.config.schedule import Asynchronous, OneStepAhead, Partial
from rlvr.engines.protocol import Engine
from rlvr.records import Problem, RolloutGroup, Sampling
from rlvr.rollout.activity import Activity
from rlvr.rollout.buffer import Buffer, Pending
from rlvr.rollout.collector import Collector, admission
from rlvr.rollout.gate import Gate
from rlvr.rollout.group_filter import has_enough, has_variance
from rlvr.rollout.scored import check_scored
from rlvr.rollout.waiting import Waiting


class Scheduler:
    """Decides when each group of a run is begun, stopped, taken or dropped; stateful. All calls come from one loop."""

    def __init__(
        self, recipe: Recipe, engine: Engine, collector: Collector, sampling: Sampling, problems: Sequence[Problem],
        warn: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        """`problems` are those that `take` may draw."""
        self._recipe, self._engine, self._collector, self._sampling = recipe, engine, collector, sampling
        self._schedule = recipe.rollout.schedule
        self._budget = self._schedule.tokens if isinstance(self._schedule, Partial) else None
        self._activity = Activity()
        self._gate = Gate(on_wait=self._activity.notify)
        self._busy_before = 0.0
        self.buffer = Buffer(self._schedule, recipe.rollout.prompts_per_step, problems)
        self._waiting = Waiting(self.buffer, self._activity, recipe.rollout.stall_timeout, warn)
        self.grade_wait = 0.0
        """Seconds from the last token of the last `take` to its last verdict: grading not hidden by generation."""
        self.counts: dict[str, float] = {}
        """``buffer/...`` after the last `take`."""
        self.sampling_time = 0.0
        """Seconds between the last two `take` in which at least one request was in the engine."""

    async def take(
        self,
        step: int,
        draw: Callable[[int], Sequence[tuple[Problem, int]]],
        progress: Callable[[int, int], None],
    ) -> list[RolloutGroup]:
        """See `Rollouts.take`."""
        rollout, algorithm = self._recipe.rollout, self._recipe.algorithm
        missing = wanted = rollout.prompts_per_step
        limit = wanted
        if isinstance(algorithm.filter, RefillGroups):
            limit += algorithm.filter.most_extra(wanted)
        groups: list[RolloutGroup] = []
        self._waiting.stop_watching()
        try:
            await self._wake_restored()
            dropped = self.buffer.drop_stale(step)
            self.grade_wait = 0.0
            while missing > 0:
                await self._admit(draw, self._schedule.in_flight(wanted) + missing - wanted)
                groups += await self._finished(missing, step, lambda done: progress(done, wanted), len(groups))
                if not self._activity.running:
                    self.grade_wait += max(0.0, time.perf_counter() - self._activity.last_sampled)
                check_scored(groups, self._recipe.rewards.max_unscored)
                missing = min(wanted - sum(self._can_be_trained(group) for group in groups), limit - len(groups))
            if isinstance(self._schedule, OneStepAhead):
                await self._admit(draw, wanted)
        except asyncio.CancelledError:
            raise  # the caller decides what becomes of the groups
        except BaseException:
            self.buffer.cancel()
            raise
        if self._schedule.overlaps:
            self._waiting.watch()
        else:
            await self._engine.release()
        self.counts = self.buffer.counts(step, dropped)
        busy = self._activity.busy_seconds
        self.sampling_time, self._busy_before = busy - self._busy_before, busy
        return groups

    async def _wake_restored(self) -> None:
        """Bring the groups of a checkpoint to where they were: finished, or waiting at the gate."""
        if restored := [pending for pending in self.buffer.pending if pending.task is None]:
            for pending in restored:
                self._start(pending)
            await self._waiting.until(self._is_quiet)

    def _start(self, pending: Pending) -> None:
        work = self._collector.group(
            pending.problem, pending.visit, group_size=self._recipe.rollout.group_size, sampling=self._sampling,
            gate=self._gate, activity=self._activity, journal=pending.journal, order=pending.order,
            greedy=isinstance(self._recipe.algorithm.baseline, GreedyBaseline),
        )  # fmt: skip
        pending.task = asyncio.create_task(work)
        pending.task.add_done_callback(partial(self._finish, pending))

    async def _admit(self, draw: Callable[[int], Sequence[tuple[Problem, int]]], target: int) -> None:
        """Draw until `target` groups are on their way, and let all that are not running sample."""
        version = self._engine.version
        if (missing := target - len(self.buffer.pending)) > 0:
            self.buffer.add(draw(missing), version)
        waiting = [
            pending for pending in self.buffer.pending if pending.task is None or self._gate.has_waiting(pending.order)
        ]
        if not waiting:
            return
        self._gate.asked -= {pending.order for pending in waiting if pending.task is None}
        async with self._engine.hold():
            self._gate.open(self._budget)
            for pending in waiting:
                if pending.journal.oldest() is None:
                    pending.admitted = version
                if pending.task is None:
                    self._start(pending)
            await admission(
                self._gate, {pending.order: pending.task for pending in waiting if pending.task is not None}
            )

    def _finish(self, pending: Pending, task: asyncio.Task[RolloutGroup]) -> None:
        if not task.cancelled() and task.exception() is None:
            pending.group = task.result()
        self._activity.notify()

    async def _finished(
        self, count: int, step: int, progress: Callable[[int], None], before: int
    ) -> list[RolloutGroup]:
        """`count` finished groups, as soon as the schedule allows them to be taken; then, unless it overlaps, nothing
        runs in the engine any more."""

        def can_go_on() -> bool:
            done = sum(pending.group is not None for pending in self.buffer.pending)
            progress(min(before + done, before + count))
            return self.buffer.can_take(count, step) if self._budget is None else self._is_quiet()

        await self._waiting.until(can_go_on)
        while (groups := self.buffer.take(count, step)) is None:
            async with self._engine.hold():  # every rollout has used up its budget of tokens
                self._gate.open(self._budget)
            await self._waiting.until(can_go_on)
        if not self._schedule.overlaps:
            await self._stop_sampling()
        return groups

    async def _stop_sampling(self) -> None:
        self._gate.close()
        if self._activity.running:
            await self._engine.interrupt()
            await self._waiting.until(lambda: not self._activity.running)

    def _is_quiet(self) -> bool:
        """True where each completion is finished or waits at the gate."""
        idle = not self._activity.running and not self._activity.grading
        return idle and all(self._gate.has_waiting(pending.order) for pending in self.buffer.unfinished())

    async def settle(self) -> None:
        """Finish what the schedule wants done before the weights change: under `ahead`, everything begun."""
        if isinstance(self._schedule, OneStepAhead):
            await self._waiting.until(lambda: not self.buffer.unfinished())

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine.load_weights`; under ``cache: recompute`` what is in flight starts again from its tokens."""
        again = (
            isinstance(self._schedule, Asynchronous) and self._schedule.cache == "recompute" and self._activity.running
        )
        if again:
            await self._stop_sampling()
        await self._engine.load_weights(tensors, version)
        if again:
            async with self._engine.hold():
                self._gate.open()

    def _can_be_trained(self, group: RolloutGroup) -> bool:
        algorithm = self._recipe.algorithm
        return has_enough(group, algorithm) and has_variance(group, algorithm, self._collector.terms)
