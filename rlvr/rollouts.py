"""The sampling side of a run as the loop sees it: plain calls on rank 0, an event loop in a thread behind them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import Tensor

from rewards.pool import GradingPool
from rlvr.config import EvalSet, Recipe
from rlvr.config.groups import GreedyBaseline, RefillGroups
from rlvr.evaluate import summarise
from rlvr.learn.samples import has_enough, has_variance
from rlvr.records import Problem, RepetitionStop, RolloutGroup, Sampling
from rlvr.rollout.background import Background
from rlvr.rollout.collector import Collector
from rlvr.rollout.engine import Engine
from rlvr.tasks.templates import Renderer


def repetition_stop(recipe: Recipe) -> RepetitionStop | None:
    """When the recipe ends answers that repeat themselves."""
    settings = recipe.rollout.repetition
    return None if settings is None else RepetitionStop(**settings.model_dump())


class TooManyUnscored(RuntimeError):
    """More rollouts of a step than the recipe allows could not be scored: a verifier is broken, not the policy."""


class Rollouts:
    """Engine, grading pool and collector of a run. Everything waits until it is done; `close` ends all processes."""

    def __init__(
        self, recipe: Recipe, engine: Engine, pool: GradingPool, collector: Collector, renderer: Renderer
    ) -> None:
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
        self.grade_wait = 0.0
        """Seconds from the last token of the last `fill` or `collect` to its last verdict, over its rounds: grading not
        hidden by generation."""

    def start(self) -> None:
        """Bring the engine up."""
        self._background.wait(self.engine.start())

    def fill(
        self,
        draw: Callable[[int], Sequence[tuple[Problem, int]]],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[RolloutGroup]:
        """The groups of a step: one for each of ``prompts_per_step`` problems; under ``filter: refill`` also one for
        each problem drawn because a group cannot be trained, within the filter's bound.

        How many are drawn follows from rewards alone, each time as many as groups are missing: no group is sampled for
        nothing. Raises `TooManyUnscored` when more than ``rewards.max_unscored`` of all rollouts have no reward.
        """
        recipe = self._recipe
        groups: list[RolloutGroup] = []
        waits = 0.0
        missing = wanted = recipe.rollout.prompts_per_step
        most = wanted
        if isinstance(recipe.algorithm.filter, RefillGroups):
            most += recipe.algorithm.filter.most_extra(wanted)

        def report(done: int, of: int, before: int) -> None:
            progress(before + done, before + of)

        while missing > 0:
            groups += self._round(draw(missing), partial(report, before=len(groups)))
            waits += self.grade_wait
            self._check_scored(groups)
            missing = min(wanted - sum(self._can_be_trained(group) for group in groups), most - len(groups))
        self.grade_wait = waits
        return groups

    def _can_be_trained(self, group: RolloutGroup) -> bool:
        algorithm = self._recipe.algorithm
        return has_enough(group, algorithm) and has_variance(group, algorithm, self._collector.terms)

    def collect(
        self, visits: Sequence[tuple[Problem, int]], progress: Callable[[int, int], None] = lambda done, of: None
    ) -> list[RolloutGroup]:
        """One group of graded rollouts for each visit, in the order of the visits.

        Raises `TooManyUnscored` when more than ``rewards.max_unscored`` of them have no reward.
        """
        groups = self._round(visits, progress)
        self._check_scored(groups)
        return groups

    def _round(self, visits: Sequence[tuple[Problem, int]], progress: Callable[[int, int], None]) -> list[RolloutGroup]:
        greedy = isinstance(self._recipe.algorithm.baseline, GreedyBaseline)
        groups = self.sample(visits, self._recipe.rollout.group_size, self.sampling, progress, greedy=greedy)
        self.grade_wait = time.perf_counter() - self._collector.last_sampled
        return groups

    def sample(
        self,
        visits: Sequence[tuple[Problem, int]],
        group_size: int,
        sampling: Sampling,
        progress: Callable[[int, int], None] = lambda done, of: None,
        *,
        greedy: bool = False,
    ) -> list[RolloutGroup]:
        """As `collect`, with another group size and sampling; how many may be unscored is the caller's business. With
        `greedy` each group has an answer at temperature 0 beside it."""
        return self._background.wait(self._drain(visits, group_size, sampling, progress, greedy))

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
        groups = self.sample(visits, one.samples, sampling)
        self._check_scored(groups)
        return summarise(one.name, groups, one.k), groups

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Give the engine the policy's weights; see `Engine.load_weights`."""
        self._background.wait(self.engine.load_weights(tensors, version))

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Engine.score`."""
        return self._background.wait(self.engine.score(sequences))

    def close(self) -> None:
        """End the engine, the pool and the thread; safe to call at any moment."""
        try:
            self._background.wait(self.engine.close())
        finally:
            self._pool.close()
            self._background.close()

    async def _drain(
        self,
        visits: Sequence[tuple[Problem, int]],
        group_size: int,
        sampling: Sampling,
        progress: Callable[[int, int], None],
        greedy: bool,
    ) -> list[RolloutGroup]:
        place = {(problem.id, visit): index for index, (problem, visit) in enumerate(visits)}
        groups: list[RolloutGroup] = []
        stream = self._collector.collect(visits, group_size=group_size, sampling=sampling, greedy=greedy)
        async for group in stream:
            groups.append(group)
            progress(len(groups), len(visits))
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
