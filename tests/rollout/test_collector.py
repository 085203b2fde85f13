"""The collector over scripted and real engines, with real grading processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from transformers import AutoTokenizer

from rewards import Outcome
from rewards.combine import Term
from rewards.pool import GradingPool, VerifierSpec
from rlvr.config import Recipe, Template
from rlvr.engines.hf import HfEngine
from rlvr.engines.protocol import EngineError
from rlvr.engines.vllm.engine import VllmEngine
from rlvr.problems.templates import Renderer
from rlvr.records import Completion, Problem, Request, Rollout, RolloutGroup, Sampling, request_seed
from rlvr.rollout.background import Background
from rlvr.rollout.collector import Collector, Piece, Session, completions_to_one_prompt
from rlvr.rollout.rollouts import Rollouts
from rlvr.rollout.scored import TooManyUnscored
from tests.builders import recipe_data
from tests.runs import nothing_left_behind

T = TypeVar("T")
Speak = Callable[[Request], Awaitable[str]]

SAMPLING = Sampling(max_new_tokens=8, stop_token_ids=(2,))
LETTERS = "abcdefgh"


class Scripted:
    """An engine that says what the test tells it to; one character a token, each at a log-probability of -0.5."""

    version, model_len = 3, 256

    def __init__(self, speak: Speak) -> None:
        self.speak, self.holds, self.running = speak, 0, 0
        self.admitted_held: list[bool] = []
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> Completion:
        self.requests.append(request)
        self.admitted_held.append(self.holds > 0)
        self.running += 1
        try:
            text = await self.speak(request)
        finally:
            self.running -= 1
        ids = (*map(ord, text), 2)
        return Completion(ids=ids, behaviour_logprobs=(-0.5,) * len(ids), weight_version=(3,) * len(ids), text=text,
                          finish_reason="stop")  # fmt: skip

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        self.holds += 1
        try:
            yield
        finally:
            self.holds -= 1

    async def start(self) -> None: ...

    def measured(self) -> dict[str, float]:
        return {}

    async def release(self) -> None: ...

    async def interrupt(self) -> None:
        raise NotImplementedError

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        raise NotImplementedError

    async def load_weights(self, tensors: Any, version: int) -> None:
        raise NotImplementedError

    async def close(self) -> None: ...


async def echo(request: Request) -> str:
    """The request's own name."""
    return request.id


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    """Two graders that obey what they read, and one for words."""
    specs = {
        "obey": VerifierSpec("tests.rewards.pool_verifiers:Naughty"),
        "words": VerifierSpec("tests.rollout.collector_verifiers:Words"),
        "slow": VerifierSpec("tests.rewards.pool_verifiers:Slow"),
    }
    with GradingPool(specs, workers=1, timeout=5.0) as pool:
        yield pool


@pytest.fixture
def renderer(tiny_tied: Path) -> Renderer:
    return Renderer(Template(type="none"), AutoTokenizer.from_pretrained(tiny_tied))


def problem(name: str, reference: str = "x", verifiers: tuple[str, ...] | None = None) -> Problem:
    return Problem(id=name, prompt=f"say {name}", reference=reference, key=name, verifiers=verifiers)


def problems(count: int) -> list[tuple[Problem, int]]:
    return [(problem(letter), 0) for letter in LETTERS[:count]]


