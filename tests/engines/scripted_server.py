"""A real HTTP server with vLLM's endpoints whose tokens follow from the request, and which can be made to fail.

Token i of a request is a function of prompt, seed and i; its log-probability tells the weights that the server has read
from the last file it was given. So a test sees that nothing is lost, doubled or sampled from other weights.
"""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

from aiohttp import web
from safetensors import safe_open

from rlvr.engines.servers.guard import server_token
from rlvr.engines.servers.serve import free_port
from rlvr.engines.vllm.settings import WORKER_EXTENSION

CONFIG: dict[str, Any] = {
    "model_config": {
        "model": "tied", "dtype": "torch.float32", "max_model_len": 10_000, "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
    },
    "parallel_config": {"worker_extension_cls": WORKER_EXTENSION},
    "scheduler_config": {"policy": "priority", "enable_chunked_prefill": False},
    "weight_transfer_config": {"backend": "rlvr_file"},
    "device_config": {"device_type": "cpu"},
}  # fmt: skip
TOLD = "model.norm.weight"
"""The parameter whose first value is the weights, as far as this server goes."""


def token(prompt: list[int], seed: int, place: int) -> int:
    """What is sampled at `place`."""
    return 3 + (sum(prompt) + 7 * seed + 11 * place) % 96


class ScriptedServer:
    """One server on a port of its own; `start`, `die`, `start` again as often as a test likes."""

    def __init__(self, token_seconds: float = 0.001) -> None:
        self.port = free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self.token_seconds = token_seconds
        self.config = copy.deepcopy(CONFIG)
        self.starts = 0
        self.silent = False
        """It accepts connections and does nothing at all, as a stopped process."""
        self.responses: list[tuple[int, str]] = []
        """Status and text of the next requests for tokens, in place of tokens."""
        self.dead_core = False
        self.hides_version = ""
        self.dies_at = ""
        """The path whose next call kills it."""
        self.verbs: list[str] = []
        self.order: list[str] = []
        """Ids in the order in which they were scheduled."""
        self.bodies: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        """Ids of requests whose caller went away."""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """A new process: the first weights, no requests."""
        self.label, self.weights, self.paused, self.updating = "default", 0.0, False, False
        self.requests: dict[str, asyncio.Event] = {}
        self.silent = self.dead_core = False
        self.starts += 1
        app = web.Application(middlewares=[self._gate])
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_get("/weight_info", self._weight_info)
        app.router.add_get("/load", self._load)
        app.router.add_get("/server_info", self._server_info)
        for path in ("pause", "resume", "abort_requests", "reset_prefix_cache", "init_weight_transfer_engine",
                     "start_weight_update", "update_weights", "finish_weight_update"):  # fmt: skip
            app.router.add_post(f"/{path}", getattr(self, f"_{path}"))
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def die(self) -> None:
        """All connections are reset, the port is closed."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.verbs.append(request.path)
        if request.headers.get("Authorization") != f"Bearer {server_token()}":  # as the real ones do, on every verb
            return web.Response(status=401, text='{"error": {"message": "the token is missing"}}')
        if request.path == self.dies_at:
            self.dies_at = ""
            self._dying = asyncio.ensure_future(self.die())
            assert request.transport is not None
            request.transport.abort()
            await asyncio.sleep(60)
        await self._breathe()
        if self.dead_core and request.path != "/server_info":
            return web.Response(status=500, text='{"error": {"message": "EngineCore encountered an issue."}}')
        result: web.StreamResponse = await handler(request)
        await self._breathe()
        return result

    async def _breathe(self) -> None:
        while self.silent:
            await asyncio.sleep(0.01)

    async def _generate(self, request: web.Request) -> web.Response:
        if self.responses:
            status, text = self.responses.pop(0)
            return web.Response(status=status, text=text)
        body = await request.json()
        name, parameters = f"generate-tokens-{body['request_id']}", body["sampling_params"]
        self.bodies.append(body)
        is_ended = self.requests.setdefault(name, asyncio.Event())
        ids, logprobs, labels = [], [], []
        try:
            while len(ids) < parameters["max_tokens"] and not is_ended.is_set():
                await self._breathe()
                if self.paused:
                    await asyncio.sleep(0.001)
                    continue
                if not ids:
                    self.order.append(body["request_id"])
                ids.append(token(body["token_ids"], parameters["seed"], len(ids)))
                logprobs.append(-1.0 - self.weights)
                labels.append(self.label)
                await asyncio.sleep(self.token_seconds)
        except asyncio.CancelledError:
            self.aborted.append(body["request_id"])
            raise
        finally:
            self.requests.pop(name, None)
        spans = [{"version": label, "start": i, "end": i + 1} for i, label in enumerate(labels)]
        content = [
            {"token_id": one, "logprob": value, "top_logprobs": [{"token_id": one, "logprob": value}]}
            for one, value in zip(ids, logprobs, strict=True)
        ]
        if "logprob_token_ids" in parameters:
            last = parameters["logprob_token_ids"][0]
            content[0]["top_logprobs"].append({"token_id": last, "logprob": -1.0 - self.weights})
        choice = {
            "index": 0, "token_ids": ids, "finish_reason": "abort" if is_ended.is_set() else "length",
            "stop_reason": None, "weight_versions": spans, "logprobs": {"content": content},
        }  # fmt: skip
        prompt = [None, *({str(one): {"logprob": -1.0 - self.weights}} for one in body["token_ids"][1:])]
        return web.json_response({"choices": [choice], "prompt_logprobs": prompt})

    async def _weight_info(self, request: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.hides_version or self.label})

    async def _load(self, request: web.Request) -> web.Response:
        return web.json_response({"server_load": len(self.requests)})

    async def _server_info(self, request: web.Request) -> web.Response:
        return web.json_response({"vllm_config": self.config | {"instance_id": str(self.starts)}})

    async def _pause(self, request: web.Request) -> web.Response:
        assert request.query["mode"] == "keep"
        self.paused = True
        return web.json_response({"status": "paused"})

    async def _resume(self, request: web.Request) -> web.Response:
        self.paused = False
        return web.json_response({"status": "resumed"})

    async def _abort_requests(self, request: web.Request) -> web.Response:
        for name in (await request.json())["request_ids"] or list(self.requests):
            if name in self.requests:
                self.requests[name].set()
        return web.json_response({"status": "aborted"})

    async def _reset_prefix_cache(self, request: web.Request) -> web.Response:
        return web.json_response({"success": not self.requests})

    async def _init_weight_transfer_engine(self, request: web.Request) -> web.Response:
        path = (await request.json())["init_info"]["path"]
        try:
            with safe_open(path, framework="pt"):
                return web.json_response({})
        except OSError:
            return web.Response(status=500, text=json.dumps({"error": {"message": f"No such file: {path}"}}))

    async def _start_weight_update(self, request: web.Request) -> web.Response:
        if self.updating or not self.paused:
            return web.Response(status=500, text='{"error": {"message": "already active, or not paused"}}')
        self.updating = True
        return web.json_response({})

    async def _update_weights(self, request: web.Request) -> web.Response:
        with safe_open((await request.json())["update_info"]["path"], framework="pt") as stored:
            self.weights = float(stored.get_tensor(TOLD)[0])
        return web.json_response({})

    async def _finish_weight_update(self, request: web.Request) -> web.Response:
        self.updating, self.label = False, (await request.json())["weight_version"]
        return web.json_response({})
