"""How weights reach servers: through a file that they read, or by vLLM's NCCL broadcast between GPUs.

| transport       | a server that comes back gets                                | for                               |
|-----------------|--------------------------------------------------------------|-----------------------------------|
| `FileTransport` | the file again, which stays until the next weights           | CPUs, one host or a shared folder |
| `NcclTransport` | a broadcast of its own, the learner's weights read once more | GPUs of any hosts                 |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from torch import Tensor

from rlvr.engines.protocol import EngineError
from rlvr.engines.servers.serve import free_port
from rlvr.engines.servers.server import Server, ServerFault, ServerLost
from rlvr.engines.weights import Manifest, checked, staged
from rlvr.hosts import address_towards

Weights = Iterable[tuple[str, Tensor]]


class WeightTransport(Protocol):
    """How new weights reach the servers."""

    def stage(self, tensors: Weights) -> None:
        """Take new weights, replacing the last ones; blocks, possibly for long. If it raises `EngineError`, the last
        ones stay."""

    async def send(self, servers: Sequence[Server], label: str) -> list[Exception | None]:
        """Give the staged weights to paused servers; for each what went wrong, if anything."""

    def close(self) -> None:
        """Forget the weights."""


class FileTransport:
    """One safetensors file, read by each server through our file backend."""

    def __init__(self, manifest: Manifest, dtype: torch.dtype, folder: Path | None) -> None:
        """`folder` None is this host's memory."""
        self._manifest, self._dtype, self._folder = manifest, dtype, folder
        self._file, self._path = ExitStack(), ""

    def stage(self, tensors: Weights) -> None:
        """Write the file."""
        file = ExitStack()
        path = file.enter_context(staged(self._manifest, tensors, self._dtype, self._folder))
        self._file.close()
        self._file, self._path = file, path

    async def send(self, servers: Sequence[Server], label: str) -> list[Exception | None]:
        """Each server on its own: one that fails takes no other with it."""
        results = await asyncio.gather(*(self._send(server, label) for server in servers), return_exceptions=True)
        for error in results:
            if error is not None and not isinstance(error, Exception):
                raise error
        return [error if isinstance(error, Exception) else None for error in results]

    async def _send(self, server: Server, label: str) -> None:
        try:
            await server.ask("POST", "/init_weight_transfer_engine", {"init_info": {"path": self._path}})
        except ServerFault as error:
            await server.version()  # a dead one is lost, and has not refused
            raise EngineError(
                f"{error}. Server and run must see the same file: on one host with one user they do, else name a "
                "folder that they share as rollout.engine.folder"
            ) from error
        async with _update(server, label):
            await server.ask("POST", "/update_weights", {"update_info": {"path": self._path}})

    def close(self) -> None:
        """The file is gone."""
        self._file.close()


@asynccontextmanager
async def _update(server: Server, label: str) -> AsyncIterator[None]:
    """An update of one server: started, and finished with `label` unless the block fails."""
    server.is_half_updated = True
    await server.ask("POST", "/start_weight_update")
    yield
    await server.ask("POST", "/finish_weight_update", {"weight_version": label})
    server.is_half_updated = False


class NcclTransport:
    """vLLM's NCCL transfer engine from this process's GPU to all workers of all servers.

    Written against vLLM 0.32's source, never run: no GPU here. The group is opened anew whenever it is another set of
    servers, or a server in another life, that gets weights.
    """

    def __init__(self, manifest: Manifest, dtype: torch.dtype, address: str | None) -> None:
        """`address` is where servers reach this host; None is the address on the way to the first of them."""
        self._manifest, self._dtype, self._address = manifest, dtype, address
        self._tensors: Weights = ()
        self._is_spent = False
        self._sender: Any = None
        self._group: list[tuple[Server, int]] = []

    def stage(self, tensors: Weights) -> None:
        """Keep the stream: it is read while it is sent."""
        self._tensors, self._is_spent = tensors, False

    async def send(self, servers: Sequence[Server], label: str) -> list[Exception | None]:
        """All servers at once; an error is that of all, because a broadcast has no part that succeeds."""
        if not servers:
            return []
        if self._is_spent and isinstance(self._tensors, Iterator):
            return [EngineError("these weights could be read only once: the next ones bring the server back")] * len(
                servers
            )
        self._is_spent = True
        loop = asyncio.get_running_loop()
        device = torch.cuda.current_device()
        group = [(server, server.lives) for server in servers]
        client: _Everywhere | None = None
        try:
            sizes = [int((await server.ask("GET", "/get_world_size"))["world_size"]) for server in servers]
            client = _Everywhere(servers, sizes, label, loop, on_failure=self._leave_group)
            await asyncio.to_thread(self._broadcast, client, device, group, 1 + sum(sizes))
        except (ServerLost, ServerFault, EngineError, RuntimeError, ValueError, OSError):
            self._leave_group()  # a group with a broken member is of no use
            if client is not None and client.failure is not None:
                error = client.failure
            return [error if isinstance(error, EngineError) else ServerLost(f"NCCL transfer: {error}")] * len(servers)
        return [None] * len(servers)

    def _broadcast(self, client: _Everywhere, device: int, group: list[tuple[Server, int]], size: int) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        torch.cuda.set_device(device)  # threads have a current device of their own
        torch.cuda.synchronize()  # the learner's last step
        source = _source(self._manifest, self._dtype, self._tensors)
        if self._group != group:
            self._leave_group()
            client.everywhere("/shutdown_weight_transfer_engine")
            address = self._address or learner_address([server.url for server, _ in group])
            start = NCCLTrainerInitInfo(master_address=address, master_port=free_port(address), world_size=size, rank=0)
            self._sender = NCCLTrainerWeightTransferEngine.trainer_init(start, client=client, source=source)
            self._group = group
        self._sender.client, self._sender.source = client, source
        self._sender.send_weights()
        torch.cuda.synchronize()

    def close(self) -> None:
        """Leave the group."""
        self._leave_group()

    def _leave_group(self) -> None:
        """Abort what the group is doing: a broadcast whose peer is gone ends by nothing else. From any thread."""
        sender, self._sender, self._group = self._sender, None, []
        if sender is not None and sender.model_update_group is not None:
            sender.model_update_group.destroy()