def collect(
    collector: Collector, visits: Sequence[tuple[Problem, int]], group_size: int = 2, sampling: Sampling = SAMPLING
) -> list[RolloutGroup]:
    """All groups in the order in which they finish, in a loop of their own."""

    async def drain() -> list[RolloutGroup]:
        return [group async for group in collector.collect(visits, group_size=group_size, sampling=sampling)]

    return run(drain())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Fails instead of hanging, and if a task is left."""

    async def watched() -> T:
        result = await asyncio.wait_for(work, 60)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(watched())


def make(
    speak: Speak, pool: GradingPool, renderer: Renderer, terms: Sequence[Term] = (Term("words"),), **options: Any
) -> tuple[Collector, Scripted]:
    engine = Scripted(speak)
    return Collector(engine, pool, terms, renderer, run_seed=0, **options), engine


# -------------------------------------------------------------------------------------------------------------- order


def backwards(request: Request) -> float:
    """Seconds by which the last problem finishes first."""
    return 0.05 * (8 - LETTERS.index(request.id[0]))


@pytest.mark.slow
def test_groups_stream_as_they_finish_and_the_loop_gets_them_in_its_own_order(
    pool: GradingPool, renderer: Renderer
) -> None:
    """The stream is in finishing order; `Rollouts.take` gives the order of drawing, whatever finished first, and
    the completions of a group stand in the order of their index."""

    async def late(request: Request) -> str:
        await asyncio.sleep(backwards(request) - 0.01 * int(request.id.split("/")[2]))
        return request.id

    collector, engine = make(late, pool, renderer)
    assert [group.problem.id for group in collect(collector, problems(4))] == ["d", "c", "b", "a"]
    rollouts = Rollouts(make_recipe(4), engine, pool, collector, renderer, [])
    try:
        seen: list[tuple[int, int]] = []
        groups = rollouts.take(4, problems, lambda done, of: seen.append((done, of)))
    finally:
        rollouts._background.close()
    assert [group.problem.id for group in groups] == ["a", "b", "c", "d"]
    assert [[one.text for one in group.rollouts] for group in groups] == [
        [f"{letter}/0/{index}/0" for index in range(4)] for letter in "abcd"
    ]
    assert sorted(set(seen)) == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen == sorted(seen)


def make_recipe(prompts: int = 1, **rewards: Any) -> Recipe:
    data = recipe_data()
    data["rollout"]["prompts_per_step"] = prompts
    data["rewards"] |= rewards
    return Recipe.model_validate(data)


def test_one_problem_twice_in_a_batch_is_two_visits(pool: GradingPool, renderer: Renderer) -> None:
    """Each visit is a group of its own with noise of its own; seeds are hashes of what names the request."""
    collector, engine = make(echo, pool, renderer)
    one = problem("a")
    groups = collect(collector, [(one, 0), (one, 1)])
    assert sorted(group.visit for group in groups) == [0, 1]
    assert len({request.seed for request in engine.requests}) == 4
    for group in groups:
        for index, rollout in enumerate(group.rollouts):
            assert rollout.request_seed == request_seed(0, "a", group.visit, index)


def test_the_whole_step_is_admitted_before_the_first_token(pool: GradingPool, renderer: Renderer) -> None:
    """The engine is held while all workflows make their first requests: batches do not depend on timing."""
    collector, engine = make(echo, pool, renderer)
    collect(collector, problems(8), group_size=4)
    assert engine.admitted_held == [True] * 32


@pytest.mark.slow
def test_a_workflow_that_waits_for_something_else_first_does_not_stop_the_others(
    pool: GradingPool, renderer: Renderer
) -> None:
    """The engine is held for a second at most."""

    async def workflow(session: Session) -> Sequence[Rollout]:
        if session.problem.id == "a":
            await asyncio.sleep(1.5)
        return await completions_to_one_prompt(session)

    collector, engine = make(echo, pool, renderer, workflow=workflow)
    started = time.monotonic()
    collect(collector, problems(2), group_size=1)
    assert engine.admitted_held == [True, False]
    assert time.monotonic() - started < 30


# ------------------------------------------------------------------------------------------------------------ overlap


def test_grading_overlaps_generation(pool: GradingPool, renderer: Renderer) -> None:
    """Completions are graded while others are sampled: the last completion is given only after the first ones'
    verdicts."""
    before = pool.stats().graded

    async def speak(request: Request) -> str:
        if request.id.startswith("b"):
            while pool.stats().graded < before + 3:
                await asyncio.sleep(0.005)
        return "x"

    async def speak_first(request: Request) -> str:
        if request.id == "a/0/3/0":
            await asyncio.sleep(0.05)
        return await speak(request)

    collector, _ = make(speak_first, pool, renderer)
    groups = collect(collector, problems(2), group_size=4)
    assert {rollout.reward for group in groups for rollout in group.rollouts} == {1.0}


@pytest.mark.slow
def test_the_wait_for_graders_is_measured_from_the_last_token(pool: GradingPool, renderer: Renderer) -> None:
    """A grader of 0.4 s a completion, one process: four completions given at once wait for about 1.6 s."""
    collector, engine = make(echo, pool, renderer, terms=[Term("slow")])
    rollouts = Rollouts(make_recipe(), engine, pool, collector, renderer, [])
    try:
        rollouts.take(4, problems)
    finally:
        rollouts._background.close()
    assert 1.2 < rollouts.scheduler.grade_wait < 30


# ------------------------------------------------------------------------------------------------------------- ending


def test_leaving_the_stream_cancels_what_is_still_sampled(pool: GradingPool, renderer: Renderer) -> None:
    async def speak(request: Request) -> str:
        if not request.id.startswith("a"):
            await asyncio.sleep(3600)
        return "x"

    collector, engine = make(speak, pool, renderer)

    async def first() -> RolloutGroup:
        stream = collector.collect(problems(4), group_size=2, sampling=SAMPLING)
        async for group in stream:
            assert engine.running == 6
            await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
            return group
        raise AssertionError("the stream was empty")

    assert run(first()).problem.id == "a"
    assert engine.running == 0


def test_an_interrupt_of_the_waiting_thread_cancels_the_work_in_the_other(
    pool: GradingPool, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches the main thread, which waits for the loop's: what it waited for ends there."""
    started = asyncio.Event()

    async def speak(request: Request) -> str:
        started.set()
        await asyncio.sleep(3600)
        return "never"

    collector, engine = make(speak, pool, renderer)
    with nothing_left_behind():
        background = Background()
        work = background.start(started.wait())

        class Interrupted:
            """The future whose waiting is interrupted once requests are running."""

            def __init__(self, future: Any) -> None:
                self.future = future

            def result(self) -> None:
                work.result(timeout=30)
                raise KeyboardInterrupt

            def cancel(self) -> None:
                self.future.cancel()

        start = background.start
        monkeypatch.setattr(background, "start", lambda coroutine: Interrupted(start(coroutine)))
        with pytest.raises(KeyboardInterrupt):
            background.wait(_drain(collector))
        monkeypatch.undo()
        background.wait(_until(lambda: engine.running == 0))
        background.close()


