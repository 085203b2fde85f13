"""The order in which a sleeping engine gets its memory and its weights back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr.engines.vllm import updates
from rlvr.engines.vllm.updates import WeightUpdates
from rlvr.engines.weights import read_manifest, stored


def test_weights_come_between_the_two_halves_of_waking(tiny_tied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for weights, the weights, then memory for keys and values, each after the learner's cache is given back:
    all at once would be the moment with the highest peak of all."""
    done: list[str] = []

    class Llm:
        def __getattr__(self, verb: str) -> Any:
            async def call(*arguments: Any, **named: Any) -> str:
                done.append(" ".join([verb, *map(str, named.values())]))
                return "3"

            return call

    class Core:
        on_cpu, broken = True, ""

        def running(self) -> Llm:
            return Llm()

        async def call(self, verb: Coroutine[Any, Any, Any]) -> Any:
            return await verb

    class Pauses:
        in_flight = 1

        @contextlib.asynccontextmanager
        async def paused(self) -> AsyncIterator[None]:
            yield

    monkeypatch.setattr(updates, "give_memory_back", lambda: done.append("memory"))
    manifest = read_manifest(tiny_tied)
    engine = WeightUpdates(Core(), Pauses(), manifest, torch.float32)  # type: ignore[arg-type]

    async def story() -> None:
        await engine.sleep()
        await engine.load(stored(manifest, tiny_tied), 3)

    asyncio.run(story())
    assert done == [
        "sleep 2", "memory", "wake_up ['weights']", "start_weight_update", "update_weights", "finish_weight_update",
        "update_weight_version", "get_weight_version", "memory", "wake_up ['kv_cache']",
    ]  # fmt: skip
    asyncio.run(engine.load(stored(manifest, tiny_tied), 3))
    assert done[10:] == done[3:8]
