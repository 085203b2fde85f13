"""From problems to graded groups: the asynchronous half of a step, on rank 0.

| part      | consumes                | produces                  | waits for                   |
|-----------|-------------------------|---------------------------|-----------------------------|
| workflow  | a problem, the engine   | the group's rollouts      | the engine, then the pool   |
| `group`   | a problem, its journal  | the graded group          | its workflow                |
| `collect` | problems with visits    | finished groups, as a     | the first workflow to finish|
|           |                         | stream                    |                             |

Grading overlaps generation: each completion goes to the pool the moment it ends, while others are still being sampled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from rewards.combine import Term, combine
from rewards.pool import GradingPool
from rlvr.engines.protocol import Engine
from rlvr.engines.stop_strings import Decoder
from rlvr.problems.templates import Prompt, Renderer
from rlvr.records import Completion, Problem, Request, Rollout, RolloutGroup, Sampling, request_seed
from rlvr.rollout.activity import Activity
from rlvr.rollout.gate import Gate
from rlvr.rollout.journal import Graded, Journal, joined

ADMISSION_SECONDS = 1.0
"""How long `collect` holds the engine for workflows that do something else before they ask for their first token."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a completion: sampled by the policy, or put there by a workflow (a tool's output, an interruption)."""

    ids: tuple[int, ...]
    is_model: bool
    behaviour_logprobs: tuple[float, ...] = ()
    weight_version: tuple[int, ...] = ()
    text: str = ""

    @classmethod
    def sampled(cls, completion: Completion) -> Piece:
        """The text that the policy wrote."""
        return cls(completion.ids, True, completion.behaviour_logprobs, completion.weight_version, completion.text)


@dataclass(slots=True, kw_only=True)
class Session:
    """The context of a workflow: one visit of one problem."""

    problem: Problem
    visit: int
    prompt: Prompt
    group_size: int
    sampling: Sampling
    run_seed: int
    engine: Engine
    gate: Gate
    activity: Activity
    journal: Journal
    order: int
    """Place of the group in the order of drawing: older groups are let into the engine first."""
    grade: Callable[[Problem, str], Awaitable[Graded]]
    tokenizer: Decoder
    greedy: bool = False
    """True for the session of a group's greedy completion, whose requests need names of their own."""

    async def sample(self, ids: tuple[int, ...], sample_index: int, segment: int = 0) -> Completion:
        """Let the policy continue `ids`; each (sample_index, segment) has noise of its own.

        The completion may be sampled in several pieces, under weights of several versions, between which the run may
        have been stopped and resumed; the caller sees one completion.
        """
        index = -1 if self.greedy else sample_index
        place = (self.order, index, segment)
        name = f"{self.problem.id}/{self.visit}/{'greedy' if self.greedy else sample_index}/{segment}"
        parts = self.journal.pieces.setdefault(name, [])
        while True:
            so_far = joined(parts, self.sampling.stop, self.tokenizer) if parts else None
            done = () if so_far is None else so_far.ids
            remaining = self.sampling.max_new_tokens - len(done)
            if so_far is not None and (so_far.finish_reason in ("stop", "repetition") or remaining == 0):
                return so_far if remaining else _at_the_limit(so_far)
            allowed = await self.gate.enter(place, remaining)
            seed = request_seed(self.run_seed, self.problem.id, self.visit, sample_index, segment, len(done))
            with self.activity.sampling():
                part = await self.engine.generate(
                    Request(
                        id=f"{name}+{len(done)}" if done else name,
                        prompt_ids=ids + done,
                        sampling=replace(self.sampling, max_new_tokens=allowed),
                        seed=seed,
                    )
                )
                if part.ids:
                    parts.append(part)
                    self.gate.spend(place, len(part.ids))

    async def finish(
        self, sample_index: int, prompt_ids: tuple[int, ...], pieces: Sequence[Piece], last: Completion
    ) -> Rollout:
        """Grade the pieces, joined, as the completion to this session's problem; `last` says how it ended."""
        text = self.prompt.prefill + "".join(piece.text for piece in pieces)
        graded = await self._graded("greedy" if self.greedy else str(sample_index), text)
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
            verdicts=graded.verdicts,
            reward=graded.reward,
            grade_seconds=graded.seconds,
        )

    async def _graded(self, name: str, text: str) -> Graded:
        """The graders' word on `text`, from the journal if they have said it already."""
        gradings = self.journal.graded.setdefault(name, [])
        for known in gradings:
            if known.text == text:
                return known
        with self.activity.at_graders():
            graded = await self.grade(self.problem, text)
        gradings.append(graded)
        return graded


def _at_the_limit(completion: Completion) -> Completion:
    """A completion that was ended from outside just as it had all its tokens."""
    return replace(completion, finish_reason="length") if completion.finish_reason == "abort" else completion