async def _drain(collector: Collector) -> None:
    async for _ in collector.collect(problems(2), group_size=2, sampling=SAMPLING):
        pass


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("error", [EngineError("the engine died"), KeyError("a bug of the workflow")])
def test_an_error_ends_the_collection_and_everything_in_it(
    pool: GradingPool, renderer: Renderer, error: Exception
) -> None:
    """It is raised as it is, and nothing goes on behind it."""

    async def speak(request: Request) -> str:
        if request.id.startswith("c"):
            raise error
        await asyncio.sleep(3600)
        return "never"

    collector, engine = make(speak, pool, renderer)
    with pytest.raises(type(error), match=r"died|bug"):
        collect(collector, problems(4))
    assert engine.running == 0


def test_a_workflow_without_rollouts_is_a_mistake_with_a_name(pool: GradingPool, renderer: Renderer) -> None:
    async def workflow(session: Session) -> Sequence[Rollout]:
        return []

    collector, _ = make(echo, pool, renderer, workflow=workflow)
    with pytest.raises(ValueError, match="returned no rollout for problem 'a': it needs at least one"):
        collect(collector, problems(1))


# ------------------------------------------------------------------------------------------------------------ rewards


def test_weights_and_gates_make_the_reward(pool: GradingPool, renderer: Renderer) -> None:
    """`words` counts 1, `obey` half if `words` says CORRECT; by hand."""
    terms = [Term("words", 1.0), Term("obey", 0.5, gate="words")]

    async def speak(request: Request) -> str:
        return {"a": "x marks it", "b": "wrong"}[request.id[0]]

    collector, _ = make(speak, pool, renderer, terms=terms)
    rewards = {group.problem.id: group.rewards_G for group in collect(collector, problems(2))}
    assert rewards == {"a": [1.5, 1.5], "b": [0.0, 0.0]}


