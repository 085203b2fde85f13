"""The pool: one verdict for every input, in order, whatever the verifiers do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from rewards import Outcome
from rewards.pool import GradingPool, VerifierSpec, WorkerStartError

SPECS = {
    "naughty": VerifierSpec("pool_verifiers:Naughty"),
    "environment": VerifierSpec("pool_verifiers:Environment"),
    "no_verdict": VerifierSpec("pool_verifiers:NoVerdict"),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(SPECS, timeout=0.5, memory_mb=256) as opened:
        yield opened


def _one(pool: GradingPool, completion: str) -> tuple[str, float | None]:
    (verdict,) = pool.grade_many([("naughty", completion, "r")])
    return verdict.outcome, verdict.score


def test_verdicts_come_in_order_with_their_details(pool: GradingPool) -> None:
    verdicts = pool.grade_many([("naughty", f"text {i}", {"i": i}) for i in range(500)])
    assert [verdict.detail["completion"] for verdict in verdicts] == [f"text {i}" for i in range(500)]
    assert [verdict.detail["reference"]["i"] for verdict in verdicts] == list(range(500))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["hang", "spin", "huge power"])
def test_what_does_not_end_is_killed_and_gets_the_lowest_score(pool: GradingPool, order: str) -> None:
    start = time.monotonic()
    assert _one(pool, order) == (Outcome.TIMEOUT, -1.0)
    assert time.monotonic() - start < 10
    assert _one(pool, "fine") == (Outcome.CORRECT, 1.0)


@pytest.mark.parametrize("order", ["exit", "abort", "memory", "recursion"])
def test_what_brings_the_process_down_is_crashed(pool: GradingPool, order: str) -> None:
    assert _one(pool, order) == (Outcome.CRASHED, -1.0)
    assert _one(pool, "fine") == (Outcome.CORRECT, 1.0)


def test_a_verifier_that_raises_judges_nobody(pool: GradingPool) -> None:
    (verdict,) = pool.grade_many([("naughty", "raise", "r")])
    assert (verdict.outcome, verdict.score) == (Outcome.ERROR, None)
    assert "a bug of the verifier" in verdict.detail["reason"]
    assert "pool_verifiers.py" in verdict.detail["traceback"]


def test_a_reference_found_bad_while_grading_has_no_score(pool: GradingPool) -> None:
    assert _one(pool, "bad reference") == (Outcome.BAD_REFERENCE, None)


def test_what_is_no_verdict_is_an_error_and_details_are_made_json(pool: GradingPool) -> None:
    wrong, long = pool.grade_many([("no_verdict", "x", 1), ("no_verdict", "detail", 1)])
    assert wrong.outcome is Outcome.ERROR
    assert "must return a Verdict" in wrong.detail["reason"]
    assert long.detail["object"] == "<class 'object'>"
    assert len(long.detail["big"]) < 20_000


def test_prints_of_the_verifier_do_not_reach_the_protocol(pool: GradingPool) -> None:
    verdicts = pool.grade_many([("naughty", order, 1) for order in ("print", "read", "fine", "print")])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT] * 4


@pytest.mark.parametrize("text", ["\ud800 lone", "\x00", "e\u0301\U0001f600", "x" * 3_000_000, ""])
def test_any_text_travels_unchanged(pool: GradingPool, text: str) -> None:
    (verdict,) = pool.grade_many([("naughty", text, None)])
    assert verdict.outcome is Outcome.CORRECT
    if len(text) < 1000:
        assert verdict.detail["completion"] == text


@pytest.mark.slow
def test_references_are_checked_in_the_workers_too(pool: GradingPool) -> None:
    reasons = pool.check_references([("naughty", r) for r in ("good", "bad", "hang", "memory", "raise")])
    assert reasons[0] is None
    assert reasons[1] == "this one is bad"
    assert "did not finish within 0.5 s" in str(reasons[2])
    assert "MemoryError" in str(reasons[3])
    assert "KeyError" in str(reasons[4])


def test_a_bare_answer_goes_to_grade_answer(pool: GradingPool) -> None:
    assert pool.submit("naughty", "5", "5", kind="answer").result().verdict.outcome is Outcome.PARTIAL
    refused = pool.submit("environment", "5", "5", kind="answer").result().verdict
    assert refused.outcome is Outcome.ERROR
    assert "no grade_answer" in refused.detail["reason"]


def test_a_worker_is_no_rank_and_imports_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    with GradingPool({"environment": SPECS["environment"]}) as ranked:
        (verdict,) = ranked.grade_many([("environment", "", None)])
    assert verdict.detail["names"] == []
    assert verdict.detail["modules"] == []


@pytest.mark.slow
def test_threads_and_asyncio_loops_share_a_pool_under_attack(pool: GradingPool) -> None:
    """Every caller gets its own verdicts, in its own order, while others' answers hang and crash."""
    orders = ["a", "hang", "b", "exit", "c", "memory", "d"]
    wanted = ["CORRECT", "TIMEOUT", "CORRECT", "CRASHED", "CORRECT", "CRASHED", "CORRECT"]
    results: dict[str, list[str]] = {}

    async def gather(name: str) -> None:
        verdicts = await asyncio.gather(*(pool.grade("naughty", order, name) for order in orders))
        results[name] = [verdict.outcome for verdict in verdicts]

    def block(name: str) -> None:
        results[name] = [v.outcome for v in pool.grade_many([("naughty", order, name) for order in orders])]

    threads = [
        threading.Thread(target=block, args=("thread",)),
        threading.Thread(target=lambda: asyncio.run(gather("loop in a thread"))),
    ]
    for thread in threads:
        thread.start()
    asyncio.run(gather("main loop"))
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(("thread", "loop in a thread", "main loop"), wanted)


