"""Several `vllm serve` servers as one engine: balances requests over them and loses none when a server dies.

| what happens                                    | what follows                                            |
|-------------------------------------------------|---------------------------------------------------------|
| a server is lost while it samples               | its requests are made again on the others, or wait      |
| a request fails more than `restarts` times      | `EngineError` with the last server's message            |
| weights change while requests are in flight     | they wait, and go on with the new weights               |

`ServerPool` handles how servers come, go and get their weights.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rlvr.dtypes import DTYPES
from rlvr.engines.agreement import FOLLOWS, distance
from rlvr.engines.protocol import NO_VERSION, EngineError
from rlvr.engines.servers.pool import ServerPool, outcome
from rlvr.engines.servers.serve import ServedChild
from rlvr.engines.servers.server import Needs, Server, ServerFault, ServerLost
from rlvr.engines.servers.transports import FileTransport, NcclTransport
from rlvr.engines.stop_strings import check_fits, check_lengths
from rlvr.engines.vllm.settings import FILE_BACKEND, VllmSettings, build_completion
from rlvr.engines.weights import read_manifest, stored
from rlvr.records import Completion, Request


@dataclass(slots=True, eq=False)
class _Pending:
    """A request under way."""

    id: str
    since: float
    name: str = ""
    """What the server calls it; another one each time it is made."""
    server: Server | None = None
    failures: int = 0
    is_interrupted: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class VllmServers:
    """The `Engine` protocol on servers found by URL; see `Engine` for what each verb promises."""

    def __init__(
        self,
        settings: VllmSettings,
        urls: Sequence[str] = (),
        *,
        children: Sequence[ServedChild] = (),
        transfer: str = FILE_BACKEND,
        folder: Path | None = None,
        address: str | None = None,
        timeout: float = 120.0,
        wait: float = 600.0,
        restarts: int = 3,
        warn: Callable[[str, str], None] = lambda name, message: None,
    ) -> None:
        """`children` are servers that this engine starts. `timeout` bounds each verb but sampling, `wait` the time
        without any server, both in seconds. `transfer` is vLLM's backend for weights; `folder` and `address` are where
        servers find them: `FileTransport`, `NcclTransport`. `warn` gets a name and a message for each loss and
        return."""
        self._settings, self._urls, self._children = settings, tuple(urls), tuple(children)
        self._transfer, self._folder, self._address = transfer, folder, address
        self._timeout, self._wait, self._restarts, self._warn = timeout, wait, restarts, warn
        self._running: ServerPool | None = None
        self._tokenizer: Any = None
        self._version, self._model_len, self._count = NO_VERSION, 0, 0
        self._pending: set[_Pending] = set()
        self._sampled: Counter[int] = Counter()
        """Tokens of each server since the last reading."""

    @property
    def version(self) -> int:
        """The weight version that the servers reported last."""
        return self._version

    @property
    def model_len(self) -> int:
        """Most tokens, prompt and completion together, of one request."""
        return self._model_len

    @property
    def _pool(self) -> ServerPool:
        if self._running is None:
            raise EngineError("the servers are not in use; call start() first, and nothing after close()")
        return self._running

    async def start(self) -> None:
        """Wait for the servers and give them the model folder's weights. Raises `EngineError` with the reason."""
        if self._running is not None:
            return
        from transformers import AutoConfig, AutoTokenizer

        model = self._settings.model
        manifest, dtype = read_manifest(model), DTYPES[self._settings.dtype]
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        longest = int(AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings)
        self._model_len = self._settings.max_model_len or longest
        is_file = self._transfer == FILE_BACKEND
        self._running = ServerPool(
            self._urls,
            self._children,
            FileTransport(manifest, dtype, self._folder) if is_file else NcclTransport(manifest, dtype, self._address),
            Needs(model=model, dtype=self._settings.dtype, model_len=self._model_len, transfer=self._transfer),
            timeout=self._timeout,
            wait=self._wait,
            restarts=self._restarts,
            warn=self._warn,
            pending=self._what_is_pending,
        )
        own = stored(manifest, model)
        await self._running.stage(own if is_file else list(own), NO_VERSION)
        await self._running.start()

    async def generate(self, request: Request) -> Completion:
        """Sample one completion; a server's death is not noticed by the caller."""
        pool = self._pool
        check_fits(request, self.model_len)
        pending = _Pending(request.id, self._now())
        self._pending.add(pending)
        priority = self._next()
        try:
            while True:
                server = await pool.wait_for_server(lambda: pending.is_interrupted)
                if server is None:
                    return Completion(ids=(), behaviour_logprobs=(), weight_version=(), text="", finish_reason="abort")
                pending.name, pending.server, life = f"{request.id}#{self._next()}", server, server.lives
                try:
                    output = await server.generate(pending.name, request, priority)
                    unknown = [label for label, *_ in output.versions if label not in pool.versions]
                    if unknown:
                        raise ServerLost(f"{server} sampled with weights {unknown[0]!r}, which this run did not send")
                    self._sampled[server.index] += len(output.ids)
                    return build_completion(request, output, self._tokenizer, pool.versions.__getitem__)
                except (ServerLost, ServerFault) as error:
                    pending.server = None
                    await pool.blame(server, error, life)
                    pending.failures += 1
                    self._check_failures(f"request {pending.id!r}", pending.failures, error)
        finally:
            self._pending.remove(pending)
            pending.ended.set()

    def _check_failures(self, call: str, failures: int, error: Exception) -> None:
        if failures > self._restarts:
            raise EngineError(
                f"{call} failed {failures} times, rollout.engine.restarts allows {self._restarts}; the last: {error}"
            ) from error

    async def interrupt(self) -> None:
        """End every request in flight: each pending `generate` returns what it has, with finish reason "abort"."""
        pool, targets = self._pool, set(self._pending)
        for pending in targets:
            pending.is_interrupted = True
        while unfinished := {pending for pending in targets if not pending.ended.is_set()}:
            pool.notify()
            for server in pool.servers:
                names = [pending.name for pending in unfinished if pending.server is server]
                if names and server.is_ready:  # again until they end: a request may still be on its way there
                    await pool.on_each([server], lambda ready, names=names: ready.abort(names))  # type: ignore[misc]
            waits = [asyncio.create_task(pending.ended.wait()) for pending in unfinished]
            await asyncio.wait(waits, timeout=0.05)
            for task in waits:
                task.cancel()

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it, temperature 1; the first of a sequence is 0.0.

        Every server computes all of them: what proves one server's weights would prove nothing of another's. Raises
        `EngineError` naming two servers that disagree.
        """
        pool, failures = self._pool, 0
        check_lengths(sequences, self.model_len)
        while True:
            await pool.wait_for_server()
            async with self.hold():
                servers = pool.ready()
                lives = [server.lives for server in servers]
                tasks = [asyncio.create_task(outcome(self._logprobs(server, sequences))) for server in servers]
            results = await asyncio.gather(*tasks)
            for server, life, (_, error) in zip(servers, lives, results, strict=True):
                if error is not None:
                    await pool.blame(server, error, life)
                    failures += 1
                    self._check_failures("logprobs", failures, error)
            agreeing = [
                (server, logprobs) for server, (logprobs, error) in zip(servers, results, strict=True) if error is None
            ]
            if agreeing:
                return _agreed(agreeing)

    async def _logprobs(self, server: Server, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        async def one(ids: Sequence[int]) -> list[float]:
            return [0.0] if len(ids) == 1 else await server.logprobs(f"logprobs#{self._next()}", ids, self._next())

        return list(await asyncio.gather(*(one(ids) for ids in sequences)))

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Admit requests without running them until the block is left, on all servers.

        Requests made within are dealt out in the order of the calls and start in that order: the batch of each server
        depends on weights and requests alone, as long as no server is lost.
        """
        pool = self._pool
        async with pool.paused():
            await pool.on_each([server for server in pool.ready() if not server.in_flight], pool.clear)
            yield
            await asyncio.sleep(0)  # tasks that the block created make their first step
            await pool.on_each(pool.ready(), lambda server: server.admitted())

    async def release(self) -> None:
        """Servers have devices of their own."""

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights on every server; requests in flight wait and go on with the new ones.

        A server that is away gets them when it is back; with none there this waits for one.
        """
        await self._pool.load_weights(tensors, version)
        self._version = version

    def measured(self) -> dict[str, float]:
        """Each server's share of the tokens since the last call; the rest is at its ``/metrics``."""
        sampled, self._sampled = self._sampled, Counter()
        return token_shares([sampled[index] for index in range(len(self._urls) + len(self._children))])

    async def close(self) -> None:
        """End what is in flight and the servers that this engine started; the others go on running."""
        running, self._running = self._running, None
        if running is not None:
            await running.close()

    def _what_is_pending(self) -> str:
        oldest = sorted(self._pending, key=lambda pending: pending.since)
        names = ", ".join(f"{pending.id!r} for {self._now() - pending.since:.0f} s" for pending in oldest[:5])
        return f"{len(oldest)} requests are pending" + (f", the oldest: {names}" if oldest else "")

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def token_shares(sampled: Sequence[int]) -> dict[str, float]:
    """Metrics: each server's share of the tokens, none if there are no tokens."""
    total = sum(sampled)
    return {f"engine/share/{index}": tokens / total for index, tokens in enumerate(sampled)} if total else {}


def _agreed(agreeing: Sequence[tuple[Server, list[list[float]] | None]]) -> list[list[float]]:
    """The log-probabilities of the first server. Raises `EngineError` if another's differ."""
    first, logprobs = agreeing[0]
    assert logprobs is not None
    for other, others in agreeing[1:]:
        assert others is not None
        apart = distance(logprobs, others) if any(len(ids) > 1 for ids in logprobs) else 0.0
        if not apart <= FOLLOWS:
            raise EngineError(
                f"{first} and {other} disagree on the same weights: their log-probabilities are {apart:.2f} nats apart "
                "on average; they load the model differently"
            )
    return logprobs
