"""From problems to graded groups: the asynchronous half of a step, on rank 0.

| part      | consumes                | produces                  | waits for                   |
|-----------|-------------------------|---------------------------|-----------------------------|
| workflow  | a problem, the engine   | the group's rollouts      | the engine, then the pool   |
| `collect` | problems with visits    | finished groups, as a     | the first workflow to finish|
|           |                         | stream                    |                             |

Grading overlaps generation: each answer goes to the pool the moment it ends, while others are still being sampled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from rewards import Verdict
from rewards.combine import Term, combine
from rewards.pool import GradingPool
from rlvr.records import Completion, Problem, Request, Rollout, RolloutGroup, Sampling, request_seed
from rlvr.rollout.engine import Engine
from rlvr.tasks.templates import Prompt, Renderer

ADMISSION_SECONDS = 1.0
"""How long `collect` holds the engine for workflows that do something else before they ask for their first token."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: sampled by the policy, or put there by a workflow (a tool's output, an interruption)."""

    ids: tuple[int, ...]
    is_model: bool
    behaviour_logprobs: tuple[float, ...] = ()
    weight_version: tuple[int, ...] = ()
    text: str = ""

    @classmethod
    def sampled(cls, completion: Completion) -> Piece:
        """What the policy wrote."""
        return cls(completion.ids, True, completion.behaviour_logprobs, completion.weight_version, completion.text)


@dataclass(slots=True)
class Session:
    """What a workflow works with: one visit of one problem."""

    problem: Problem
    visit: int
    prompt: Prompt
    group_size: int
    sampling: Sampling
    run_seed: int
    engine: Engine
    grade: Callable[[Problem, str], Awaitable[tuple[dict[str, Verdict], float | None, float]]]
    greedy: bool = False
    """True for the session of a group's greedy answer, whose requests need names of their own."""
    requests: int = field(default=0)
    """Sampling requests made so far."""
    last_sampled: float = 0.0
    """When the last of them ended (`time.perf_counter`)."""

    async def sample(self, ids: tuple[int, ...], sample_index: int, segment: int = 0) -> Completion:
        """Let the policy continue `ids`; each (sample_index, segment) has noise of its own."""
        seed = request_seed(self.run_seed, self.problem.id, self.visit, sample_index, segment)
        name = f"{self.problem.id}/{self.visit}/{'greedy' if self.greedy else sample_index}/{segment}"
        self.requests += 1
        completion = await self.engine.generate(Request(id=name, prompt_ids=ids, sampling=self.sampling, seed=seed))
        self.last_sampled = time.perf_counter()
        return completion

    async def finish(
        self, sample_index: int, prompt_ids: tuple[int, ...], pieces: Sequence[Piece], last: Completion
    ) -> Rollout:
        """Grade the pieces, joined, as the answer to this session's problem; `last` says how it ended."""
        text = self.prompt.prefill + "".join(piece.text for piece in pieces)
        verdicts, reward, seconds = await self.grade(self.problem, text)
        version = last.weight_version[-1] if last.weight_version else self.engine.version
        blank = {id(piece): (0.0,) * len(piece.ids) for piece in pieces}
        return Rollout(
            problem_id=self.problem.id,
            visit=self.visit,
            sample_index=sample_index,
            request_seed=request_seed(self.run_seed, self.problem.id, self.visit, sample_index),
            prompt_ids=prompt_ids,
            ids=tuple(token for piece in pieces for token in piece.ids),
            loss_mask=tuple(int(piece.is_model) for piece in pieces for _ in piece.ids),
            behaviour_logprobs=tuple(
                value
                for piece in pieces
                for value in (piece.behaviour_logprobs if piece.is_model else blank[id(piece)])
            ),
            weight_version=tuple(
                value
                for piece in pieces
                for value in (piece.weight_version if piece.is_model else (version,) * len(piece.ids))
            ),
            text=text,
            finish_reason=last.finish_reason,
            verdicts=verdicts,
            reward=reward,
            grade_seconds=seconds,
        )


Workflow = Callable[[Session], Awaitable[Sequence[Rollout]]]
"""What happens for one problem between prompt and verdict."""


