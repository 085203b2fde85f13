"""One `vllm serve` server: its HTTP calls, and what each kind of failure means.

| what happens                                            | is raised     | and means                                |
|---------------------------------------------------------|---------------|------------------------------------------|
| refused or reset connection, no response in `timeout`   | `ServerLost`  | nobody is there, or it hangs             |
| status 5xx, or a response of another form than asked    | `ServerFault` | something is there, ask whether it lives |
| status 4xx, a setting that does not fit                 | `EngineError` | the request or the set-up is wrong       |
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from rlvr.engines.protocol import EngineError
from rlvr.engines.servers.guard import server_token, token_header
from rlvr.engines.vllm.settings import WORKER_EXTENSION, VllmOutput, prompt_logprobs_parameters, sampling_parameters
from rlvr.records import Request

_REQUEST_PREFIX = "generate-tokens-"
"""What vLLM puts before the id of a request to /inference/v1/generate."""
_NO_NUMBER = -9999.0
"""What vLLM sends for a log-probability of nan or -inf."""
_POLL_SECONDS = 0.005


class ServerLost(Exception):
    """The server cannot be reached, or hangs."""


class ServerFault(Exception):
    """The server responded with an internal error or with malformed content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The settings that a server must have been started with."""

    model: str
    dtype: str
    model_len: int
    transfer: str
    """vLLM's backend of weight transfer."""


