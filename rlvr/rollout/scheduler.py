"""Moves rollout groups from the problem that was drawn to the step that trains them; rank 0 only.

The training loop calls plain methods of `Rollouts`; behind them an event loop runs in a thread of its own. A group is
one visit of one problem: G rollouts. These are its states, and this module decides on every change:

| state       | begins when                       | moved here by (call)                  | in a checkpoint           |
|-------------|-----------------------------------|---------------------------------------|---------------------------|
| drawn       | the sampler hands out the problem | `_admit` (`Buffer.add`)               | problem, visit, order     |
| waiting     | its workflow asks for tokens      | `_start` (`Gate.enter`)               | as drawn                  |
| sampling    | the gate is open                  | `_admit` (`Gate.open`)                | tokens that were returned |
| interrupted | step or budget ends               | `_stop_sampling` (`Engine.interrupt`) | tokens so far; waits      |
| grading     | a rollout has its last token      | its workflow (`Session.finish`)       | its tokens; graded again  |
| finished    | the last verdict is there         | `_finish`                             | tokens and verdicts       |
| taken       | the schedule gives it to a step   | `_finished` (`Buffer.take`)           | nothing                   |
| dropped     | it is too old, before a step      | `_take` (`Buffer.drop_stale`)         | nothing                   |

Rollouts of one group are sampled and graded at the same time, so "sampling" and "grading" overlap within a group.
Tokens and verdicts are its `Journal`. A restored group starts its workflow again, which reads from the journal what it
was given before (`_wake_restored`), and so is back in the state that it was in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from rewards.pool import GradingPool
from rlvr.config import EvalSet, Recipe
from rlvr.config.groups import GreedyBaseline, RefillGroups
from rlvr.config.schedule import Asynchronous, OneStepAhead, Partial
from rlvr.engines.protocol import Engine
from rlvr.errors import RlvrError
from rlvr.problems.templates import Renderer
from rlvr.records import Problem, RepetitionStop, RolloutGroup, Sampling
from rlvr.rollout.activity import Activity
from rlvr.rollout.background import Background
from rlvr.rollout.buffer import Buffer, Pending
from rlvr.rollout.collector import Collector, admission
from rlvr.rollout.evaluate import summarise
from rlvr.rollout.gate import Gate
from rlvr.rollout.group_filter import has_enough, has_variance

T = TypeVar("T")

WARNINGS = 10
"""How often the wait for something that does not come is told before it ends."""


def repetition_stop(recipe: Recipe) -> RepetitionStop | None:
    """When the recipe ends completions that repeat themselves."""
    settings = recipe.rollout.repetition
    return None if settings is None else RepetitionStop(**settings.model_dump())


class TooManyUnscored(RlvrError, RuntimeError):
    """More rollouts of a step than the recipe allows could not be scored: a verifier is broken, not the policy."""


class Stalled(RlvrError, RuntimeError):
    """Engine and graders have ended nothing for ``rollout.stall_timeout`` seconds; the message says what waits."""


class Rollouts:
    """Engine, grading pool, collector and buffer of a run; stateful. Everything waits until it is done, but for
    sampling in a schedule that overlaps; `close` ends all processes."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        pool: GradingPool,
        collector: Collector,
        renderer: Renderer,
        problems: Sequence[Problem],
        warn: Callable[[str, str], None] = lambda name, message: None,
    ) -> None:
        """`problems` are those that `take` may draw."""
        self._recipe, self._pool, self._collector, self._renderer = recipe, pool, collector, renderer
        self._warn = warn
        self.engine = engine
        self._background = Background()
        self._schedule = recipe.rollout.schedule
        self._budget = self._schedule.tokens if isinstance(self._schedule, Partial) else None
        self._activity = Activity()
        self._gate = Gate(on_wait=self._activity.notify)
        self._watcher: asyncio.Task[None] | None = None
        self._busy_before = 0.0
        self.buffer = Buffer(self._schedule, recipe.rollout.prompts_per_step, problems)
        self.sampling = Sampling(
            max_new_tokens=recipe.rollout.max_new_tokens,
            temperature=recipe.rollout.temperature,
            top_p=recipe.rollout.top_p,
            top_k=recipe.rollout.top_k,
            min_p=recipe.rollout.min_p,
            stop=renderer.stop,
            stop_token_ids=renderer.stop_token_ids,
            repetition=repetition_stop(recipe),
        )
        self.grade_wait = 0.0
        """Seconds from the last token of the last `take` to its last verdict: grading not hidden by generation."""
        self.counts: dict[str, float] = {}
        """``buffer/...`` after the last `take`."""
        self.sampling_time = 0.0
        """Seconds between the last two `take` in which at least one request was in the engine."""

    def start(self) -> None:
        """Bring the engine up."""
        self._background.wait(self.engine.start())

    def take(
        self,
        step: int,
        draw: Callable[[int], Sequence[tuple[Problem, int]]],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[RolloutGroup]:
        """The groups that `step` trains, in the order of drawing: ``prompts_per_step``, and under ``filter: refill``
        as many more as could not be trained, within the filter's bound.

        Problems are drawn until `Schedule.in_flight` are on their way. Raises `TooManyUnscored` when more than
        ``rewards.max_unscored`` of all rollouts have no reward, `Stalled` when nothing moves any more.
        """
        return self._background.wait(self._take(step, draw, progress))

    async def _take(
        self,
        step: int,
        draw: Callable[[int], Sequence[tuple[Problem, int]]],
        progress: Callable[[int, int], None],
    ) -> list[RolloutGroup]:
        rollout, algorithm = self._recipe.rollout, self._recipe.algorithm
        missing = wanted = rollout.prompts_per_step
        most = wanted
        if isinstance(algorithm.filter, RefillGroups):
            most += algorithm.filter.most_extra(wanted)
        groups: list[RolloutGroup] = []
        self._stop_watching()
        try:
            await self._wake_restored()
            dropped = self.buffer.drop_stale(step)
            self.grade_wait = 0.0
            while missing > 0:
                await self._admit(draw, self._schedule.in_flight(wanted) + missing - wanted)
                groups += await self._finished(missing, step, lambda done: progress(done, wanted), len(groups))
                if not self._activity.running:
                    self.grade_wait += max(0.0, time.perf_counter() - self._activity.last_sampled)
                self._check_scored(groups)
                missing = min(wanted - sum(self._can_be_trained(group) for group in groups), most - len(groups))
            if isinstance(self._schedule, OneStepAhead):
                await self._admit(draw, wanted)
        except asyncio.CancelledError:
            raise  # the caller decides what becomes of the groups
        except BaseException:
            self.buffer.cancel()
            raise
        if not self._schedule.overlaps:
            await self.engine.release()
        self._watch()
        self.counts = self.buffer.counts(step, dropped)
        busy = self._activity.busy_seconds
        self.sampling_time, self._busy_before = busy - self._busy_before, busy
        return groups

    async def _wake_restored(self) -> None:
        """Bring the groups of a checkpoint to where they were: finished, or waiting at the gate."""
        if restored := [one for one in self.buffer.pending if one.task is None]:
            for one in restored:
                self._start(one)
            await self._until(self._is_quiet)

    def _start(self, one: Pending) -> None:
        work = self._collector.group(
            one.problem, one.visit, group_size=self._recipe.rollout.group_size, sampling=self.sampling,
            gate=self._gate, activity=self._activity, journal=one.journal, order=one.order,
            greedy=isinstance(self._recipe.algorithm.baseline, GreedyBaseline),
        )  # fmt: skip
        one.task = asyncio.create_task(work)
        one.task.add_done_callback(partial(self._finish, one))

    async def _admit(self, draw: Callable[[int], Sequence[tuple[Problem, int]]], target: int) -> None:
        """Draw until `target` groups are on their way, and let all that are not running sample."""
        version = self.engine.version
        if (missing := target - len(self.buffer.pending)) > 0:
            self.buffer.add(draw(missing), version)
        waiting = [one for one in self.buffer.pending if one.task is None or self._gate.has_waiting(one.order)]
        if not waiting:
            return
        self._gate.asked -= {one.order for one in waiting if one.task is None}
        async with self.engine.hold():
            self._gate.open(self._budget)
            for one in waiting:
                if one.journal.oldest() is None:
                    one.admitted = version
                if one.task is None:
                    self._start(one)
            await admission(self._gate, {one.order: one.task for one in waiting if one.task is not None})

    def _finish(self, one: Pending, task: asyncio.Task[RolloutGroup]) -> None:
        if not task.cancelled() and task.exception() is None:
            one.group = task.result()
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

        await self._until(can_go_on)
        while (groups := self.buffer.take(count, step)) is None:
            async with self.engine.hold():  # every rollout has used up its budget of tokens
                self._gate.open(self._budget)
            await self._until(can_go_on)
        if not self._schedule.overlaps:
            await self._stop_sampling()
        return groups

    async def _stop_sampling(self) -> None:
        self._gate.close()
        if self._activity.running:
            await self.engine.interrupt()
            await self._until(lambda: not self._activity.running)

    def _is_quiet(self) -> bool:
        """True where each completion is finished or waits at the gate."""
        idle = not self._activity.running and not self._activity.grading
        return idle and all(self._gate.has_waiting(one.order) for one in self.buffer.unfinished())

    async def _until(self, ready: Callable[[], bool]) -> None:
        """Wait for `ready`, which is asked after each change; says so when nothing changes for long."""
        timeout = self._recipe.rollout.stall_timeout
        while True:
            for one in self.buffer.pending:
                if one.task is not None and one.task.done() and one.group is None:
                    one.task.result()  # raises what ended it
            if ready():
                return
            if not await self._activity.changed(timeout / WARNINGS):
                pending = [str(one) for one in self.buffer.unfinished()]
                silent = time.monotonic() - self._activity.last_change
                text = (
                    f"no completion has ended for {silent:.0f} s; {self._activity.running} requests are in the engine, "
                    f"{self._activity.grading} completions at the graders, and these groups wait: "
                    f"{', '.join(pending[:8])}" + (f" and {len(pending) - 8} more" if len(pending) > 8 else "")
                )
                if silent >= timeout:
                    raise Stalled(f"{text}; rollout.stall_timeout = {timeout:g} s allows no more")
                self._warn("rollouts_stalled", text)

    def settle(self) -> None:
        """What the schedule finishes before the weights change: one step ahead, all that was begun."""
        if isinstance(self._schedule, OneStepAhead):
            self._background.wait(self._until(lambda: not self.buffer.unfinished()))

    def _watch(self) -> None:
        """While the learner computes, say so when all completions wait for it."""
        if self._schedule.overlaps:
            self._watcher = asyncio.create_task(self._tell_blocked())

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _tell_blocked(self) -> None:
        interval = self._recipe.rollout.stall_timeout / WARNINGS
        idle = 0.0
        while True:
            idle = 0.0 if await self._activity.changed(interval) or self.buffer.unfinished() else idle + interval
            if idle:
                names = ", ".join(str(one) for one in self.buffer.pending[:8])
                self._warn(
                    "rollouts_blocked",
                    f"the engine has been idle for {idle:.0f} s: {len(self.buffer.pending)} finished groups wait for "
                    f"the learner, and rollout.schedule allows no more to be begun: {names}",
                )

    def _can_be_trained(self, group: RolloutGroup) -> bool:
        algorithm = self._recipe.algorithm
        return has_enough(group, algorithm) and has_variance(group, algorithm, self._collector.terms)

    def sample(
        self, visits: Sequence[tuple[Problem, int]], group_size: int, sampling: Sampling, greedy: bool = False
    ) -> list[RolloutGroup]:
        """One group of graded rollouts for each visit, in the order of the visits, whatever the schedule, with `greedy`
        one at temperature 0 beside it; how many may be unscored is the caller's business."""
        return self._background.wait(self._drain(visits, group_size, sampling, greedy))

    def evaluate(self, one: EvalSet, problems: Sequence[Problem]) -> tuple[dict[str, float], list[RolloutGroup]]:
        """``eval/NAME/...`` and the rollouts behind it. Requests have the same seeds each time, so that two
        evaluations differ by their weights and not by their luck."""
        sampling = Sampling(
            max_new_tokens=one.max_new_tokens or self._recipe.rollout.max_new_tokens,
            temperature=one.temperature,
            top_p=one.top_p,
            stop=self._renderer.stop,
            stop_token_ids=self._renderer.stop_token_ids,
        )
        visits = [(problem, 0) for problem in problems]
        groups = self.sample(visits, one.samples, sampling, greedy=one.greedy and one.temperature > 0.0)
        self._check_scored(groups)
        return summarise(one.name, groups, one.k), groups

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Give the engine the policy's weights; see `Engine.load_weights`."""
        self._background.wait(self._load_weights(tensors, version))

    async def _load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        again = (
            isinstance(self._schedule, Asynchronous) and self._schedule.cache == "recompute" and self._activity.running
        )
        if again:
            await self._stop_sampling()
        await self.engine.load_weights(tensors, version)
        if again:
            async with self.engine.hold():
                self._gate.open()

    def state_dict(self) -> dict[str, Any]:
        """The groups that are on their way."""
        return self._background.wait(self._on_loop(self.buffer.state_dict))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the groups that were on their way."""
        self._background.wait(self._on_loop(partial(self.buffer.load_state_dict, state)))

    async def _on_loop(self, call: Callable[[], T]) -> T:
        """Between two moves of what runs there."""
        return call()

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Engine.logprobs`."""
        return self._background.wait(self.engine.logprobs(sequences))

    def close(self) -> None:
        """End the engine, the pool and the thread; safe to call at any moment."""
        try:
            self._background.wait(self.engine.close())
        finally:
            self._pool.close()
            self._background.close()

    async def _drain(
        self, visits: Sequence[tuple[Problem, int]], group_size: int, sampling: Sampling, greedy: bool
    ) -> list[RolloutGroup]:
        place = {(problem.id, visit): index for index, (problem, visit) in enumerate(visits)}
        stream = self._collector.collect(visits, group_size=group_size, sampling=sampling, greedy=greedy)
        groups = [group async for group in stream]
        return sorted(groups, key=lambda group: place[group.problem.id, group.visit])

    def _check_scored(self, groups: Sequence[RolloutGroup]) -> None:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        unscored = [rollout for rollout in rollouts if rollout.reward is None]
        allowed = self._recipe.rewards.max_unscored
        if len(unscored) > allowed * len(rollouts):
            verdicts = next(iter(unscored)).verdicts.items()
            name, verdict = next((name, one) for name, one in verdicts if not one.outcome.is_scored)
            raise TooManyUnscored(
                f"{len(unscored)} of {len(rollouts)} rollouts could not be scored, rewards.max_unscored allows "
                f"{allowed:.0%}; the first is {unscored[0].problem_id!r}, where term {name!r} said {verdict.outcome}:\n"
                f"{verdict.detail.get('error', dict(verdict.detail))}"
            )
