"""An engine whose every token says where it comes from, and runs over it: nothing may be lost, doubled, mislabelled."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rewards import Outcome, Verdict
from rewards.combine import Term
from rlvr.config import Recipe, Template
from rlvr.learn.samples import make_samples
from rlvr.problems.templates import Renderer
from rlvr.records import Completion, FinishReason, Problem, Request, RolloutGroup
from rlvr.rollout.collector import Collector
from rlvr.rollout.rollouts import Rollouts
from tests.builders import recipe_data

END = 2
"""The stop token."""


def number(*parts: object) -> int:
    """A hash."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


class Chatter:
    """An engine over no model: a completion's n-th token is a hash of its name, n and the weights' version.

    It emits tokens one by one at random moments, some requests much slower than others; in the middle of them weights
    change and requests end. What it has given back for each request stands in `emitted`.
    """

    model_len = 4096

    def __init__(self, rng: random.Random, longest: int) -> None:
        self.version, self._rng, self._longest = -1, rng, longest
        self._interrupts = 0
        self._holds = 0
        self.emitted: dict[str, Completion] = {}

    async def generate(self, request: Request) -> Completion:
        name, _, done = request.id.partition("+")
        length = 1 + number(name) % self._longest
        start, epoch = int(done or 0), self._interrupts
        slowness = 0.99 if number(name, "slow") % 6 == 0 else 0.6
        tokens: list[tuple[int, float, int]] = []
        reason: FinishReason = "abort"
        while self._interrupts == epoch:
            if self._holds or self._rng.random() < slowness:
                await asyncio.sleep(0)
                continue
            place = start + len(tokens)
            last = place + 1 >= length
            token = END if last else 3 + number(name, place, self.version) % 90
            tokens.append((token, -number(token, place) / 2**32, self.version))
            if last or len(tokens) == request.sampling.max_new_tokens:
                reason = "stop" if last else "length"
                break
        completion = Completion(
            ids=tuple(one[0] for one in tokens), behaviour_logprobs=tuple(one[1] for one in tokens),
            weight_version=tuple(one[2] for one in tokens), text=f"{name}:{start}", finish_reason=reason,
        )  # fmt: skip
        self.emitted[request.id] = completion
        return completion

    async def interrupt(self) -> None:
        self._interrupts += 1
        await asyncio.sleep(0)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    async def load_weights(self, tensors: Any, version: int) -> None:
        await asyncio.sleep(0)
        self.version = version

    async def start(self) -> None: ...

    def measured(self) -> dict[str, float]:
        return {}

    async def release(self) -> None: ...

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        raise NotImplementedError

    async def close(self) -> None: ...


class Coin:
    """Grades at once, by a hash of the text."""

    async def grade(self, name: str, text: str, reference: Any) -> Verdict:
        await asyncio.sleep(0)
        right = number(text) % 2 == 0
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG)

    def close(self) -> None: ...