async def answers_to_one_prompt(session: Session) -> Sequence[Rollout]:
    """The default workflow: `group_size` answers, each sampled and graded on its own."""

    async def answer(index: int) -> Rollout:
        completion = await session.sample(session.prompt.ids, index)
        return await session.finish(index, session.prompt.ids, [Piece.sampled(completion)], completion)

    return await asyncio.gather(*(answer(index) for index in range(session.group_size)))


class Collector:
    """Runs workflows over an engine and a grading pool and streams the finished groups."""

    def __init__(
        self,
        engine: Engine,
        pool: GradingPool,
        terms: Sequence[Term],
        renderer: Renderer,
        *,
        run_seed: int,
        workflow: Workflow = answers_to_one_prompt,
    ) -> None:
        self._engine, self._pool, self.terms, self._renderer = engine, pool, tuple(terms), renderer
        self._run_seed, self._workflow = run_seed, workflow
        self.last_sampled = 0.0
        """When the last token of the last finished `collect` was sampled (`time.perf_counter`)."""

    async def collect(
        self,
        visits: Sequence[tuple[Problem, int]],
        *,
        group_size: int,
        sampling: Sampling,
        seed_offset: int = 0,
        greedy: bool = False,
    ) -> AsyncIterator[RolloutGroup]:
        """Groups of `group_size` rollouts, in the order in which they finish; with `greedy` each has one more answer
        beside it, which the same workflow makes at temperature 0.

        Leaving the stream early cancels what is still being sampled. An error of the engine or of the machinery is
        raised here; an answer that cannot be judged is a rollout whose reward is None.
        """
        sessions = [
            Session(
                problem, visit, self._renderer.render(problem), group_size, sampling, self._run_seed + seed_offset,
                self._engine, self._grade,
            )
            for problem, visit in visits
        ]  # fmt: skip
        cold = replace(sampling, temperature=0.0)
        beside = [replace(one, group_size=1, sampling=cold, greedy=True) if greedy else None for one in sessions]
        everyone = [*sessions, *(one for one in beside if one is not None)]
        tasks: set[asyncio.Task[RolloutGroup]] = set()
        try:
            async with self._engine.hold():
                tasks = {asyncio.create_task(self._group(*pair)) for pair in zip(sessions, beside, strict=True)}
                deadline = time.monotonic() + ADMISSION_SECONDS
                while not all(one.requests for one in everyone) and time.monotonic() < deadline:
                    await asyncio.sleep(0)
                    if any(task.done() for task in tasks):
                        break
            for finished in asyncio.as_completed(tasks):
                yield await finished
            self.last_sampled = max((one.last_sampled for one in everyone), default=0.0)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _group(self, session: Session, beside: Session | None) -> RolloutGroup:
        extra = asyncio.create_task(self._rollouts(beside)) if beside is not None else None
        try:
            rollouts = await self._rollouts(session)
            greedy = replace((await extra)[0], sample_index=-1) if extra is not None else None
        finally:
            if extra is not None:
                extra.cancel()
        return RolloutGroup(problem=session.problem, visit=session.visit, rollouts=rollouts, greedy=greedy)

    async def _rollouts(self, session: Session) -> tuple[Rollout, ...]:
        rollouts = tuple(await self._workflow(session))
        if not rollouts:
            raise ValueError(
                f"the workflow returned no rollout for problem {session.problem.id!r}: it needs at least one"
            )
        return rollouts

    async def _grade(self, problem: Problem, text: str) -> tuple[dict[str, Verdict], float | None, float]:
        """Verdicts by term, the reward they add up to (None if not scored), and the seconds that took."""
        started = time.perf_counter()
        terms = [term for term in self.terms if problem.verifiers is None or term.name in problem.verifiers]
        names = list(dict.fromkeys([term.name for term in terms] + [term.gate for term in terms if term.gate]))
        found = await asyncio.gather(*(self._pool.grade(name, text, problem.reference) for name in names))
        verdicts = dict(zip(names, found, strict=True))
        return verdicts, combine(verdicts, terms), time.perf_counter() - started
