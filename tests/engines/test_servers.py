"""Engines behind URLs: what a caller sees while servers die, hang, come late, come back, lie, or serve another run."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr.engines.protocol import EngineDied, EngineError
from rlvr.engines.servers import pool as server_pool
from rlvr.engines.servers import transports
from rlvr.engines.servers.server import ServerLost
from rlvr.engines.servers.servers import VllmServers
from rlvr.engines.servers.transports import FileTransport, _Everywhere, learner_address
from rlvr.engines.vllm.settings import VllmSettings, sampling_parameters
from rlvr.engines.weights import read_manifest, stored
from rlvr.records import Completion, Request, Sampling
from tests.engines.scripted_server import TOLD, ScriptedServer, token

Warned = list[str]
FOLDER = 1.0
"""The told value of the model folder's own weights."""
LENGTH = 10_000
"""Of the servers, longer than any request that is to be still there when a test looks."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for servers that are away, and at those that are there, more often than a run would."""
    monkeypatch.setattr(server_pool, "_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(server_pool, "_LONGEST_NAP", 0.05)


class Weights:
    """A whole set for the model whose one told value is `value`; can be read again."""

    def __init__(self, folder: Path, value: float) -> None:
        self.shapes, self.value = read_manifest(folder).shapes, value

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, torch.full(shape, self.value if name == TOLD else 0.0)) for name, shape in self.shapes.items())


def request(index: int, length: int = 20, **sampling: Any) -> Request:
    return Request(
        id=f"r{index}", prompt_ids=(5, 6, index), seed=index, sampling=Sampling(max_new_tokens=length, **sampling)
    )


def ids_of(one: Request) -> tuple[int, ...]:
    """What any server samples for it, whatever its weights."""
    return tuple(token(list(one.prompt_ids), one.seed, place) for place in range(one.sampling.max_new_tokens))


def tell(
    model: Path,
    story: Callable[[VllmServers, list[ScriptedServer], Warned], Awaitable[None]],
    *,
    servers: int = 2,
    start: bool = True,
    token_seconds: float = 0.001,
    **settings: Any,
) -> Warned:
    """Run a story over fresh servers and an engine in use, both ended afterwards; what was warned of."""
    warned: Warned = []

    async def told() -> None:
        fakes = [ScriptedServer(token_seconds) for _ in range(servers)]
        chosen: dict[str, Any] = {"timeout": 5.0, "wait": 20.0} | settings
        engine = VllmServers(
            VllmSettings(model=str(model), dtype="float32", max_model_len=LENGTH),
            [one.url for one in fakes],
            warn=lambda name, text: warned.append(f"{name}: {text}"),
            **chosen,
        )
        try:
            if start:
                for one in fakes:
                    await one.start()
                await engine.start()
            await story(engine, fakes, warned)
        finally:
            await engine.close()
            for one in fakes:
                await one.die()

    asyncio.run(told())
    return warned


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


def begin(engine: VllmServers, requests: Sequence[Request]) -> list[asyncio.Task[Completion]]:
    return [asyncio.create_task(engine.generate(one)) for one in requests]


def check(completions: Sequence[Completion], requests: Sequence[Request], told: dict[int, float]) -> None:
    """Each completion is complete and its own; each token's log-probability fits the version that it carries."""
    for one, asked in zip(completions, requests, strict=True):
        assert one.ids == ids_of(asked)
        assert one.finish_reason == "length"
        assert [-1.0 - value for value in one.behaviour_logprobs] == [told[version] for version in one.weight_version]


