"""Pauses of the engine core's scheduling: admits requests while it is paused, interrupts those in flight."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from rlvr.engines.engine_stats import EngineStats
from rlvr.engines.protocol import EngineError
from rlvr.engines.vllm.core import VllmCore


class Pauses:
    """Counts the requests of one life of the engine core, and pauses its scheduler."""

    def __init__(self, core: VllmCore, stats: EngineStats | None) -> None:
        self._core, self._stats = core, stats
        self.in_flight = 0
        """Requests that have not ended."""
        self._holds = 0
        self._is_paused = False
        self._pausing = asyncio.Lock()
        self._admitting = 0
        self._all_admitted = asyncio.Event()
        self._all_admitted.set()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """A request is in flight within."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @contextlib.contextmanager
    def admission(self) -> Iterator[None]:
        """A request is handed to the engine core within."""
        self._admitting += 1
        self._all_admitted.clear()
        try:
            yield
        finally:
            self._admitting -= 1
            if not self._admitting:
                self._all_admitted.set()

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Admit requests without running them until the block is left.

        What was admitted within starts in the order of the calls, from an empty prefix cache unless other requests are
        running: the batch, and so the last bit of its numbers, depends on nothing but weights and requests.
        """
        async with self.paused():
            if not self.in_flight:
                await self.clear_cache()
            yield
            await asyncio.sleep(0)  # tasks that the block created make their first step
            await self._all_admitted.wait()

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is scheduled inside the block; requests in flight stay. Blocks may nest and overlap."""
        llm = self._core.running()
        self._holds += 1
        try:
            async with self._pausing:
                if self._stats is not None:
                    self._stats.pause()
                if not self._is_paused:
                    self._is_paused = True  # before the call: cancelled half-way it may have taken effect
                    await self._core.call(llm.pause_generation(mode="keep", clear_cache=False))
            yield
        finally:
            self._holds -= 1
            async with self._pausing:
                if not self._holds and self._is_paused and self._core.is_alive:
                    await self._core.call(llm.resume_generation())
                    self._is_paused = False

    async def interrupt(self) -> None:
        """End every request in flight: each returns the tokens it has, with finish reason ``abort``."""
        await self._all_admitted.wait()
        async with self.paused():
            await self._core.call(self._core.running().pause_generation(mode="abort", clear_cache=False))

    async def clear_cache(self) -> None:
        """Forget cached prefixes. Raises `EngineError` while a request is in flight."""
        if not await self._core.call(self._core.running().reset_prefix_cache()):
            raise EngineError("vLLM could not clear its prefix cache although nothing is in flight")
