"""The sampling side of a run for the training loop: blocking methods over an event loop in its own thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from rewards.pool import GradingPool
from rlvr.config import EvalSet, Recipe
from rlvr.engines.protocol import Engine
from rlvr.problems.templates import Renderer
from rlvr.records import Problem, RepetitionStop, RolloutGroup, Sampling
from rlvr.rollout.background import Background
from rlvr.rollout.collector import Collector
from rlvr.rollout.evaluate import summarise
from rlvr.rollout.scheduler import Scheduler
from rlvr.rollout.scored import check_scored

T = TypeVar("T")


def repetition_stop(recipe: Recipe) -> RepetitionStop | None:
    """When the recipe ends completions that repeat themselves."""
    settings = recipe.rollout.repetition
    return None if settings is None else RepetitionStop(**settings.model_dump())


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
        self.engine = engine
        self._background = Background()
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
        self.scheduler = Scheduler(recipe, engine, collector, self.sampling, problems, warn)
        """Which groups are on their way; its methods belong to the loop of the thread."""

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
        return self._background.wait(self.scheduler.take(step, draw, progress))

    def settle(self) -> None:
        """See `Scheduler.settle`."""
        self._background.wait(self.scheduler.settle())

    def sample(
        self, visits: Sequence[tuple[Problem, int]], group_size: int, sampling: Sampling, greedy: bool = False
    ) -> list[RolloutGroup]:
        """One group of graded rollouts for each visit, in the order of the visits, whatever the schedule, with `greedy`
        one at temperature 0 beside it; how many may be unscored is the caller's business."""
        return self._background.wait(self._drain(visits, group_size, sampling, greedy))

    def evaluate(self, eval_set: EvalSet, problems: Sequence[Problem]) -> tuple[dict[str, float], list[RolloutGroup]]:
        """``eval/NAME/...`` and the rollouts behind it. Requests have the same seeds each time, so that two
        evaluations differ by their weights and not by their luck."""
        sampling = Sampling(
            max_new_tokens=eval_set.max_new_tokens or self._recipe.rollout.max_new_tokens,
            temperature=eval_set.temperature,
            top_p=eval_set.top_p,
            stop=self._renderer.stop,
            stop_token_ids=self._renderer.stop_token_ids,
        )
        visits = [(problem, 0) for problem in problems]
        groups = self.sample(visits, eval_set.samples, sampling, greedy=eval_set.greedy and eval_set.temperature > 0.0)
        check_scored(groups, self._recipe.rewards.max_unscored)
        return summarise(eval_set.name, groups, eval_set.k), groups

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Give the engine the policy's weights; see `Engine.load_weights`."""
        self._background.wait(self.scheduler.load_weights(tensors, version))

    def state_dict(self) -> dict[str, Any]:
        """The groups that are on their way."""
        return self._background.wait(self._on_loop(self.scheduler.buffer.state_dict))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the groups that were on their way."""
        self._background.wait(self._on_loop(partial(self.scheduler.buffer.load_state_dict, state)))

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