def test_a_request_travels_whole_and_its_response_too(tiny_tied: Path) -> None:
    """Ids, log-probabilities, versions, seed, stop strings, cache salt: as with the engine in this process."""

    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        assert engine.version == -1
        assert engine.model_len == LENGTH
        await engine.load_weights(Weights(tiny_tied, 0.5), 3)
        asked = request(4, 12, temperature=0.7, stop=("ab", "c"), stop_token_ids=(2,), top_p=0.9, top_k=7, min_p=0.01)
        one = await engine.generate(asked)
        assert engine.version == 3
        assert one.ids == ids_of(asked)
        assert one.behaviour_logprobs == (-1.5,) * 12
        assert one.weight_version == (3,) * 12
        assert len(one.text) == 12
        body = fakes[0].bodies[0]
        assert body["sampling_params"] == sampling_parameters(asked)
        assert body["sampling_params"]["seed"] == 4
        assert body["sampling_params"]["stop"] == ["ab", "c"]
        assert body["token_ids"] == [5, 6, 4]
        assert body["cache_salt"] == fakes[0].label
        assert fakes[0].label.startswith("3:")

    assert tell(tiny_tied, story) == []


def test_requests_go_where_least_are_in_flight(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        async with engine.hold():
            tasks = begin(engine, [request(i, 4) for i in range(7)])
            await asyncio.sleep(0.02)
            assert fakes[0].order == fakes[1].order == []  # admitted, not run
        await asyncio.gather(*tasks)
        assert engine.measured() == {"engine/share/0": 3 / 7, "engine/share/1": 2 / 7, "engine/share/2": 2 / 7}
        assert engine.measured() == {}  # nothing since the last reading
        names = [[one.split("#")[0] for one in fake.order] for fake in fakes]
        assert [sorted(one) for one in names] == [["r0", "r3", "r6"], ["r1", "r4"], ["r2", "r5"]]
        priorities = [[body["priority"] for body in fake.bodies] for fake in fakes]
        assert all(sorted(some) == some for some in priorities)
        long = begin(engine, [request(0, 2000)])
        await until(lambda: bool(fakes[0].requests))
        await asyncio.gather(*begin(engine, [request(i, 4) for i in range(1, 4)]))
        assert [len(one.order) for one in fakes] == [3 + 2, 2 + 1, 2 + 1]
        assert not long[0].done()

    tell(tiny_tied, story, servers=3)


def test_a_server_that_dies_loses_no_request(tiny_tied: Path) -> None:
    """Theorem: what a server had in flight when it died is answered by another, whole, once, by the same weights."""

    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await engine.load_weights(Weights(tiny_tied, 0.25), 1)
        requests = [request(i, 30) for i in range(12)]
        tasks = begin(engine, requests)
        await until(lambda: len(fakes[1].order) == 6)
        await fakes[1].die()
        check(await asyncio.gather(*tasks), requests, {1: 0.25})
        assert len(warned) == 1
        assert warned[0].startswith(f"server_lost: {fakes[1].url}")
        assert "Its 6 requests go to the other 1 servers" in warned[0]

    tell(tiny_tied, story, token_seconds=0.005)


def test_a_server_that_comes_back_gets_the_weights_before_work(tiny_tied: Path) -> None:
    """The only server dies; while it is away the weights change; back with its first weights it gets the new ones, and
    what waited is sampled from those."""

    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await engine.load_weights(Weights(tiny_tied, 0.25), 1)
        requests = [request(i, 30) for i in range(5)]
        tasks = begin(engine, requests)
        await until(lambda: len(fakes[0].order) == 5)
        await fakes[0].die()
        loading = asyncio.create_task(engine.load_weights(Weights(tiny_tied, 0.5), 2))
        await asyncio.sleep(0.1)
        assert not loading.done()
        assert engine.version == 1
        fakes[0].verbs.clear()
        await fakes[0].start()
        await loading
        assert engine.version == 2
        check(await asyncio.gather(*tasks), requests, {2: 0.5})
        assert fakes[0].verbs.index("/finish_weight_update") < fakes[0].verbs.index("/inference/v1/generate")
        assert [one.split(":")[0] for one in warned] == ["server_lost", "server_returned"]
        assert "wait for it, at most 20 s (rollout.engine.wait)" in warned[0]
        assert "is back and has the weights of version 2" in warned[1]

    tell(tiny_tied, story, servers=1, token_seconds=0.005)


@pytest.mark.slow
def test_a_server_that_hangs_is_given_up_and_comes_back_with_old_weights(tiny_tied: Path) -> None:
    """As SIGSTOP and SIGCONT: connections stay open, nothing is said. Its requests are answered elsewhere and ended on
    it; the weights that it missed are given to it before it gets work."""

    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await engine.load_weights(Weights(tiny_tied, 0.25), 1)
        requests = [request(i, 100) for i in range(6)]
        tasks = begin(engine, requests)
        await until(lambda: len(fakes[1].order) == 3)
        fakes[1].silent = True
        check(await asyncio.gather(*tasks), requests, {1: 0.25})
        assert "gave no response for 0.3 s (rollout.engine.timeout)" in warned[0]
        await engine.load_weights(Weights(tiny_tied, 0.5), 2)
        assert fakes[1].weights == 0.25
        fakes[1].verbs.clear()
        fakes[1].silent = False
        await until(lambda: len(warned) == 2)
        assert "is back and has the weights of version 2" in warned[1]
        assert fakes[1].weights == 0.5
        assert "/inference/v1/generate" not in fakes[1].verbs
        assert len(fakes[1].requests) == 0
        more = [request(i, 10) for i in range(6)]
        check(await asyncio.gather(*begin(engine, more)), more, {2: 0.5})
        assert len(fakes[1].order) == 3 + 3

    tell(tiny_tied, story, token_seconds=0.005, timeout=0.3)


def test_a_server_that_starts_late_is_waited_for(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await fakes[0].start()
        starting = asyncio.create_task(engine.start())
        await until(lambda: fakes[0].label != "default")
        await asyncio.sleep(0.1)
        assert not starting.done()
        await fakes[1].start()
        await starting
        assert fakes[1].label == fakes[0].label

    assert tell(tiny_tied, story, start=False) == []


@pytest.mark.slow
def test_a_server_that_never_starts_is_named_and_the_run_goes_on_without(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await fakes[0].start()
        await engine.start()
        assert warned[0].startswith(f"server_missing: {fakes[1].url} is not there after 0.5 s: ")
        assert "Connect call failed" in warned[0] or "Cannot connect" in warned[0]
        await engine.load_weights(Weights(tiny_tied, 0.5), 4)
        await fakes[1].start()
        await until(lambda: fakes[1].label == fakes[0].label)
        await until(lambda: not fakes[1].paused)
        requests = [request(i, 5) for i in range(4)]
        check(await asyncio.gather(*begin(engine, requests)), requests, {4: 0.5})
        assert len(fakes[1].order) == 2

    tell(tiny_tied, story, start=False, wait=0.5)


def test_with_no_server_the_run_does_not_start(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        with pytest.raises(
            EngineDied, match=rf"no server for 0\.3 s \(rollout\.engine\.wait\): {fakes[0].url}: .*{fakes[1].url}: "
        ):
            await engine.start()  # fmt: skip

    tell(tiny_tied, story, start=False, wait=0.3)


@pytest.mark.slow
def test_a_server_that_does_not_come_back_ends_the_run_with_names_and_ages(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        tasks = begin(engine, [request(i, 500) for i in range(7)])
        await until(lambda: len(fakes[0].order) == 7)
        await fakes[0].die()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            assert isinstance(error, EngineDied)
        said = [str(error) for error in ended]
        assert all(f"no server for 0.5 s (rollout.engine.wait): {fakes[0].url}: " in one for one in said)
        oldest = r"7 requests are pending, the oldest: 'r0' for \d+ s, 'r1' for \d+ s, 'r2'"
        assert any(re.search(oldest, one) for one in said), said
        with pytest.raises(EngineDied, match="0 requests are pending"):
            await engine.load_weights(Weights(tiny_tied, 0.5), 2)

    tell(tiny_tied, story, servers=1, wait=0.5)


ERROR = (500, '{"error": {"message": "EngineGenerateError"}}')


def test_an_error_of_a_living_server_costs_that_request_alone(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        others = [request(i, 60) for i in range(4)]
        tasks = begin(engine, others)
        await until(lambda: len(fakes[0].order) == 4)
        fakes[0].responses = [ERROR]
        one = request(9, 5)
        check([await engine.generate(one)], [one], {-1: FOLDER})
        check(await asyncio.gather(*tasks), others, {-1: FOLDER})
        assert len(fakes[0].order) == 5
        assert len(warned) == 1
        assert warned[0].startswith("server_fault: a call is made again: ")
        assert "status 500: EngineGenerateError" in warned[0]

    tell(tiny_tied, story, servers=1, token_seconds=0.002)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (ERROR, "status 500: EngineGenerateError"),
        ((503, "busy"), "status 503: busy"),
        ((200, "<html>login</html>"), "something else than a JSON object: '<html>login</html>'"),
        ((200, "[1, 2]"), "something else than a JSON object"),
        ((200, "{}"), "responded without 'choices': {}"),
        ((200, '{"choices": []}'), "returned 0 completions to one request"),
        ((200, '{"choices": [{"token_ids": [5]}]}'), "responded to request 'r1#[0-9]+' with nonsense: KeyError"),
        (
            (200, '{"choices": [{"token_ids": [5], "logprobs": {"content": [{"token_id": 6, "logprob": -1.0}]}}]}'),
            "log-probabilities of other tokens than those sampled",
        ),
    ],
)
def test_a_server_that_goes_on_responding_with_errors_ends_the_run(
    tiny_tied: Path, response: tuple[int, str], message: str
) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        fakes[0].responses = [response] * 3
        with pytest.raises(
            EngineError, match=rf"request 'r1' failed 3 times, rollout\.engine\.restarts allows 2.*{message}"
        ):
            await engine.generate(request(1))  # fmt: skip
        one = request(1)
        assert (await engine.generate(one)).ids == ids_of(one)

    tell(tiny_tied, story, servers=1, restarts=2)


def choice(**changes: Any) -> tuple[int, str]:
    whole = {
        "token_ids": [5], "finish_reason": "length", "stop_reason": None,
        "weight_versions": [], "logprobs": {"content": [{"token_id": 5, "logprob": -1.0}]},
    }  # fmt: skip
    return 200, json.dumps({"choices": [whole | changes]})


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (choice(), "1 ids, 1 log-probabilities and versions of 0 tokens"),
        (choice(finish_reason="tool_calls"), "versions of 0 tokens"),
        ((400, '{"error": {"message": "token_ids out of vocabulary"}}'), "refused with status 400: token_ids out of"),
    ],
)
def test_a_response_that_cannot_be_right_is_an_error_at_once(
    tiny_tied: Path, response: tuple[int, str], message: str
) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        fakes[0].responses = [response]
        with pytest.raises(EngineError, match=message):
            await engine.generate(request(1))

    tell(tiny_tied, story, servers=1)


def test_a_log_probability_that_is_no_number_is_not_trained(tiny_tied: Path) -> None:
    """vLLM sends -9999.0 where it has nan or -inf."""

    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        spans = [{"version": fakes[0].label, "start": 0, "end": 1}]
        content = {"content": [{"token_id": 5, "logprob": -9999.0}]}
        fakes[0].responses = [choice(weight_versions=spans, logprobs=content)]
        with pytest.raises(EngineError, match="a log-probability is not finite; the weights of version -1"):
            await engine.generate(request(1))

    tell(tiny_tied, story, servers=1)


def test_a_dead_engine_core_behind_a_living_server_is_a_lost_server(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        fakes[0].dead_core = True
        requests = [request(i, 10) for i in range(6)]
        check(await asyncio.gather(*begin(engine, requests)), requests, {-1: FOLDER})
        assert len(fakes[1].order) >= 6
        assert warned[0].startswith("server_lost: ")
        assert "EngineCore encountered an issue" in warned[0]

    tell(tiny_tied, story)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model_config", "model", "/models/another", "serves the model '/models/another', this run needs '"),
        ("model_config", "dtype", "torch.bfloat16", "has dtype 'bfloat16', this run needs 'float32'"),
        ("model_config", "max_model_len", 9_999, "has max_model_len 9999, this run needs 10000 or more"),
        ("model_config", "logprobs_mode", "raw_logprobs", "has logprobs_mode 'raw_logprobs', this run needs"),
        ("model_config", "generation_config", "auto", "has generation_config 'auto'"),
        ("scheduler_config", "policy", "fcfs", "has scheduling_policy 'fcfs', this run needs 'priority'"),
        ("scheduler_config", "enable_chunked_prefill", True, "has enable_chunked_prefill True"),
        ("parallel_config", "worker_extension_cls", "", "has worker_extension_cls ''"),
        ("weight_transfer_config", "backend", "nccl", "has weight_transfer_config.backend 'nccl'"),
    ],
)
def test_a_server_that_cannot_serve_this_run_is_refused_by_name(
    tiny_tied: Path, section: str, key: str, value: Any, message: str
) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        fakes[1].config[section][key] = value
        for one in fakes:
            await one.start()
        with pytest.raises(EngineError) as refused:
            await engine.start()
        assert str(refused.value).startswith(f"{fakes[1].url} {message}")
        assert str(refused.value).endswith("start it by `rlvr serve` with this run's recipe")

    tell(tiny_tied, story, start=False)


def test_a_server_that_comes_back_as_another_stays_away(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await fakes[1].die()
        fakes[1].config["model_config"]["dtype"] = "torch.bfloat16"
        await fakes[1].start()
        await until(lambda: len(warned) == 2)
        assert warned[0].startswith("server_lost: ")
        assert warned[1].startswith(f"server_refused: {fakes[1].url} has dtype 'bfloat16'")
        await asyncio.gather(*begin(engine, [request(i, 5) for i in range(4)]))
        assert fakes[1].order == []

    tell(tiny_tied, story)


def test_weights_of_another_run_are_replaced_at_the_start(tiny_tied: Path) -> None:
    """A server that a run has used before says a version of that run; equal numbers would prove nothing."""

    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        for one in fakes:
            await one.start()
            one.label, one.weights, one.paused = "-1:deadbeef:1", 7.0, True
        await engine.start()
        assert all(one.weights != 7.0 and one.label.startswith("-1:") for one in fakes)
        assert fakes[0].label != "-1:deadbeef:1"
        assert not any(one.paused for one in fakes)
        assert all("/abort_requests" in one.verbs for one in fakes)  # of what that run left in flight

    tell(tiny_tied, story, start=False)


def test_a_server_replaced_unseen_gives_no_token_to_the_learner(tiny_tied: Path) -> None:
    """It responds from weights that nobody sent before anyone has asked for its version: the response is not used."""

    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await engine.load_weights(Weights(tiny_tied, 0.25), 1)
        true, fakes[0].label, fakes[0].weights = fakes[0].label, "default", 9.0
        fakes[0].hides_version = true
        task = begin(engine, [request(0, 20)])
        await until(lambda: bool(warned))
        fakes[0].hides_version = ""
        check(await asyncio.gather(*task), [request(0, 20)], {1: 0.25})
        assert "sampled with weights 'default', which this run did not send" in warned[0]

    tell(tiny_tied, story, servers=1)


def test_a_server_with_other_weights_is_noticed_without_a_request(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await engine.load_weights(Weights(tiny_tied, 0.25), 1)
        fakes[1].label, fakes[1].weights = "default", 9.0
        await until(lambda: len(warned) == 2)
        assert "has weights 'default' instead of '1:" in warned[0]
        assert fakes[1].weights == 0.25

    tell(tiny_tied, story)


def test_a_cancelled_request_ends_on_the_server(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        tasks = begin(engine, [request(i, 5000) for i in range(4)])
        await until(lambda: sum(len(one.order) for one in fakes) == 4)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)
        await until(lambda: sum(len(one.aborted) for one in fakes) == 4)
        assert engine._pending == set()

    assert tell(tiny_tied, story) == []


def test_an_interrupt_ends_everything_with_what_there_is(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        requests = [request(i, 2000) for i in range(6)]
        tasks = begin(engine, requests)
        await until(lambda: all(len(one.order) == 3 for one in fakes))
        await asyncio.sleep(0.02)
        await engine.interrupt()
        for one, asked in zip(await asyncio.gather(*tasks), requests, strict=True):
            assert one.finish_reason == "abort"
            assert 0 < len(one.ids) < 2000
            assert one.ids == ids_of(asked)[: len(one.ids)]
        await engine.interrupt()  # nothing in flight
        late = begin(engine, [request(0, 5)])
        assert (await late[0]).finish_reason == "length"

    tell(tiny_tied, story, token_seconds=0.005)


def test_an_interrupt_reaches_requests_that_are_held_or_wait_for_a_server(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        async with engine.hold():
            tasks = begin(engine, [request(i, 50) for i in range(4)])
            await asyncio.sleep(0)
            await engine.interrupt()
        for one in await asyncio.gather(*tasks):
            assert (one.ids, one.finish_reason) == ((), "abort")
        await fakes[0].die()
        waiting = begin(engine, [request(i, 50) for i in range(4)])
        await until(lambda: bool(warned))
        await engine.interrupt()
        for one in await asyncio.gather(*waiting):
            assert (one.ids, one.text, one.finish_reason) == ((), "", "abort")

    tell(tiny_tied, story, servers=1)


@pytest.mark.slow
def test_requests_in_flight_carry_the_version_of_each_token(tiny_tied: Path) -> None:
    """Theorem: over any syncs in flight, each token's log-probability is that of the weights whose version it has."""

    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await engine.load_weights(Weights(tiny_tied, 0.0), 0)
        requests = [request(i, 120) for i in range(6)]
        tasks = begin(engine, requests)
        await until(lambda: all(len(one.order) == 3 for one in fakes))
        for version in (1, 2, 3):
            await asyncio.sleep(0.03)
            await engine.load_weights(Weights(tiny_tied, version / 8), version)
        completions = await asyncio.gather(*tasks)
        check(completions, requests, {version: version / 8 for version in range(4)})
        for one in completions:
            assert sorted(set(one.weight_version)) == [0, 1, 2, 3]
            assert list(one.weight_version) == sorted(one.weight_version)
        salts = {body["cache_salt"].split(":")[0] for body in fakes[0].bodies}
        assert salts == {"0"}
        for fake in fakes:
            verbs = [one for one in fake.verbs if "weight" in one or one in ("/pause", "/resume")]
            last = verbs[-verbs[::-1].index("/pause") - 1 :]
            kept = [one for one in last if one not in ("/weight_info",)]
            assert kept[:5] == ["/pause", "/init_weight_transfer_engine", "/start_weight_update", "/update_weights",
                                "/finish_weight_update"]  # fmt: skip
            assert kept[5] == "/resume"

    assert tell(tiny_tied, story, token_seconds=0.004) == []


def test_a_server_that_reports_another_version_after_an_update_stops_the_run(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        fakes[1].hides_version = fakes[1].label
        with pytest.raises(EngineError, match=rf"{fakes[1].url} reports weights '-1:.*' after an update to '5:"):
            await engine.load_weights(Weights(tiny_tied, 0.5), 5)
        assert engine.version == -1

    tell(tiny_tied, story)


class Elsewhere(FileTransport):
    """Another's transport whose servers have other folders than the run."""

    def __init__(self, other: Any, folder: Path) -> None:
        super().__init__(other._manifest, other._dtype, None)
        self._other, self._elsewhere = other, str(folder / "elsewhere")

    def stage(self, tensors: Any) -> None:
        super().stage(tensors)
        self._path = self._elsewhere

    def close(self) -> None:
        super().close()
        self._other.close()


def test_a_file_that_a_server_cannot_read_breaks_nothing(tiny_tied: Path, tmp_path: Path) -> None:
    """The question comes before the update begins: the server keeps its weights, and the error says what to set."""

    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        assert [one.suffix for one in (tmp_path / "shared").iterdir()] == [".safetensors"]
        pool = engine._pool
        true = pool._transport._path  # type: ignore[attr-defined]
        pool._transport.stage = lambda tensors: setattr(pool._transport, "_path", str(tmp_path / "elsewhere"))  # type: ignore[method-assign]
        with pytest.raises(EngineError, match=r"No such file.*name a folder that they share as rollout"):
            await engine.load_weights(Weights(tiny_tied, 0.5), 5)
        assert not any(one.updating for one in fakes)
        pool._transport._path = true  # type: ignore[attr-defined]

    tell(tiny_tied, story, folder=tmp_path / "shared")
    assert list((tmp_path / "shared").iterdir()) == []


def test_wrong_weights_are_refused_before_any_server_hears_of_them(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await engine.load_weights(Weights(tiny_tied, 0.25), 1)
        with pytest.raises(EngineError, match="weights are missing"):
            await engine.load_weights(list(Weights(tiny_tied, 0.5))[1:], 2)
        await fakes[1].die()
        await fakes[1].start()
        await until(lambda: fakes[1].label == fakes[0].label and not fakes[1].paused)
        requests = [request(i, 5) for i in range(4)]
        check(await asyncio.gather(*begin(engine, requests)), requests, {1: 0.25})
        assert engine.version == 1

    tell(tiny_tied, story)


@pytest.mark.parametrize("path", ["/start_weight_update", "/update_weights", "/finish_weight_update", "/pause"])
def test_a_server_that_dies_while_it_gets_weights_is_lost_like_any_other(tiny_tied: Path, path: str) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        requests = [request(i, 60) for i in range(6)]
        tasks = begin(engine, requests)
        await until(lambda: all(len(one.order) == 3 for one in fakes))
        fakes[1].dies_at = path
        await engine.load_weights(Weights(tiny_tied, 0.5), 1)
        check(await asyncio.gather(*tasks), requests, {-1: FOLDER, 1: 0.5})
        assert warned[0].startswith(f"server_lost: {fakes[1].url}")
        await fakes[1].start()
        await until(lambda: fakes[1].label == fakes[0].label)
        assert fakes[1].weights == 0.5

    tell(tiny_tied, story, token_seconds=0.004)


def test_a_server_stopped_in_the_middle_of_an_update_must_start_anew(tiny_tied: Path) -> None:
    """It hangs between start and finish, and wakes: half of its weights are old. No update may begin there, and it
    gets no work until its process is another."""

    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        original = fakes[1]._update_weights

        async def hang(request: Any) -> Any:
            fakes[1].silent = True
            return await original(request)

        await fakes[1].die()
        fakes[1]._update_weights = hang  # type: ignore[method-assign]
        await fakes[1].start()
        await until(lambda: len(warned) == 1 and fakes[1].silent)
        await engine.load_weights(Weights(tiny_tied, 0.5), 1)
        fakes[1].silent = False
        await until(lambda: any("was lost in the middle of an update; start it again" in one for one in warned))
        await asyncio.gather(*begin(engine, [request(i, 5) for i in range(4)]))
        assert fakes[1].order == []
        fakes[1]._update_weights = original  # type: ignore[method-assign]
        await fakes[1].die()
        await fakes[1].start()
        await until(lambda: fakes[1].label == fakes[0].label)
        assert fakes[1].weights == 0.5

    tell(tiny_tied, story, timeout=0.3)


def test_every_server_computes_all_logprobs_and_all_must_agree(tiny_tied: Path) -> None:
    async def story(engine: VllmServers, fakes: list[ScriptedServer], warned: Warned) -> None:
        await engine.load_weights(Weights(tiny_tied, 0.5), 1)
        assert await engine.logprobs([[5], [5, 6], [5, 6, 7]]) == [[0.0], [0.0, -1.5], [0.0, -1.5, -1.5]]
        assert len(fakes[0].bodies) == len(fakes[1].bodies) == 2
        assert [one["sampling_params"]["logprob_token_ids"] for one in fakes[0].bodies] == [[6, 6], [7, 7]]
        fakes[1].weights = 0.0
        with pytest.raises(EngineError, match=rf"{fakes[0].url} and {fakes[1].url} disagree.*0\.50 nats apart"):
            await engine.logprobs([[5, 6]])
        await fakes[1].die()
        assert await engine.logprobs([[5, 6]]) == [[0.0, -1.5]]
        with pytest.raises(EngineError, match="sequence 1 has 0 tokens"):
            await engine.logprobs([[5], []])

    tell(tiny_tied, story)


def test_an_engine_that_is_not_running_says_so(tiny_tied: Path) -> None:
    engine = VllmServers(VllmSettings(model=str(tiny_tied)), ["http://127.0.0.1:1"])
    with pytest.raises(EngineError, match=r"not in use; call start\(\) first"):
        asyncio.run(engine.generate(request(0)))
    asyncio.run(engine.close())
    asyncio.run(engine.close())


def test_a_server_that_fails_while_it_receives_ends_the_broadcast() -> None:
    """The broadcast would wait for ever for a peer that is gone: whoever hears of it first leaves the group."""

    class Gone:
        async def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
            raise ServerLost("http://there gave no answer for 120 s")

    left: list[str] = []

    async def story() -> _Everywhere:
        client = _Everywhere(
            [Gone()], [1], "7:run:1", asyncio.get_running_loop(), on_failure=lambda: left.append("group")  # type: ignore[list-item]
        )  # fmt: skip
        with pytest.raises(ServerLost):
            await asyncio.to_thread(client.update_weights, {})
        return client

    client = asyncio.run(story())
    assert left == ["group"]
    assert isinstance(client.failure, ServerLost)


def test_the_learners_address_is_the_one_that_servers_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what its own name stands for, which is 127.0.1.1 on Debian."""
    assert learner_address(["http://127.0.0.1:1", "http://127.0.0.1:2"]) == "127.0.0.1"
    monkeypatch.setattr(transports, "address_towards", lambda host: {"a": "10.0.0.1", "b": "10.1.0.1"}[host])
    with pytest.raises(EngineError, match=r"rollout.engine.address: .*10\.0\.0\.1 from http://a:1.*name one"):
        learner_address(["http://a:1", "http://b:1"])


def test_nccl_sends_weights_in_the_order_in_which_they_come(tiny_tied: Path) -> None:
    """In the order of the model folder, which is by name, layer 10 comes before layer 2: what comes earlier than it is
    wanted would wait on the GPU."""
    manifest = read_manifest(tiny_tied)
    weights = list(reversed(list(stored(manifest, tiny_tied))))
    source = transports._source(manifest, torch.float32, weights)
    assert [one.name for one in source.metadata()] == [name for name, _ in weights]
    once = transports._source(manifest, torch.float32, iter(weights))
    assert [one.name for one in once.metadata()] == list(manifest.shapes)


def test_nccl_ranks_of_the_servers_follow_each_other() -> None:
    """vLLM's trainer hands one init info to a client; ours gives the servers' workers disjoint ranks behind rank 0."""

    class Recorded:
        def __init__(self) -> None:
            self.calls: list[tuple[str, Any]] = []
            self.is_half_updated = False

        async def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
            self.calls.append((path, body))
            return {}

    async def story() -> list[Recorded]:
        servers = [Recorded(), Recorded(), Recorded()]
        client = _Everywhere(servers, [4, 1, 2], "7:run:1", asyncio.get_running_loop())  # type: ignore[arg-type]
        await asyncio.to_thread(client.init_weight_transfer_engine, {"world_size": 8, "rank_offset": 1})
        await asyncio.to_thread(client.start_weight_update)
        assert all(one.is_half_updated for one in servers)
        await asyncio.to_thread(client.finish_weight_update)
        assert not any(one.is_half_updated for one in servers)
        return servers

    servers = asyncio.run(story())
    assert [one.calls[0][1]["init_info"] for one in servers] == [
        {"world_size": 8, "rank_offset": 1}, {"world_size": 8, "rank_offset": 5}, {"world_size": 8, "rank_offset": 6},
    ]  # fmt: skip
    assert servers[2].calls[-1] == ("/finish_weight_update", {"weight_version": "7:run:1"})