def learner_address(urls: Sequence[str]) -> str:
    """Where all servers reach this host. Raises `EngineError` if some see it at another address than others."""
    addresses = {url: address_towards(urlsplit(url).hostname or "") for url in urls}
    if len(set(addresses.values())) > 1:
        seen = ", ".join(f"{address} from {url}" for url, address in addresses.items())
        raise EngineError(
            f"rollout.engine.address: the servers see this host at several addresses ({seen}); name one that all reach"
        )
    return next(iter(addresses.values()))


class _Everywhere:
    """vLLM's `VLLMWeightSyncClient` protocol, each verb to all servers at the same time; called from a thread."""

    def __init__(
        self, servers: Sequence[Server], sizes: Sequence[int], label: str, loop: asyncio.AbstractEventLoop,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`on_failure` is called if a server fails while it receives."""
        self._servers, self._sizes, self._label, self._loop = servers, sizes, label, loop
        self._on_failure = on_failure
        self.failure: Exception | None = None
        """What ended the broadcast: the broadcast itself only says that it was aborted."""

    def everywhere(self, path: str, body: Callable[[int], dict[str, Any]] | None = None) -> None:
        """POST to every server, with what `body` makes for its place in the list."""

        async def all_of_them() -> None:
            await asyncio.gather(
                *(server.ask("POST", path, body(i) if body else None) for i, server in enumerate(self._servers))
            )

        asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each server's workers follow those of the servers before it; rank 0 is the learner."""
        self.everywhere(
            "/init_weight_transfer_engine",
            lambda i: {"init_info": init_info | {"rank_offset": 1 + sum(self._sizes[:i])}},
        )

    def start_weight_update(self) -> None:
        """vLLM's verb."""
        for server in self._servers:
            server.is_half_updated = True
        self.everywhere("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """vLLM's verb; returns when the broadcast has been received. It runs beside the broadcast, which waits for ever
        for a server that is gone, and vLLM looks at its outcome only afterwards."""
        try:
            self.everywhere("/update_weights", lambda _: {"update_info": update_info})
        except Exception as error:
            self.failure = error
            self._on_failure()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """vLLM's verb, with our label."""
        self.everywhere("/finish_weight_update", lambda _: {"weight_version": self._label})
        for server in self._servers:
            server.is_half_updated = False


def _source(manifest: Manifest, dtype: torch.dtype, tensors: Weights) -> Any:
    """The checked stream as vLLM's `WeightSource`, on the GPU in the engine's dtype.

    Its metadata comes before the stream and in its order. A stream that can be read once only cannot tell it: then it
    is the manifest's, and what comes before its turn waits in memory.
    """
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    order = list(manifest.shapes)
    if not isinstance(tensors, Iterator):
        order = [name for name, _ in checked(manifest, tensors)]

    class Source(WeightSource):
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, dtype, manifest.shapes[name]) for name in order]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            waiting: dict[str, Tensor] = {}
            names = iter(order)
            wanted = next(names, None)
            for name, tensor in checked(manifest, tensors):
                waiting[name] = tensor.detach()
                while wanted in waiting:
                    yield wanted, waiting.pop(wanted).to(device="cuda", dtype=dtype).contiguous()
                    wanted = next(names, None)

    return Source()