Workflow = Callable[[Session], Awaitable[Sequence[Rollout]]]
"""What happens for one problem between prompt and verdict."""


async def completions_to_one_prompt(session: Session) -> Sequence[Rollout]:
    """The default workflow: `group_size` completions, each sampled and graded on its own."""

    async def completed(index: int) -> Rollout:
        completion = await session.sample(session.prompt.ids, index)
        return await session.finish(index, session.prompt.ids, [Piece.sampled(completion)], completion)

    return await asyncio.gather(*(completed(index) for index in range(session.group_size)))


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
        workflow: Workflow = completions_to_one_prompt,
    ) -> None:
        self._engine, self._pool, self.terms, self._renderer = engine, pool, tuple(terms), renderer
        self._run_seed, self._workflow = run_seed, workflow
        self.last_sampled = 0.0
        """When the last token of the last finished `collect` was sampled (`time.perf_counter`)."""

    async def collect(
        self, visits: Sequence[tuple[Problem, int]], *, group_size: int, sampling: Sampling, greedy: bool = False
    ) -> AsyncIterator[RolloutGroup]:
        """Groups of `group_size` rollouts, with `greedy` one at temperature 0 beside them, in the order in which they
        finish.

        Leaving the stream early cancels what is still being sampled. An error of the engine or of the machinery is
        raised here; a completion that cannot be judged is a rollout whose reward is None.
        """
        gate, activity = Gate(is_open=True), Activity()
        tasks: list[asyncio.Task[RolloutGroup]] = []
        try:
            async with self._engine.hold():
                for order, (problem, visit) in enumerate(visits):
                    group = self.group(
                        problem, visit, group_size=group_size, sampling=sampling, gate=gate, activity=activity,
                        journal=Journal(), order=order, greedy=greedy,
                    )  # fmt: skip
                    tasks.append(asyncio.create_task(group))
                await admission(gate, dict(enumerate(tasks)))
            for finished in asyncio.as_completed(tasks):
                yield await finished
            self.last_sampled = activity.last_sampled
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def group(
        self, problem: Problem, visit: int, *, group_size: int, sampling: Sampling, gate: Gate,
        activity: Activity, journal: Journal, order: int, greedy: bool = False,
    ) -> RolloutGroup:  # fmt: skip
        """One visit of one problem, from prompt to verdicts; with `greedy` the group has one more completion beside it,
        which the same workflow makes at temperature 0."""
        session = Session(
            problem=problem, visit=visit, prompt=self._renderer.render(problem), group_size=group_size,
            sampling=sampling, run_seed=self._run_seed, engine=self._engine, gate=gate, activity=activity,
            journal=journal, order=order, grade=self._grade, tokenizer=cast(Decoder, self._renderer.tokenizer),
        )  # fmt: skip
        beside = None
        if greedy:
            cold = replace(session, group_size=1, sampling=replace(sampling, temperature=0.0), greedy=True)
            beside = asyncio.create_task(self._rollouts(cold))
        try:
            rollouts = await self._rollouts(session)
            greedy_rollout = replace((await beside)[0], sample_index=-1) if beside is not None else None
        finally:
            if beside is not None:
                beside.cancel()
        return RolloutGroup(problem=problem, visit=visit, rollouts=rollouts, greedy=greedy_rollout)

    async def _rollouts(self, session: Session) -> tuple[Rollout, ...]:
        rollouts = tuple(await self._workflow(session))
        if not rollouts:
            raise ValueError(
                f"the workflow returned no rollout for problem {session.problem.id!r}: it needs at least one"
            )
        return rollouts

    async def _grade(self, problem: Problem, text: str) -> Graded:
        """Verdicts by term, the reward they add up to (None if not scored), and the seconds that took."""
        started = time.perf_counter()
        terms = [term for term in self.terms if problem.verifiers is None or term.name in problem.verifiers]
        names = list(dict.fromkeys([term.name for term in terms] + [term.gate for term in terms if term.gate]))
        graded = await asyncio.gather(*(self._pool.grade(name, text, problem.reference) for name in names))
        verdicts = dict(zip(names, graded, strict=True))
        return Graded(text, verdicts, combine(verdicts, terms), time.perf_counter() - started)


async def admission(gate: Gate, tasks: Mapping[int, asyncio.Task[RolloutGroup]]) -> None:
    """Wait until each group, by its order, has asked at the gate or is done; not for long for a workflow that does
    something else first."""
    deadline = time.monotonic() + ADMISSION_SECONDS
    while time.monotonic() < deadline:
        await asyncio.sleep(0)
        if any(task.done() and (task.cancelled() or task.exception()) for task in tasks.values()):
            return
        if all(order in gate.asked or task.done() for order, task in tasks.items()):
            return
