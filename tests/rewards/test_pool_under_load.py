"""The pool's proof, small: a twentieth of the answers hangs, crashes or eats memory, and nothing is lost or left.

The full one, ten thousand gradings with figures, is benchmarks/grading_pool.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.grading_pool import memory, workers_of_this_process
from rewards import Outcome, Verdict
from rewards.pool import GradingPool, VerifierSpec

BAD = {"hang": Outcome.TIMEOUT, "exit": Outcome.CRASHED, "memory": Outcome.CRASHED, "huge power": Outcome.TIMEOUT}
SPEC = VerifierSpec("pool_verifiers:Naughty")
RANK = """
import json, sys
from rewards.pool import GradingPool, VerifierSpec
with GradingPool({"naughty": VerifierSpec("pool_verifiers:Naughty")}, timeout=0.5, memory_mb=256) as pool:
    orders = [sys.argv[1] if index == 20 else f"{index}" for index in range(40)]
    print(json.dumps([verdict.outcome for verdict in pool.grade_many([("naughty", order, 1) for order in orders])]))
"""


def orders(count: int) -> list[str]:
    """Each twentieth is a bad one, of each kind in turn."""
    names = list(BAD)
    return [names[i // 20 % len(names)] if i % 20 == 10 else f"text {i}" for i in range(count)]


def check(asked: list[str], verdicts: list[Verdict]) -> None:
    assert len(verdicts) == len(asked)
    for order, verdict in zip(asked, verdicts, strict=True):
        assert verdict.outcome is BAD.get(order, Outcome.CORRECT)
        if order not in BAD:
            assert verdict.detail["completion"] == order


@pytest.mark.slow
def test_a_twentieth_of_bad_answers_from_three_callers_loses_nothing() -> None:
    """Main thread, another thread and an asyncio loop at once: verdicts in order, the same number of workers, no more
    memory in the parent or in a worker than 20 MiB, and no process at the end."""
    mine, threads, loops = orders(400), orders(200), orders(200)
    found: dict[str, list[Verdict]] = {}

    async def gather(pool: GradingPool) -> None:
        found["loop"] = list(await asyncio.gather(*(pool.grade("naughty", order, 1) for order in loops)))

    with GradingPool({"naughty": SPEC}, workers=2, timeout=0.5, memory_mb=256) as pool:
        check(orders(40), pool.grade_many([("naughty", order, 1) for order in orders(40)]))
        before = memory()
        others = [
            threading.Thread(
                target=lambda: found.update(thread=pool.grade_many([("naughty", order, 1) for order in threads]))
            ),
            threading.Thread(target=lambda: asyncio.run(gather(pool))),
        ]
        for other in others:
            other.start()
        check(mine, pool.grade_many([("naughty", order, 1) for order in mine]))
        for other in others:
            other.join()
        after, at_work, stats = memory(), workers_of_this_process(), pool.stats()
    check(threads, found["thread"])
    check(loops, found["loop"])
    assert stats.graded == 840
    assert (stats.timeouts, stats.crashes, stats.errors) == (21, 21, 0)
    assert 2 <= len(at_work) <= 3  # the workers and the spare
    assert not [process for process in at_work if process.is_running()]
    assert after[0] - before[0] < 20
    assert after[1] - before[1] < 20


@pytest.mark.slow
def test_several_ranks_have_pools_of_their_own() -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1])])
    ranks = []
    for rank, order in enumerate(("hang", "exit")):
        environment = {**os.environ, "PYTHONPATH": path, "RANK": str(rank), "WORLD_SIZE": "2"}
        command = [sys.executable, "-c", RANK, order]
        ranks.append((order, subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)))
    for order, process in ranks:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        wanted = [BAD[order] if index == 20 else Outcome.CORRECT for index in range(40)]
        assert json.loads(said) == wanted