class Server:
    """A URL at which `vllm serve` runs, now or later."""

    def __init__(self, url: str, index: int, timeout: float) -> None:
        """`timeout` is how many seconds any verb but a request for tokens may take."""
        self.url, self.index, self._timeout = url.rstrip("/"), index, timeout
        self.is_ready = False
        """It has the current weights and may get work."""
        self.is_updating = False
        self.is_half_updated = False
        """It was lost in the middle of an update: only another process in its place is whole."""
        self._instance = ""
        self.must_restart = False
        """It was lost; a child of the run has to be started again."""
        self.is_paused = False
        self.label = ""
        """Which weights it has."""
        self.in_flight = 0
        self.lives = 0
        """How often it was lost."""
        self.reason = "it has not responded yet"
        """Why it is not ready."""
        self._session: aiohttp.ClientSession | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __str__(self) -> str:
        return self.url

    async def open(self) -> None:
        """Ready to connect; a connection a request, so that the end of one is the end of the other."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=aiohttp.ClientTimeout(total=None),
            headers=token_header(server_token()),
        )  # fmt: skip

    async def close(self) -> None:
        """No request afterwards."""
        if self._session is not None:
            await self._session.close()

    def drop(self, reason: str) -> None:
        """End what is in flight: each of its calls raises `ServerLost`."""
        self.is_ready, self.reason, self.label, self.is_paused = False, reason, "", False
        self.lives += 1
        gone, self._gone = self._gone, asyncio.get_running_loop().create_future()
        gone.set_result(None)

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A verb's response, a JSON object."""
        return await self._bounded(self._ask(method, path, body), path)

    async def _bounded(self, call: Awaitable[dict[str, Any]], path: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._timeout):  # wait_for of Python 3.11 may swallow a cancellation
                return await call
        except TimeoutError:
            raise ServerLost(
                f"{self.url}{path} gave no response for {self._timeout:g} s (rollout.engine.timeout)"
            ) from None

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        assert self._session is not None
        try:
            async with self._session.request(method, self.url + path, json=body) as response:
                text, status = await response.text(errors="replace"), response.status
        except (aiohttp.ClientError, OSError) as error:
            raise ServerLost(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        if 400 <= status < 500:
            raise EngineError(f"{self.url}{path} refused with status {status}: {_message(text)}")
        if status != 200:
            raise ServerFault(f"{self.url}{path} failed with status {status}: {_message(text)}")
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise ServerFault(f"{self.url}{path} responded with something else than a JSON object: {text[:200]!r}")
        return content

    async def version(self) -> str:
        """The label of its weights, as its engine core reports it: the response proves that the core is alive."""
        return str(_field(await self.ask("GET", "/weight_info"), "weight_version", str, self.url))

    async def pause(self) -> None:
        """Stop scheduling; requests in flight stay."""
        self.is_paused = True  # before the call: given up half-way it may have taken effect
        await self.ask("POST", "/pause?mode=keep&clear_cache=false")

    async def resume(self) -> None:
        """Go on."""
        await self.ask("POST", "/resume")
        self.is_paused = False

    async def abort(self, ids: Sequence[str]) -> None:
        """End the requests with these ids; they return what they have. None at all means all there are."""
        await self.ask("POST", "/abort_requests", {"request_ids": [_REQUEST_PREFIX + name for name in ids]})

    async def clear_cache(self) -> bool:
        """Forget cached prefixes; False if requests hold some."""
        return bool(_field(await self.ask("POST", "/reset_prefix_cache"), "success", bool, self.url))

    async def admitted(self) -> None:
        """Wait until all requests in flight have reached its engine core."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        while self.in_flight:
            load = _field(await self.ask("GET", "/load"), "server_load", int, self.url)
            if load >= self.in_flight:
                await self.version()  # the engine core responds in order, so it has read what came before
                return
            if loop.time() > deadline:
                raise EngineError(
                    f"{self.url} says that {load} of {self.in_flight} requests have arrived, for {self._timeout:g} s: "
                    "start it by `rlvr serve`, which gives it --enable-server-load-tracking"
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def check(self, needs: Needs) -> None:
        """Raise `EngineError` naming the first setting with which it cannot serve this run."""
        try:
            info = await self.ask("GET", "/server_info?config_format=json")
        except EngineError as error:
            raise EngineError(f"{error}; start it with VLLM_SERVER_DEV_MODE=1, as `rlvr serve` does") from error
        config = _field(info, "vllm_config", dict, self.url)
        model, parallel = config.get("model_config") or {}, config.get("parallel_config") or {}
        scheduler, transfer = config.get("scheduler_config") or {}, config.get("weight_transfer_config") or {}
        instance = _field(config, "instance_id", str, self.url)
        if instance != self._instance:
            self._instance, self.is_half_updated = instance, False
        name = str(model.get("model"))
        if not _is_same_model(name, needs.model):
            raise EngineError(f"{self.url} serves the model {name!r}, this run needs {needs.model!r}{_FIX}")
        model_len = model.get("max_model_len")
        if not isinstance(model_len, int) or model_len < needs.model_len:
            raise EngineError(
                f"{self.url} has max_model_len {model_len}, this run needs {needs.model_len} or more{_FIX}"
            )
        on_cpu = (config.get("device_config") or {}).get("device_type") == "cpu"
        prefill = scheduler.get("enable_chunked_prefill")
        wanted = (
            ("dtype", str(model.get("dtype")).removeprefix("torch."), needs.dtype),
            ("logprobs_mode", model.get("logprobs_mode"), "processed_logprobs"),
            ("generation_config", model.get("generation_config"), "vllm"),
            ("scheduling_policy", scheduler.get("policy"), "priority"),
            ("enable_chunked_prefill", prefill, False if on_cpu else prefill),
            ("worker_extension_cls", parallel.get("worker_extension_cls"), WORKER_EXTENSION),
            ("weight_transfer_config.backend", transfer.get("backend"), needs.transfer),
        )
        for key, value, need in wanted:
            if value != need:
                raise EngineError(f"{self.url} has {key} {value!r}, this run needs {need!r}{_FIX}")

    async def generate(self, name: str, request: Request, priority: int) -> VllmOutput:
        """Sample one completion; a call that is given up aborts the request."""
        body = self._body(name, request.prompt_ids, sampling_parameters(request), priority)
        choice = self._choice(await self._until_gone("/inference/v1/generate", body))
        try:
            entries = (choice["logprobs"] or {"content": []})["content"]
            ids = tuple(int(token) for token in choice["token_ids"] or [])
            if [entry["token_id"] for entry in entries] != list(ids):
                raise ValueError("log-probabilities of other tokens than those sampled")
            logprobs = tuple(float(entry["logprob"]) for entry in entries)
            return VllmOutput(
                ids=ids,
                logprobs=tuple(float("nan") if logprob <= _NO_NUMBER else logprob for logprob in logprobs),
                versions=[
                    (str(span["version"]), int(span["start"]), int(span["end"]))
                    for span in choice["weight_versions"] or []
                ],
                finish_reason=str(choice["finish_reason"]),
                is_stop_string=isinstance(choice["stop_reason"], str),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._nonsense(name, error) from error

    async def logprobs(self, name: str, ids: Sequence[int], priority: int) -> list[float]:
        """Log-probability of each token given those before it, temperature 1; of the first 0.0.

        The last token is asked for as a candidate of the next. vLLM sends as many candidates as are asked for, the
        sampled token first: it is asked for twice, so that it is there.
        """
        last = ids[-1]
        parameters = prompt_logprobs_parameters(last) | {"logprob_token_ids": [last, last], "logprobs": 2}
        body = self._body(name, ids[:-1], parameters, priority)
        response = await self._until_gone("/inference/v1/generate", body)
        choice = self._choice(response)
        try:
            prompt = [float(response["prompt_logprobs"][i][str(ids[i])]["logprob"]) for i in range(1, len(ids) - 1)]
            candidates = choice["logprobs"]["content"][0]["top_logprobs"]
            return [
                0.0,
                *prompt,
                next(float(candidate["logprob"]) for candidate in candidates if candidate["token_id"] == last),
            ]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise self._nonsense(name, error) from error

    def _body(self, name: str, ids: Sequence[int], parameters: Mapping[str, Any], priority: int) -> dict[str, Any]:
        return {
            "request_id": name,
            "token_ids": list(ids),
            "sampling_params": parameters,
            "cache_salt": self.label,
            "priority": priority,
        }

    async def _until_gone(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A response that takes as long as it takes, or `ServerLost` as soon as the server is given up."""
        gone = self._gone
        task = asyncio.ensure_future(self._ask("POST", path, body))
        self.in_flight += 1
        try:
            either: set[asyncio.Future[Any]] = {task, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ServerLost(f"{self.url}: {self.reason}")
            return task.result()
        finally:
            self.in_flight -= 1
            task.cancel()

    def _choice(self, response: dict[str, Any]) -> dict[str, Any]:
        choices = _field(response, "choices", list, self.url)
        if len(choices) != 1 or not isinstance(choices[0], dict):
            raise ServerFault(f"{self.url} returned {len(choices)} completions to one request")
        return dict(choices[0])

    def _nonsense(self, name: str, error: Exception) -> ServerFault:
        return ServerFault(f"{self.url} responded to request {name!r} with nonsense: {type(error).__name__}: {error}")


_FIX = "; start it by `rlvr serve` with this run's recipe"


def _is_same_model(first: str, second: str) -> bool:
    """Whether two paths may be the same model on two hosts; that it is the same is proved by the weights sent."""
    return Path(first).name == Path(second).name or Path(first).resolve() == Path(second).resolve()


def _field(response: Mapping[str, Any], key: str, kind: type, url: str) -> Any:
    if not isinstance(response.get(key), kind):
        raise ServerFault(f"{url} responded without {key!r}: {str(response)[:200]}")
    return response[key]


def _message(text: str) -> str:
    """vLLM's error message, from the body of a response."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300]