def test_a_problem_may_name_who_judges_it_and_gates_are_judged_too(pool: GradingPool, renderer: Renderer) -> None:
    """Only `obey` applies, behind the gate `words`: both have verdicts, only `obey` has weight."""
    terms = [Term("words", 1.0), Term("obey", 0.5, gate="words")]

    async def speak(request: Request) -> str:
        return {"a": "x marks it", "b": "wrong"}[request.id[0]]

    collector, engine = make(speak, pool, renderer, terms=terms)
    visits = [(problem(name, verifiers=("obey",)), 0) for name in "ab"]
    groups = {group.problem.id: group for group in collect(collector, visits, group_size=1)}
    assert groups["a"].rewards_G == [0.5]
    assert groups["b"].rewards_G == [0.0]
    assert set(groups["a"].rollouts[0].verdicts) == {"words", "obey"}
    alone, _ = make(speak, pool, renderer, terms=terms)
    (group,) = collect(alone, [(problem("b", verifiers=("words",)), 0)], group_size=1)
    assert set(group.rollouts[0].verdicts) == {"words"}
    assert engine.requests


def test_a_completion_that_was_not_judged_has_no_reward_which_is_not_0(pool: GradingPool, renderer: Renderer) -> None:
    """The verifier raised: None. The verifier died of the completion: its declared lowest score, -1."""

    async def speak(request: Request) -> str:
        return {"a": "raise", "b": "abort"}[request.id[0]]

    collector, engine = make(speak, pool, renderer, terms=[Term("words"), Term("obey")])
    groups = {group.problem.id: group for group in collect(collector, problems(2), group_size=1)}
    raised, died = groups["a"].rollouts[0], groups["b"].rollouts[0]
    assert raised.reward is None
    assert raised.verdicts["words"].outcome is Outcome.ERROR
    assert "nobody thought of this" in str(raised.verdicts["words"].detail)
    assert died.reward == -1.0
    assert died.verdicts["obey"].outcome is Outcome.CRASHED
    assert engine.running == 0


@pytest.mark.parametrize(("allowed", "stops"), [(0.24, True), (0.25, False)])
def test_too_many_unscored_completions_stop_the_run_with_the_first_reason(
    pool: GradingPool, renderer: Renderer, allowed: float, stops: bool
) -> None:
    """One of four: a share of 0.25 is allowed or not; the message has the share, the term and the error."""

    async def speak(request: Request) -> str:
        return "raise" if request.id == "a/0/1/0" else "x"

    collector, engine = make(speak, pool, renderer)
    rollouts = Rollouts(make_recipe(max_unscored=allowed), engine, pool, collector, renderer, [])
    try:
        if stops:
            with pytest.raises(TooManyUnscored) as raised:
                rollouts.take(4, problems)
            for part in ("1 of 4 rollouts", "allows 24%", "'a'", "term 'words' said ERROR", "nobody thought of this"):
                assert part in str(raised.value)
        else:
            assert rollouts.take(4, problems)[0].rewards_G == [1.0, None, 1.0, 1.0]
    finally:
        rollouts._background.close()


# ---------------------------------------------------------------------------------------------------------- workflows


async def second_thoughts(session: Session) -> Sequence[Rollout]:
    """The policy completions, is told to go on, and completions again."""
    first = await session.sample(session.prompt.ids, 0)
    told = Piece(ids=(7, 8, 9), is_model=False, text=" wait ")
    second = await session.sample(session.prompt.ids + first.ids + told.ids, 0, segment=1)
    return [await session.finish(0, session.prompt.ids, [Piece.sampled(first), told, Piece.sampled(second)], second)]