@pytest.mark.slow
def test_a_hanging_answer_delays_others_by_its_limit_at_most() -> None:
    with GradingPool({"naughty": SPECS["naughty"]}, workers=2, timeout=5.0) as pool:
        pool.grade_many([("naughty", "warm", 1)] * 4)
        hanging = pool.submit("naughty", "hang", 1)
        start = time.monotonic()
        pool.grade_many([("naughty", "fine", 1)] * 20)
        assert time.monotonic() - start < 4.5  # the other worker takes them: nobody waits for the limit
        assert not hanging.done()
        assert hanging.result().verdict.outcome is Outcome.TIMEOUT


@pytest.mark.slow
def test_thousand_gradings_with_bad_ones_among_them_lose_nothing() -> None:
    """A small copy of the acceptance run: every verdict present and right, pool size unchanged."""
    orders = ["hang" if i % 100 == 50 else "exit" if i % 100 == 70 else f"text {i}" for i in range(600)]
    others = _children()
    with GradingPool({"naughty": SPECS["naughty"]}, workers=2, timeout=0.3) as pool:
        verdicts = pool.grade_many([("naughty", order, 1) for order in orders])
        stats = pool.stats()
        children = _children() - others
    assert len(verdicts) == len(orders)
    for order, verdict in zip(orders, verdicts, strict=True):
        wanted = {"hang": Outcome.TIMEOUT, "exit": Outcome.CRASHED}.get(order, Outcome.CORRECT)
        assert verdict.outcome is wanted
        if wanted is Outcome.CORRECT:
            assert verdict.detail["completion"] == order
    assert (stats.graded, stats.timeouts, stats.crashes) == (600, 6, 6)
    assert stats.retries == 6  # each crash was tried once more, in case the worker was a bystander
    assert len(children) <= 3  # two workers and the spare
    assert not [pid for pid in children if _is_alive(pid)]


@pytest.mark.slow
def test_counters_tell_what_happened() -> None:
    with GradingPool({"naughty": SPECS["naughty"]}, timeout=0.2) as pool:
        pool.grade_many([("naughty", order, 1) for order in ("a", "hang", "raise", "exit")])
        stats = pool.stats()
    assert (stats.graded, stats.timeouts, stats.errors, stats.crashes) == (4, 1, 1, 1)
    assert stats.respawns == 3  # the hang, the exit, and the exit tried again
    assert stats.busy_seconds >= 0.2


