"""An engine that dies is started again and repeats its requests: the caller cannot tell, but for a warning."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlvr.engines.hf import HfEngine
from rlvr.engines.protocol import EngineDied, EngineError
from rlvr.engines.restarting import RestartingEngine
from rlvr.records import Completion, Request, Sampling


class Mortal(HfEngine):
    """The transformers engine, which loses everything when a test kills it, and can be made to hang."""

    def __init__(self, model: Path) -> None:
        super().__init__(model, max_batch=4)
        self.starts, self.hangs = 0, False
        self.dying: list[str] = []
        """A life each: the request at whose end the engine dies."""

    async def start(self) -> None:
        self.starts += 1
        self._version = -1
        await super().start()

    async def generate(self, request: Request) -> Completion:
        if self.hangs:
            self.hangs = False
            await asyncio.sleep(3600)
        life = self.starts
        try:
            completion = await super().generate(request)
        except EngineError as error:
            if self._policy is not None and life == self.starts:
                raise
            raise EngineDied("the engine died: killed by a test") from error
        if self.dying and request.id == self.dying[0]:
            self.dying.pop(0)
            self._policy = None
        if self._policy is None or life != self.starts:
            raise EngineDied("the engine died: killed by a test")
        return completion


@pytest.fixture
def mortal(tiny_tied: Path) -> Mortal:
    return Mortal(tiny_tied)


class Weights:
    """The model's, moved; may be read again."""

    def __init__(self, model: Path, by: float = 0.02) -> None:
        torch.manual_seed(1)
        named = AutoModelForCausalLM.from_pretrained(model).named_parameters()
        self.moved = [(name, (value + by * torch.randn_like(value)).detach()) for name, value in named]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.moved)


REQUESTS = [
    Request(id=f"r{i}", prompt_ids=(5 + i, 6, 7), sampling=Sampling(max_new_tokens=4 + 3 * (i % 3)), seed=i)
    for i in range(10)
]


def supervised(inner: Mortal, *, restarts: int = 3, timeout: float = 60.0) -> tuple[RestartingEngine, list[str]]:
    warned: list[str] = []
    warn = lambda name, text: warned.append(f"{name}: {text}")  # noqa: E731
    return RestartingEngine(inner, restarts=restarts, timeout=timeout, warn=warn), warned


async def sample(engine: RestartingEngine, weights: Weights) -> tuple[list[Completion], list[list[float]]]:
    """Ten requests, four at a time, and a score behind them."""
    await engine.start()
    await engine.load_weights(weights, 7)
    async with engine.hold():
        tasks = [asyncio.create_task(engine.generate(one)) for one in REQUESTS]
    return list(await asyncio.gather(*tasks)), await engine.logprobs([(5, 6, 7)])


@pytest.mark.slow
@pytest.mark.parametrize("dying", [["r0"], ["r9"], ["r5", "r2"], ["r5", "r5", "r5"]])
def test_an_engine_that_dies_is_replaced_and_nobody_can_tell(tiny_tied: Path, dying: list[str]) -> None:
    """Theorem: however often and wherever it dies, ids, log-probabilities to the last bit, versions and scores are
    those of an engine that lives: the next one gets the same weights and the same batches."""
    weights = Weights(tiny_tied)
    expected = asyncio.run(sample(supervised(Mortal(tiny_tied))[0], weights))
    mortal = Mortal(tiny_tied)
    mortal.dying = list(dying)
    engine, warned = supervised(mortal)
    assert asyncio.run(sample(engine, weights)) == expected
    assert mortal.starts == 1 + len(dying)
    assert engine.deaths == len(dying)
    assert engine.version == 7
    assert "engine_restarted: the engine died: killed by a test. It is started again with the weights of" in warned[0]
    assert "version 7, and 10 requests are made again (1 of at most 3 restarts)" in warned[0]
    assert set(expected[0][0].weight_version) == {7}


def test_it_dies_once_too_often(mortal: Mortal, tiny_tied: Path) -> None:
    mortal.dying = ["r1"] * 3
    engine, warned = supervised(mortal, restarts=2)
    with pytest.raises(EngineError, match=r"started again 2 times, rollout\.engine\.restarts allows no more"):
        asyncio.run(sample(engine, Weights(tiny_tied)))
    assert len(warned) == 2


@pytest.mark.slow
def test_a_hanging_engine_is_taken_for_dead(mortal: Mortal, tiny_tied: Path) -> None:
    mortal.hangs = True
    engine, warned = supervised(mortal, timeout=2.0)
    completions, _ = asyncio.run(sample(engine, Weights(tiny_tied)))
    assert len(completions) == len(REQUESTS)
    assert "the engine hangs: nothing has ended for 2 s while request 'r0' was waiting" in warned[0]
    assert "rollout.engine.timeout" in warned[0]


def test_weights_that_can_be_read_only_once_are_not_sent_again(mortal: Mortal, tiny_tied: Path) -> None:
    """Half of a stream must not reach an engine as if it were all: the death is raised as it is."""
    mortal.dying = ["r0"]
    engine, _ = supervised(mortal)

    async def story() -> None:
        await engine.start()
        await engine.load_weights(iter(Weights(tiny_tied)), 7)
        await engine.generate(REQUESTS[0])

    with pytest.raises(EngineDied, match="killed by a test"):
        asyncio.run(story())
    assert mortal.starts == 1


def test_a_request_that_is_wrong_is_not_tried_again(mortal: Mortal, tiny_tied: Path) -> None:
    engine, warned = supervised(mortal)

    async def story() -> None:
        await engine.start()
        await engine.load_weights(Weights(tiny_tied), 7)
        await engine.generate(Request(id="long", prompt_ids=(5,) * 300, sampling=Sampling(max_new_tokens=4), seed=0))

    with pytest.raises(EngineError, match="request 'long'"):
        asyncio.run(story())
    assert (mortal.starts, warned) == (1, [])


def test_a_cancelled_request_leaves_nothing_behind(mortal: Mortal, tiny_tied: Path) -> None:
    engine, _ = supervised(mortal)

    async def story() -> int:
        await engine.start()
        await engine.load_weights(Weights(tiny_tied), 7)
        async with engine.hold():
            tasks = [asyncio.create_task(engine.generate(one)) for one in REQUESTS[:3]]
            await asyncio.sleep(0)
            tasks[1].cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(ended[1], asyncio.CancelledError)
        assert len(engine._made) == 0
        return len(asyncio.all_tasks())

    assert asyncio.run(story()) == 1