def test_foreign_tokens_are_not_trained(pool: GradingPool, renderer: Renderer) -> None:
    """By hand: "no" and end of text, three tokens of the workflow's, "x" and end of text. Foreign ones have loss mask
    0 and log-probability 0, graders read everything, and each segment has noise of its own."""

    async def speak(request: Request) -> str:
        return "no" if request.id.endswith("/0") else "x"

    collector, engine = make(speak, pool, renderer, workflow=second_thoughts)
    (group,) = collect(collector, problems(1))
    (rollout,) = group.rollouts
    assert rollout.ids == (ord("n"), ord("o"), 2, 7, 8, 9, ord("x"), 2)
    assert rollout.loss_mask == (1, 1, 1, 0, 0, 0, 1, 1)
    assert rollout.behaviour_logprobs == (-0.5, -0.5, -0.5, 0.0, 0.0, 0.0, -0.5, -0.5)
    assert rollout.weight_version == (3,) * 8
    assert rollout.text == "no wait x"
    assert rollout.reward == 1.0
    first, second = engine.requests
    assert second.prompt_ids == first.prompt_ids + rollout.ids[:6]
    assert first.seed != second.seed


def test_a_foreign_piece_that_stands_twice_is_kept_apart(pool: GradingPool, renderer: Renderer) -> None:
    """One object in two places of the completion, and one that ends it."""

    async def workflow(session: Session) -> Sequence[Rollout]:
        said = await session.sample(session.prompt.ids, 0)
        told = Piece(ids=(7,), is_model=False, text="!")
        return [await session.finish(0, session.prompt.ids, [told, Piece.sampled(said), told], said)]

    async def speak(request: Request) -> str:
        return "x"

    collector, _ = make(speak, pool, renderer, workflow=workflow)
    (group,) = collect(collector, problems(1))
    assert group.rollouts[0].loss_mask == (0, 1, 1, 0)
    assert group.rollouts[0].text == "!x!"


def test_a_prefilled_completion_is_read_by_graders_and_not_trained(pool: GradingPool, tiny_tied: Path) -> None:
    """The template begins the completion with the reference itself: prompt ids hold it, the rollout's ids do not."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tied)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}:"
    renderer = Renderer(Template(type="chat", prefill="x"), tokenizer)

    async def speak(request: Request) -> str:
        return "yes"

    collector, engine = make(speak, pool, renderer)
    (group,) = collect(collector, problems(1), group_size=1)
    (rollout,) = group.rollouts
    assert rollout.text == "xyes"
    assert rollout.reward == 1.0
    assert tokenizer.decode(rollout.prompt_ids) == "say a:x"
    assert len(rollout.ids) == len("yes") + 1
    assert engine.requests[0].prompt_ids == rollout.prompt_ids


# -------------------------------------------------------------------------------------------------------- real engines


def test_collecting_twice_from_a_real_engine_gives_the_same_groups(
    pool: GradingPool, renderer: Renderer, background: Background, vllm_tied: VllmEngine
) -> None:
    """vLLM: 16 requests over 8 places, the same to the last bit in a repetition, but for the seconds of grading."""
    vllm = Collector(vllm_tied, pool, [Term("words")], renderer, run_seed=0)
    first, second = (background.wait(_sorted_groups(vllm)) for _ in range(2))
    assert first == second
    assert len({rollout[1] for rollout in first}) > 8


def test_collecting_twice_from_transformers_gives_the_same_groups(
    pool: GradingPool, renderer: Renderer, background: Background, tiny_tied: Path
) -> None:
    engine = HfEngine(tiny_tied, max_batch=8)
    background.wait(engine.start())
    collector = Collector(engine, pool, [Term("words")], renderer, run_seed=0)
    first, second = (background.wait(_sorted_groups(collector)) for _ in range(2))
    background.wait(engine.close())
    assert first == second
    assert len({rollout[1] for rollout in first}) > 8


async def _sorted_groups(collector: Collector) -> list[Any]:
    stream = collector.collect(problems(4), group_size=4, sampling=SAMPLING)
    groups = sorted([group async for group in stream], key=lambda group: group.problem.id)
    return [
        (one.problem_id, one.ids, one.behaviour_logprobs, one.loss_mask, one.text, one.finish_reason, one.reward)
        for group in groups
        for one in group.rollouts
    ]
