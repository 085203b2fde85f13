"""An engine beside each rank, from one `accelerate launch`: the same samples as from one engine, whoever dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlvr.runlog.run_log import read_metrics
from tests.runs import Workspace, assert_trained, family, launcher

pytestmark = pytest.mark.slow

STEPS = 4
ENGINE = {
    "type": "vllm", "dtype": "float32", "max_num_seqs": 8, "kv_cache_gib": 0.05, "threads": 1, "enforce_eager": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path) -> Workspace:
    work = Workspace(tmp_path_factory.mktemp("devices") / "work", tiny_tied)
    work.recipe["run"]["steps"] = STEPS
    work.recipe["rollout"] |= {"engine": ENGINE, "self_test": True, "prompts_per_step": 8}
    return work


def samples(work: Workspace, name: str) -> list[tuple[Any, ...]]:
    """What was sampled in each step for each problem, and what it was worth."""
    lines = work.rollouts(name)
    return sorted((line["step"], line["problem_id"], line["sample"], line["text"], line["reward"]) for line in lines)


def kill_an_engine(work: Workspace, process_family: list[psutil.Process]) -> str:
    """SIGKILL to one server of the run; its port."""
    servers = [one for one in process_family if one.is_running() and "--port" in one.cmdline()]
    victim = next(one for one in servers if one.cmdline()[1:3] == ["-m", "vllm.entrypoints.launchers.api_server.entry"])
    port = victim.cmdline()[victim.cmdline().index("--port") + 1]
    os.kill(victim.pid, signal.SIGKILL)
    return port


def test_each_rank_has_an_engine_and_the_samples_are_those_of_one(work: Workspace) -> None:
    """In float32: completions and rewards of every step equal those of one engine to the last digit, although each of
    two ranks learns from half of them; both engines follow the learner, and both sample in every step."""
    assert work.run("name=one") == 0
    process = work.start("name=each", "rollout.engine.devices=each", launcher=launcher("cpu2"))
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    lines = [line for line in read_metrics(work.results("each")) if line["step"] > 0]
    assert_trained(lines)
    assert len(lines) == STEPS
    for line in lines:
        shares = [line["engine/share/0"], line["engine/share/1"]]
        assert min(shares) > 0.2
        assert sum(shares) == pytest.approx(1.0)
    assert out.count("engine of this run: http://127.0.0.1:") == 2
    assert samples(work, "each") == samples(work, "one")
    ones = [line["reward/mean"] for line in read_metrics(work.results("one")) if line["step"] > 0]
    assert [line["reward/mean"] for line in lines] == ones


def test_an_engine_that_is_killed_comes_back_and_nothing_is_lost(work: Workspace) -> None:
    """SIGKILL to one of two engines in the middle of a run: it is started again and gets the weights of the moment, and
    every group of every step is there."""
    process = work.start(
        "name=killed",
        "rollout.engine.devices=[0, 1]",
        f"run.steps={STEPS + 2}",
        "rollout.max_new_tokens=60",
        "rollout.self_test=false",
    )
    metrics = work.results("killed") / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") >= 1):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill_an_engine(work, family(process))
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert "server_lost" in out + err
    lines = [line for line in read_metrics(work.results("killed")) if line["step"] > 0]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 3))
    assert len(work.rollouts("killed")) == (STEPS + 2) * 8 * 4
