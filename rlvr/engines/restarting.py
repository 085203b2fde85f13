"""Restarts an engine that dies or hangs, with the weights it served, and repeats its requests.

| what happens                            | what follows                                                              |
|-----------------------------------------|---------------------------------------------------------------------------|
| the engine dies (`EngineDied`)          | close, start, load the last weights, make the requests again              |
| nothing ends for `timeout` seconds      | it counts as hanging: the same                                            |
| more deaths than `restarts`             | the error is raised, with all that was tried                              |
| any other `EngineError`                 | raised: the request or the weights are wrong, not the engine              |

All requests since the engine was last idle are made again, in their order, those that had ended included: the batches
are the same ones, and with the seeds of the requests so is every token. What had ended keeps its first result. An
asynchronous schedule, whose engine is never idle, repeats only what had not ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from torch import Tensor

from rlvr.engines.protocol import Engine, EngineDied, EngineError
from rlvr.records import Completion, Request

T = TypeVar("T")


class RestartingEngine:
    """The `Engine` protocol around another engine; see `Engine` for what each verb promises."""

    def __init__(
        self,
        engine: Engine,
        *,
        restarts: int,
        timeout: float,
        repeats_batches: bool = True,
        warn: Callable[[str, str], None] = lambda name, message: None,
    ) -> None:
        """`timeout` is how many seconds may pass without any request or verb of the engine ending; `warn` gets a name
        and a message for each restart. Without `repeats_batches` requests that had ended are not made again: for an
        engine that is never idle, whose batches nothing could repeat."""
        self.inner, self._restarts, self._timeout, self._warn = engine, restarts, timeout, warn
        self._weights: tuple[Iterable[tuple[str, Tensor]], int] | None = None
        self._life = 0
        self._reviving = asyncio.Lock()
        self._repeats_batches, self._count = repeats_batches, 0
        self._made: dict[int, Request] = {}
        self._again: dict[int, asyncio.Task[Completion]] = {}
        self._deaths = self._in_flight = self._waiting = 0
        self._last_end = 0.0

    @property
    def version(self) -> int:
        """The weight version that the engine reports."""
        return self.inner.version

    @property
    def model_len(self) -> int:
        """Most tokens, prompt and completion together, of one request."""
        return self.inner.model_len

    @property
    def deaths(self) -> int:
        """How often the engine was started again."""
        return self._deaths

    async def start(self) -> None:
        """Bring the engine up; one that does not start is not tried again."""
        await self.inner.start()

    async def generate(self, request: Request) -> Completion:
        """Sample one completion; if the engine dies meanwhile, it is sampled again by the next one."""
        life, place = self._life, self._count
        self._count += 1
        self._made[place] = request
        self._in_flight += 1
        try:
            try:
                return await self._watched(self.inner.generate(request), f"request {request.id!r}")
            except EngineDied as error:
                await self._revive(life, error)
            while True:
                life = self._life
                try:
                    return await asyncio.shield(self._again[place])
                except EngineDied as error:
                    await self._revive(life, error)
        finally:
            self._in_flight -= 1
            if not self._repeats_batches:
                self._made.pop(place, None)
                self._again.pop(place, None)
            if not self._in_flight:
                self._forget()

    async def interrupt(self) -> None:
        """End every request in flight; what a new engine was just asked again ends as well."""
        await self._insist(self.inner.interrupt, "interrupt")

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it, temperature 1; the first of a sequence is 0.0."""
        return await self._insist(lambda: self.inner.logprobs(sequences), "logprobs")

    async def release(self) -> None:
        """Give back what device memory it can until the next `load_weights`."""
        await self._insist(self.inner.release, "release")

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights; `tensors` is asked for them again after a death, unless it is an iterator, which can be
        read only once."""
        self._weights = None
        if not isinstance(tensors, Iterator):
            self._weights = tensors, version
        life = self._life
        try:
            await self._watched(self.inner.load_weights(tensors, version), "load_weights")
        except EngineDied as error:
            await self._revive(life, error)  # which loads them

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Admit requests without running them until the block is left."""
        life = self._life
        held = self.inner.hold()
        try:
            await held.__aenter__()
        except EngineDied as error:
            await self._revive(life, error)
            life, held = self._life, self.inner.hold()
            await held.__aenter__()
        try:
            yield
        finally:
            await asyncio.sleep(0)  # what was called within has one more step to go than without this class
            try:
                await held.__aexit__(None, None, None)
            except EngineDied as error:
                await self._revive(life, error)

    def measured(self) -> dict[str, float]:
        """The engine's own measurements since the last call."""
        return self.inner.measured()

    async def close(self) -> None:
        """End the engine and its processes; safe to call twice and after a crash."""
        self._forget()
        await self.inner.close()

    def _forget(self) -> None:
        """No request waits any more; what is still made again was for the sake of the batch."""
        for task in self._again.values():
            task.cancel()
        self._made, self._again, self._count = {}, {}, 0

    async def _insist(self, verb: Callable[[], Awaitable[T]], name: str) -> T:
        """A verb's result, from the next engine if this one dies."""
        while True:
            life = self._life
            try:
                return await self._watched(verb(), name)
            except EngineDied as error:
                await self._revive(life, error)

    async def _watched(self, verb: Awaitable[T], name: str) -> T:
        """The result of `verb`, or `EngineDied` once nothing has ended for `timeout` seconds."""
        clock = asyncio.get_running_loop().time
        if not self._waiting:
            self._last_end = clock()
        self._waiting += 1
        task = asyncio.ensure_future(verb)
        try:
            while not task.done():
                remaining = self._last_end + self._timeout - clock()
                if remaining <= 0:
                    raise EngineDied(
                        f"the engine hangs: nothing has ended for {self._timeout:g} s while {name} was waiting "
                        f"({self._in_flight} requests in all); rollout.engine.timeout allows more"
                    )
                await asyncio.wait({task}, timeout=remaining)
            self._last_end = clock()
            return task.result()
        finally:
            self._waiting -= 1
            task.cancel()

    async def _revive(self, life: int, error: EngineDied) -> None:
        """Start the engine again unless another request has seen to it since `life`."""
        async with self._reviving:
            if self._life != life:
                return
            if self._deaths >= self._restarts:
                raise EngineError(
                    f"{error}. It was started again {self._deaths} times, rollout.engine.restarts allows no more"
                ) from error
            if self._weights is None:
                raise error
            self._deaths += 1
            self._warn(
                "engine_restarted",
                f"{error}. It is started again with the weights of version {self._weights[1]}, and {len(self._made)} "
                f"requests are made again ({self._deaths} of at most {self._restarts} restarts)",
            )
            await self.inner.close()
            await self.inner.start()
            await self.inner.load_weights(*self._weights)
            self._last_end = asyncio.get_running_loop().time()
            async with self.inner.hold():
                self._again = {
                    place: asyncio.ensure_future(self._watched(self.inner.generate(request), f"request {request.id!r}"))
                    for place, request in self._made.items()
                }
                await asyncio.sleep(0)
            for task in self._again.values():
                task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # not all are waited for
            self._life += 1
