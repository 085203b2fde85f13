"""Two real `vllm serve` processes as one engine, started by it: the same numbers as transformers, whatever happens."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rlvr.engines.servers.serve import ServedChild
from rlvr.engines.servers.servers import VllmServers
from rlvr.engines.vllm.settings import FILE_BACKEND, VllmSettings
from rlvr.records import Completion
from rlvr.rollout.background import Background
from rlvr.sync.freshness import distance
from tests.engine_sides import Learner, Sync
from tests.engines.test_vllm_engine import FREE, LONG, largest_difference, prompts, requests

pytestmark = pytest.mark.slow

WARNED: list[str] = []


@pytest.fixture
def servers(tiny_tied: Path, background: Background, tmp_path: Path) -> Iterator[VllmServers]:
    settings = VllmSettings(
        model=str(tiny_tied), dtype="float32", max_model_len=256, max_num_seqs=8, kv_cache_gib=0.05, threads=1
    )
    children = [ServedChild(settings, FILE_BACKEND, "127.0.0.1", tmp_path / f"server_{i}.log") for i in range(2)]
    engine = VllmServers(settings, children=children, wait=540.0, warn=lambda name, text: WARNED.append(name))
    try:
        background.wait(engine.start())
        yield engine
    finally:
        background.wait(engine.close())


def processes(child: ServedChild) -> list[psutil.Process]:
    """The API server and its engine core."""
    assert child._process is not None
    server = psutil.Process(child._process.pid)
    return [server, *server.children(recursive=True)]


def agree(learner: Learner, asked: list[list[int]], completions: list[Completion], within: float = 1e-4) -> None:
    truth = learner.logprobs([[*prompt, *one.ids] for prompt, one in zip(asked, completions, strict=True)])
    sampled = [logprobs[len(prompt) :] for prompt, logprobs in zip(asked, truth, strict=True)]
    assert largest_difference([list(one.behaviour_logprobs) for one in completions], sampled) <= within


def refuse_what_a_page_could_send(servers: VllmServers) -> None:
    """A cross-site POST of plain text, with which one call of `get_model` would end the engine's output; and a name
    that somebody points at this machine."""
    for child in servers._children:
        for headers, status in ({"Content-Type": "text/plain"}, 401), ({"Host": "evil.example"}, 421):
            body = b'{"method": "get_model"}'
            request = urllib.request.Request(f"{child.url}/collective_rpc", body, headers, method="POST")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=30)
            assert refused.value.code == status


def test_the_life_of_two_servers(servers: VllmServers, background: Background, tied_learner: Learner) -> None:
    """Float32: engine = learner to 1e-4 at the folder's weights and after a sync that moves every group of a tied one;
    a held batch repeats to the last bit; versions in flight; one server killed while it samples."""
    sync, learner = Sync(servers, background), tied_learner
    learner.reset()
    assert servers.version == -1
    refuse_what_a_page_could_send(servers)
    assert largest_difference(sync.logprobs(prompts(6)), learner.logprobs(prompts(6))) <= 1e-4
    whole = [3 + i % 90 for i in range(256)]
    assert largest_difference(sync.logprobs([whole, [5]]), learner.logprobs([whole, [5]])) <= 1e-4

    before = learner.logprobs(prompts(6))
    learner.perturb(learner.parameters, amplitude=0.8)
    sync.load_weights(learner.weights(), 1)
    assert distance(learner.logprobs(prompts(6)), before) >= 0.5
    assert largest_difference(sync.logprobs(prompts(6)), learner.logprobs(prompts(6))) <= 1e-4
    batch = requests(24, FREE)  # more than both have slots
    first, second = sync.batch(batch), sync.batch(batch)
    assert first == second
    agree(learner, prompts(24), first)
    assert {version for one in first for version in one.weight_version} == {1}

    old = learner.logprobs
    learner.perturb(learner.parameters, amplitude=1.0, seed=2)
    changed = {name: tensor.clone() for name, tensor in learner.parameters.items()}
    learner.reset()
    sync.load_weights(learner.weights(), 2)

    async def update_in_flight() -> list[Completion]:
        tasks = [asyncio.create_task(servers.generate(one)) for one in requests(6, LONG)]
        await asyncio.sleep(0.1)
        await servers.load_weights(changed.items(), 3)
        return list(await asyncio.gather(*tasks))

    mixed = sync.background.wait(update_in_flight())
    assert {tuple(sorted(set(one.weight_version))) for one in mixed} <= {(2,), (2, 3), (3,)}
    assert any(set(one.weight_version) == {2, 3} for one in mixed)
    for prompt, one in zip(prompts(6), mixed, strict=True):
        assert list(one.weight_version) == sorted(one.weight_version)
        split = one.weight_version.index(3) if 3 in one.weight_version else len(one.ids)
        truth = old([[*prompt, *one.ids]])[0][len(prompt) :]
        apart = [abs(a - b) for a, b in zip(truth, one.behaviour_logprobs, strict=True)]
        assert max(apart[:split], default=0.0) <= 1e-4
        if split < len(one.ids) - 20:
            assert sum(apart[split:]) / len(apart[split:]) > 0.5

    learner.model.load_state_dict(changed, strict=False)
    victim = processes(servers._children[1])
    assert len(victim) >= 2

    async def kill_one() -> list[Completion]:
        tasks = [asyncio.create_task(servers.generate(one)) for one in requests(16, LONG)]
        while not all(one.in_flight for one in servers._pool.servers):
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        victim[0].kill()
        return list(await asyncio.gather(*tasks))

    completions = sync.background.wait(kill_one())
    agree(learner, prompts(16), completions, within=2e-3)  # 200 tokens, weights twice as large; others are 0.5 away
    assert all(len(one.ids) == 200 and set(one.weight_version) == {3} for one in completions)
    assert "server_lost" in WARNED
    deadline = time.monotonic() + 60
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in victim[1:]):
        assert time.monotonic() < deadline, "the engine core outlived its server"
        time.sleep(0.05)
    left = processes(servers._children[0])
    background.wait(servers.close())
    psutil.wait_procs(left, timeout=60)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in left)
