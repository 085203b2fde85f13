"""Keeps servers working: watches them, gives them the current weights before any request, pauses and resumes them.

| what happens                                   | what follows                                                    |
|------------------------------------------------|-----------------------------------------------------------------|
| a server is lost (see `Server`), or serves     | its calls raise; it is asked each second whether it is back; a  |
| weights that it was not given                  | child of the run is started again                               |
| a server responds, for the first time or again | its settings are checked, it gets the current weights, then work|
| no server is ready for `wait` seconds          | `EngineDied` with each server's reason and what is pending      |

Each set of weights has a unique label (version, run and a count) that the server stores with it and stamps on each
token, so weights of another run or an earlier sync are recognised even if their version is equal.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from rlvr.engines.protocol import EngineDied, EngineError
from rlvr.engines.servers.serve import ServedChild
from rlvr.engines.servers.server import Needs, Server, ServerFault, ServerLost
from rlvr.engines.servers.transports import WeightTransport

_RETRY_SECONDS = 1.0
"""Between two attempts to reach a server that is not there."""
_POLL_SECONDS = 0.01
_LONGEST_NAP = 5.0
"""Seconds between two looks at a server that works."""
T = TypeVar("T")


class ServerPool:
    """The servers of an engine; all calls from one event loop."""

    def __init__(
        self,
        urls: Sequence[str],
        children: Sequence[ServedChild],
        transport: WeightTransport,
        needs: Needs,
        *,
        timeout: float,
        wait: float,
        restarts: int,
        warn: Callable[[str, str], None],
        pending: Callable[[], str],
    ) -> None:
        """`pending` says in words what waits; the rest as for `VllmServers`."""
        self._transport, self._needs, self._timeout, self._wait = transport, needs, timeout, wait
        self._restarts, self._warn, self._pending = restarts, warn, pending
        self.servers = [
            Server(url, index, timeout) for index, url in enumerate([*urls, *(child.url for child in children)])
        ]
        self._child_of = dict(zip(self.servers[len(urls) :], children, strict=True))
        self._tasks: list[asyncio.Task[None]] = []
        self._run, self._label, self._count = secrets.token_hex(4), "", 0
        self.versions: dict[str, int] = {}
        """Of each label that was given away."""
        self._holds = 0
        self._changing, self._pausing = asyncio.Lock(), asyncio.Lock()
        self._change = asyncio.Event()
        self._is_starting = False
        self._nobody_since = 0.0
        self._refusal: EngineError | None = None

    async def start(self) -> None:
        """Wait for the servers, each at most `wait` seconds; weights are staged before.

        Raises `EngineError` for a server that cannot serve this run, or if none is there.
        """
        _allow_many_connections()
        for child in self._child_of.values():
            child.start()
        for server in self.servers:
            await server.open()
        self._is_starting, self._nobody_since = True, self._now()
        self._tasks = [asyncio.create_task(self._watch(server)) for server in self.servers]
        try:
            deadline = self._now() + self._wait
            while any(not server.is_ready for server in self.servers) and self._now() < deadline:
                await self._wait_for_change(deadline - self._now())
                if self._refusal is not None:
                    raise self._refusal
            await self.wait_for_server()
        finally:
            self._is_starting = False
        for server in self.servers:
            if not server.is_ready:
                self._warn("server_missing", f"{server} is not there after {self._wait:g} s: {server.reason}")

    async def close(self) -> None:
        """End what is in flight and the children; other servers go on running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self.servers:
            server.drop("the engine was closed")
            await server.close()
        self._tasks, self.servers = [], []
        for child in self._child_of.values():
            child.kill()
        self._transport.close()
        self.notify()

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Stage weights and give them to all that are ready; the others get them when they are back."""
        async with self._changing:
            await self.stage(tensors, version)
            async with self.paused():
                ready = self.ready()
                lives = [server.lives for server in ready]
                for server, life, error in zip(ready, lives, await self._give(ready), strict=True):
                    if isinstance(error, EngineError):
                        raise error
                    if error is not None:
                        self.lose(server, error, life)
        await self.wait_for_server()

    async def stage(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        await asyncio.to_thread(self._transport.stage, tensors)  # servers are watched meanwhile
        self._count += 1
        self._label = f"{version}:{self._run}:{self._count}"
        self.versions[self._label] = version

    async def _give(self, servers: Sequence[Server]) -> list[Exception | None]:
        """The staged weights to paused servers, and the proof that they have them; for each what went wrong."""
        for server in servers:
            server.is_updating = True
        try:
            # a request that came after the update with the salt of the old weights would use their cache
            errors = [error for _, error in await asyncio.gather(*(outcome(server.admitted()) for server in servers))]
            there = [index for index, error in enumerate(errors) if error is None]
            sent = await self._transport.send([servers[index] for index in there], self._label)
            settled = [
                outcome(self._settle(servers[index], refusal)) for index, refusal in zip(there, sent, strict=True)
            ]
            for index, (_, error) in zip(there, await asyncio.gather(*settled), strict=True):
                errors[index] = error
            return errors
        finally:
            for server in servers:
                server.is_updating = False

    async def _settle(self, server: Server, error: Exception | None) -> None:
        """Finish an update: raises `ServerLost`, or `EngineError` for a refusal, or marks the server as updated."""
        if isinstance(error, ServerFault):
            await server.version()
            raise EngineError(f"the weights were refused, and {server} must be started again: {error}") from error
        if error is not None:
            raise error
        reported = await server.version()
        if reported != self._label:
            raise EngineError(f"{server} reports weights {reported!r} after an update to {self._label!r}")
        server.label = reported
        if not server.in_flight:  # what is in flight holds blocks; others cannot meet them, their salt differs
            await self.clear(server)

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """No server schedules anything inside the block; requests in flight stay. Blocks may overlap."""
        self._holds += 1
        try:
            await self._set_pauses()
            yield
        finally:
            self._holds -= 1
            await self._set_pauses()

    async def _set_pauses(self) -> None:
        async with self._pausing:
            wrong = [server for server in self.ready() if server.is_paused != bool(self._holds)]
            await self.on_each(wrong, lambda server: server.pause() if self._holds else server.resume())

    async def clear(self, server: Server) -> None:
        """Forget cached prefixes of a server with nothing in flight, as soon as it has let go of what was given up."""
        deadline = self._now() + self._timeout
        while not server.in_flight and not await server.clear_cache():
            if self._now() > deadline:
                raise EngineError(f"{server} could not clear its prefix cache although nothing is in flight")
            await asyncio.sleep(_POLL_SECONDS)

    async def blame(self, server: Server, error: Exception, life: int) -> None:
        """A call failed: find out whether the server is lost, or only the call."""
        if isinstance(error, ServerFault):
            try:
                await server.version()
                self._warn("server_fault", f"a call is made again: {error}")
                return
            except (ServerLost, ServerFault) as found:
                error = found
        self.lose(server, error, life)

    async def _watch(self, server: Server) -> None:
        """Bring the server in when it is there, notice when it is not."""
        while True:
            try:
                if not server.is_ready:
                    await self._bring_in(server)
                elif not server.is_updating:
                    life, label = server.lives, await server.version()
                    if life == server.lives and not server.is_updating and label != server.label:
                        raise ServerLost(f"{server} has weights {label!r} instead of {server.label!r}: started anew?")
                    await self._set_pauses()  # for a hold that was cancelled while it let go
            except (ServerLost, ServerFault) as error:
                if server.is_ready:
                    self.lose(server, error, server.lives)
                server.reason = str(error)
            except EngineError as error:
                self._refuse(server, error)
            await asyncio.sleep(min(_LONGEST_NAP, self._timeout / 4) if server.is_ready else _RETRY_SECONDS)

    async def _bring_in(self, server: Server) -> None:
        """Check a server that is there, give it the current weights, then let it work."""
        if server in self._child_of:
            await self._restart_child_if_needed(self._child_of[server], server)
        await server.check(self._needs)
        if server.is_half_updated:
            raise EngineError(f"{server} was lost in the middle of an update; start it again")
        async with self._changing:
            await server.pause()
            await server.abort([])  # what an earlier life or run left there
            label = await server.version()
            if label != self._label:
                (error,) = await self._give([server])
                if error is not None:
                    raise error
            server.label = self._label
            async with self._pausing:
                if not self._holds:
                    await server.resume()
                server.is_ready = True
        if server.lives:
            self._warn(
                "server_returned", f"{server} is back and has the weights of version {self.versions[self._label]}"
            )
        self.notify()

    async def _restart_child_if_needed(self, child: ServedChild, server: Server) -> None:
        """Restart a server that this run started if it has ended or hangs."""
        if self._is_starting and child.has_ended:
            raise EngineError(f"a server of this run did not start: {child.reason()}; its log is {child.log_file}")
        if not (server.must_restart or server.is_half_updated or child.has_ended):
            return
        if child.starts > self._restarts:
            raise EngineError(f"{server} was started {child.starts} times, rollout.engine.restarts allows no more")
        self._warn("server_restarted", f"{server} is started again: {server.reason}")
        await asyncio.to_thread(child.start)
        server.must_restart = server.is_half_updated = False

    def lose(self, server: Server, error: Exception, life: int) -> None:
        """The server gets no work until it is back; unless that happened already since `life`."""
        if server.lives != life or not server.is_ready:
            return
        count = server.in_flight
        server.drop(str(error))
        server.must_restart = True
        others = len(self.ready())
        if not others:
            self._nobody_since = self._now()
        self._warn(
            "server_lost",
            f"{error}. Its {count} requests go to the other {others} servers"
            if others
            else f"{error}. Its {count} requests wait for it, at most {self._wait:g} s (rollout.engine.wait)",
        )

    def _refuse(self, server: Server, error: EngineError) -> None:
        """The server cannot serve this run: it stays away, or the run does not start."""
        if server.is_ready:
            self.lose(server, error, server.lives)
        if self._is_starting:
            self._refusal = error
        elif server.reason != str(error):
            self._warn("server_refused", str(error))
        server.reason = str(error)
        self.notify()

    async def on_each(self, servers: Sequence[Server], verb: Callable[[Server], Awaitable[Any]]) -> None:
        """Await `verb(server)` for all of them at once; a server whose call fails counts as lost. Raises
        `EngineError`."""
        lives = [server.lives for server in servers]
        outcomes = await asyncio.gather(*(outcome(verb(server)) for server in servers))
        for server, life, (_, error) in zip(servers, lives, outcomes, strict=True):
            if isinstance(error, EngineError):
                raise error
            if error is not None:
                self.lose(server, error, life)

    async def wait_for_server(self, is_given_up: Callable[[], bool] = lambda: False) -> Server | None:
        """The ready server with the least in flight, the first of equals, as soon as there is one; None once the caller
        has given up. Raises `EngineDied` after `wait` seconds without any server."""
        while not is_given_up():
            if ready := self.ready():
                return min(ready, key=lambda server: (server.in_flight, server.index))
            if not self.servers:
                raise EngineError("the engine is not running; call start() first, and nothing after close()")
            remaining = self._nobody_since + self._wait - self._now()
            if remaining <= 0:
                reasons = "; ".join(f"{server}: {server.reason}" for server in self.servers)
                raise EngineDied(f"no server for {self._wait:g} s (rollout.engine.wait): {reasons}. {self._pending()}")
            await self._wait_for_change(remaining)
        return None

    def ready(self) -> list[Server]:
        return [server for server in self.servers if server.is_ready]

    async def _wait_for_change(self, seconds: float) -> None:
        """Wait until a server's state changes, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._change.wait()

    def notify(self) -> None:
        """Wake everybody who waits for a server's state to change."""
        self._change.set()
        self._change = asyncio.Event()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def outcome(verb: Awaitable[T]) -> tuple[T | None, Exception | None]:
    """A result, or what went wrong with a server; any other exception is raised."""
    try:
        return await verb, None
    except (ServerLost, ServerFault, EngineError) as error:
        return None, error


def _allow_many_connections() -> None:
    """Each request in flight is an open file; the soft limit is often 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