@pytest.mark.slow
def test_a_verifier_that_needs_longer_gets_it_unless_its_spec_says_otherwise() -> None:
    slow = "pool_verifiers:Slow"
    specs = {"slow": VerifierSpec(slow), "short": VerifierSpec(slow, timeout=0.1)}
    with GradingPool(specs, timeout=0.2) as pool:
        verdicts = pool.grade_many([("slow", "", 1), ("short", "", 1)])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT, Outcome.TIMEOUT]


def test_closing_ends_what_waits_with_an_error_and_kills_everything() -> None:
    others = _children()
    pool = GradingPool({"naughty": SPECS["naughty"]}, timeout=60)
    pool.grade_many([("naughty", "warm", 1)])
    children = _children() - others
    futures = [pool.submit("naughty", "hang", 1) for _ in range(5)]
    time.sleep(0.1)
    pool.close()
    pool.close()
    for future in futures:
        with pytest.raises(RuntimeError, match="closed"):
            future.result(timeout=5)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit("naughty", "x", 1)
    assert children
    assert not [pid for pid in children if _is_alive(pid)]


@pytest.mark.slow
def test_a_cancelled_grading_is_dropped_and_the_others_go_on(pool: GradingPool) -> None:
    async def run() -> list[str]:
        tasks = [asyncio.ensure_future(pool.grade("naughty", order, 1)) for order in ("hang", "x", "y", "z")]
        await asyncio.sleep(0.05)
        tasks[2].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return [str(getattr(result, "outcome", type(result).__name__)) for result in results]

    assert asyncio.run(run()) == ["TIMEOUT", "CORRECT", "CancelledError", "CORRECT"]


def test_workers_die_with_their_parent() -> None:
    """Also with one that is killed and cleans nothing up."""
    program = (
        "import os, sys, time\n"
        "from rewards.pool import GradingPool, VerifierSpec\n"
        "pool = GradingPool({'e': VerifierSpec('pool_verifiers:Environment')})\n"
        "print(pool.grade_many([('e', '', 1)])[0].detail['pid'], flush=True)\n"
        "time.sleep(60)\n"
    )
    here = os.path.dirname(__file__)
    root = os.path.dirname(os.path.dirname(here))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, root])}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert _is_alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(pid)


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        ("no_such_module:X", {}, "there is no module 'no_such_module'"),
        ("rewards.math_answer:MathVerifier", {}, "did you mean 'rewards.math_answers'"),
        ("pool_verifiers:Noughty", {}, "did you mean 'Naughty'"),
        ("pool_verifiers:Naughty", {"levl": 1}, "takes no argument 'levl'"),
        ("pool_verifiers:Refusing", {}, "needs the argument 'level'"),
        ("pool_verifiers:Refusing", {"level": 5}, "level: 5 must be below 3"),
        ("pool_verifiers:NotAVerifier", {}, "has no method 'check_reference'"),
        ("pool_verifiers:os", {}, "must be a class"),
        ("pool_verifiers:Broken", {}, "no licence found"),
        ("rewards.math_answers:MathVerifier", {"extract": "box"}, "did you mean 'boxed'"),
    ],
)
def test_what_cannot_be_built_is_an_error_at_once(path: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(WorkerStartError, match=message):
        GradingPool({"x": VerifierSpec(path, args)})


def test_wrong_settings_name_key_value_and_rule(pool: GradingPool) -> None:
    with pytest.raises(ValueError, match="not of the form 'module:name'"):
        VerifierSpec("rewards.math_answers.MathVerifier")
    with pytest.raises(ValueError, match="timeout: 0 must be above 0"):
        GradingPool(SPECS, timeout=0)
    with pytest.raises(ValueError, match="at least one verifier"):
        GradingPool({})
    with pytest.raises(ValueError, match="'nauhty' is not in this pool; it holds: naughty"):
        pool.submit("nauhty", "", 1)
    with pytest.raises(TypeError, match="must be a str"):
        pool.submit("naughty", 5, 1)  # type: ignore[arg-type]  # the error under test


def _children() -> set[int]:
    found: list[str] = []
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError), open(f"/proc/self/task/{task}/children", encoding="ascii") as children:
            found += children.read().split()  # a thread that has ended since the listing has none
    return {pid for pid in map(int, found) if b"rewards.worker" in _command(pid)}


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