class World:
    """A run without a learner: draws, takes, syncs and restarts, and the books of what happened."""

    def __init__(
        self, seed: int, renderer: Renderer, schedule: dict[str, Any], *, refill: bool, longest: int, **rollout: Any
    ) -> None:
        self.rng = random.Random(seed)
        self.renderer = renderer
        self.problems = [Problem(id=f"p{i}", prompt=f"say {i}", reference="x", key=str(i)) for i in range(200)]
        data = recipe_data()
        data["rollout"] |= {
            "prompts_per_step": self.rng.randint(1, 3), "group_size": 2, "max_new_tokens": 64, "schedule": schedule,
            **rollout,
        }  # fmt: skip
        data["algorithm"] = {"correction": {"type": "truncate"}}
        if refill:
            data["algorithm"]["filter"] = {"type": "refill", "max_extra": 3}
        self.recipe = Recipe.model_validate(data)
        self.engine = Chatter(self.rng, longest)
        self.rollouts = self.make()
        self.drawn = self.step = 0
        self.trained: list[RolloutGroup] = []
        self.dropped = 0
        self.rollouts.load_weights([], 0)

    def make(self) -> Rollouts:
        """A new process: nothing is left of the old one but the engine's books."""
        collector = Collector(self.engine, Coin(), [Term("coin")], self.renderer, run_seed=0)  # type: ignore[arg-type]  # one verb
        return Rollouts(self.recipe, self.engine, Coin(), collector, self.renderer, self.problems)  # type: ignore[arg-type]

    def draw(self, count: int) -> list[tuple[Problem, int]]:
        """The next problems."""
        self.drawn += count
        return [(self.problems[i % 200], i // 200) for i in range(self.drawn - count, self.drawn)]

    def train(self) -> None:
        """One step, with the assertion of the loop."""
        self.step += 1
        groups = self.rollouts.take(self.step, self.draw)
        make_samples(groups, self.recipe.algorithm, self.step, schedule=self.recipe.rollout.schedule)
        self.dropped += int(self.rollouts.scheduler.counts["buffer/dropped_stale"])
        self.trained += groups
        self.rollouts.settle()
        self.rollouts.load_weights([], self.step)

    def restart(self) -> None:
        """Killed after a checkpoint, and started from it."""
        state = self.rollouts.state_dict()
        self.close()
        self.rollouts = self.make()
        self.rollouts.load_state_dict(state)

    def close(self) -> None:
        """End the run."""
        self.rollouts.close()

    def check(self) -> None:
        """Trained tokens are what the engine emitted, with place and version; all groups are accounted for."""
        held = {(one.problem.id, one.visit) for one in self.rollouts.scheduler.buffer.pending}
        names = [(group.problem.id, group.visit) for group in self.trained]
        assert len(set(names)) == len(names)
        assert not held & set(names)
        assert self.drawn == len(names) + len(held) + self.dropped
        for group in self.trained:
            for rollout in group.rollouts:
                self._check_completion(f"{group.problem.id}/{group.visit}/{rollout.sample_index}/0", rollout)

    def _check_completion(self, name: str, rollout: Any) -> None:
        done, tokens = 0, []
        while True:
            part = self.engine.emitted[f"{name}+{done}" if done else name]
            tokens += list(zip(part.ids, part.behaviour_logprobs, part.weight_version, strict=True))
            if part.finish_reason == "stop" or len(tokens) == 64:
                break
            assert part.ids, "a completion went on although nothing had been given back"
            done = len(tokens)
        assert list(zip(rollout.ids, rollout.behaviour_logprobs, rollout.weight_version, strict=True)) == tokens
        for place, (token, _, version) in enumerate(tokens[:-1]):
            assert token == 3 + number(name, place, version) % 90
        assert len(tokens) == min(64, 1 + number(name) % self.engine._longest)
        assert rollout.finish_reason == ("stop" if tokens[-1][0] == END else "length")


def random_schedule(rng: random.Random) -> dict[str, Any]:
    """Any schedule that a recipe may have."""
    kind = rng.choice(["synchronous", "ahead", "partial", "partial", "asynchronous", "asynchronous"])
    if kind in ("synchronous", "ahead"):
        return {"type": kind}
    on_stale = rng.choice(["wait", "drop", "mask"])
    bound = rng.randint(0, 3)
    most = bound + 1 if on_stale == "wait" else 4
    settings = {"type": kind, "on_stale": on_stale, "max_staleness": bound, "oversample": 1 + rng.random() * (most - 1)}
    if kind == "partial":
        return settings | {"tokens": rng.choice([None, rng.randint(1, 20)])}
    return settings | {"cache": rng.choice(["keep", "recompute"])}


def play(seed: int, renderer: Renderer, say: Callable[[str], None] = lambda text: None) -> None:
    """One random run: schedule, lengths, moments, restarts. Raises where the books do not balance."""
    rng = random.Random(seed)
    schedule, refill, longest = random_schedule(rng), rng.random() < 0.4, rng.choice([3, 20, 100])
    say(f"{seed}: {schedule} refill={refill} longest={longest}")
    world = World(seed, renderer, schedule, refill=refill, longest=longest)
    try:
        for _ in range(rng.randint(1, 6)):
            world.train()
            if rng.random() < 0.25:
                world.restart()
        world.check()
    finally:
        world.close()


def make_renderer(model: Path) -> Renderer:
    """Prompts as they stand."""
    return Renderer(Template(type="none"), AutoTokenizer.from_pretrained(model))
