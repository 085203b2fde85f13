"""The pool when the machine, the verifier or the pool itself fails: callers hear of it, no answer is charged for it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.grading_pool import workers_of_this_process
from rewards import Outcome
from rewards.pool import GradingPool, VerifierSpec
from rewards.process import Stopwatch, WorkerStartError

NAUGHTY = {"naughty": VerifierSpec("pool_verifiers:Naughty")}
CALLER_SECONDS = 120
"""A caller that waits longer than this hangs."""


@contextmanager
def crowded(pid: int) -> Iterator[None]:
    """Five processes share one core, this one among them."""
    core = {min(os.sched_getaffinity(0))}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        for process in (pid, *(other.pid for other in others)):
            os.sched_setaffinity(process, core)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def results(pool: GradingPool, orders: list[str]) -> list[str]:
    """Outcomes; an error by its text. No future may stay open."""
    futures = [pool.submit("naughty", order, 1) for order in orders]
    errors = [future.exception(CALLER_SECONDS) for future in futures]
    return [
        str(error) if error else future.result().verdict.outcome for future, error in zip(futures, errors, strict=True)
    ]


@pytest.mark.slow
def test_an_answer_whose_worker_gets_no_core_does_not_run_out_of_its_limit() -> None:
    """0.3 s of work, limit 0.5 s, a fifth of a core: at least 1.5 s of wall clock, of which the machine owes 1.2."""
    with GradingPool(NAUGHTY, timeout=0.5) as pool:
        assert results(pool, ["warm"]) == [Outcome.CORRECT]
        with crowded(workers_of_this_process()[0].pid):
            assert results(pool, ["burn"]) == [Outcome.CORRECT]
            assert results(pool, ["spin"]) == [Outcome.TIMEOUT]


@pytest.mark.slow
def test_the_stopwatch_counts_sleep_and_work_but_no_waiting_for_a_core() -> None:
    """Of a process that shares a core with four others it counts a fraction; of one that sleeps, the wall clock."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    idle = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1)
    assert idle.stdout is not None
    idle.stdout.readline()
    try:
        with crowded(busy.pid):
            watches = Stopwatch(busy.pid), Stopwatch(idle.pid)
            threading.Event().wait(2.0)
            (busy_wall, busy_own), (idle_wall, idle_own) = ((watch.wall(), watch.seconds()) for watch in watches)
    finally:
        for process in (busy, idle):
            process.kill()
            process.wait()
        idle.stdout.close()
    assert busy_own < 0.6 * busy_wall
    assert idle_own == pytest.approx(idle_wall, rel=0.05)


@pytest.mark.slow
def test_the_machine_that_never_lets_a_worker_work_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an answer of the model nor its lowest score: the machinery failed."""
    monkeypatch.setattr(Stopwatch, "seconds", lambda self: 0.0)
    monkeypatch.setattr("rewards.process.STARVED", 0.1)
    with GradingPool(NAUGHTY, timeout=0.5) as pool:
        verdict = pool.submit("naughty", "hang", 1).result(CALLER_SECONDS).verdict
        assert (verdict.outcome, verdict.score) == (Outcome.ERROR, None)
        assert "the machine is too busy" in verdict.detail["reason"]
        assert pool.stats().errors == 1


@pytest.mark.slow
def test_what_waits_behind_a_slow_answer_is_taken_back_and_nobody_dies() -> None:
    with GradingPool(NAUGHTY, workers=2, timeout=30.0) as pool:
        assert results(pool, ["warm"] * 300) == [Outcome.CORRECT] * 300  # the pace is known: batches follow
        orders = ["slow" if index in (3, 70) else f"text {index}" for index in range(200)]
        verdicts = pool.grade_many([("naughty", order, 1) for order in orders])
        stats = pool.stats()
    assert [verdict.detail["completion"] for verdict in verdicts] == orders
    assert (stats.graded, stats.respawns, stats.retries) == (500, 0, 0)


@pytest.mark.slow
def test_a_worker_whose_pipe_is_written_into_is_not_believed_any_more() -> None:
    """No reply is taken for the next one's, and who stood behind it is graded by another worker."""
    orders = [f"text {index}" for index in range(60)]
    orders[30] = "write anywhere"
    with GradingPool(NAUGHTY, timeout=5.0) as pool:
        results(pool, ["warm"] * 300)
        verdicts = pool.grade_many([("naughty", order, 1) for order in orders])
    assert verdicts[30].outcome is Outcome.CRASHED
    assert "other than its answers" in verdicts[30].detail["reason"]
    del verdicts[30], orders[30]
    assert [verdict.detail["completion"] for verdict in verdicts] == orders


@pytest.mark.slow
def test_what_is_too_large_for_a_worker_crashes_it_twice_and_no_more() -> None:
    with GradingPool(NAUGHTY, timeout=60.0, memory_mb=48) as pool:
        verdict = pool.submit("naughty", "x" * 60_000_000, 1).result(CALLER_SECONDS).verdict
        assert verdict.outcome is Outcome.CRASHED
        assert "MemoryError" in verdict.detail["reason"]
        assert results(pool, ["fine"]) == [Outcome.CORRECT]


def test_a_reference_that_is_no_json_is_refused_where_it_is_handed_in() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with GradingPool(NAUGHTY) as pool:
        for reference in ({(1, 2): 3}, circle):
            with pytest.raises(TypeError, match="cannot be sent to a worker as JSON"):
                pool.submit("naughty", "x", reference)


@pytest.mark.parametrize(
    ("order", "outcome", "said"),
    [
        ("numpy", Outcome.PARTIAL, ""),
        ("key", Outcome.ERROR, "keys must be str"),
        ("circle", Outcome.ERROR, "Circular reference"),
        ("no mapping", Outcome.ERROR, "not iterable"),
    ],
)
def test_a_verdict_that_is_no_json_is_the_verifier_s_error_and_no_low_score(
    order: str, outcome: Outcome, said: str
) -> None:
    with GradingPool({"no_verdict": VerifierSpec("pool_verifiers:NoVerdict")}, timeout=30.0) as pool:
        verdict = pool.submit("no_verdict", order, 1).result(CALLER_SECONDS).verdict
        assert verdict.outcome is outcome
        assert said in verdict.detail.get("reason", "")
        assert pool.stats().respawns == 0


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError("no more processes"), RuntimeError("a mistake")])
def test_a_worker_that_cannot_be_started_any_more_ends_the_gradings_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with GradingPool(NAUGHTY, timeout=0.5) as pool:
        assert results(pool, ["fine"]) == [Outcome.CORRECT]
        descriptors = len(os.listdir("/proc/self/fd"))

        def refuse(*args: object, **options: object) -> None:
            raise error

        monkeypatch.setattr("rewards.process.subprocess.Popen", refuse)
        assert results(pool, ["hang"]) == [Outcome.TIMEOUT]
        waiting = pool.submit("naughty", "fine", 1)
        assert str(error) in str(waiting.exception(CALLER_SECONDS))
        with pytest.raises(RuntimeError, match=f"has ended: .*{error}"):
            pool.submit("naughty", "fine", 1)
        assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_a_thread_of_the_pool_reaches_every_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    with GradingPool(NAUGHTY, workers=2) as pool:
        results(pool, ["warm"] * 100)

        def slip(*args: object) -> None:
            raise KeyError("slipped")

        monkeypatch.setattr(pool, "_finish", slip)
        said = results(pool, ["fine"] * 100)
        workers = workers_of_this_process()
    assert all("slipped" in text for text in said)
    assert workers
    assert not [worker for worker in workers if worker.is_running()]


@pytest.mark.slow
def test_what_is_given_back_goes_before_what_was_waiting_in_its_own_order() -> None:
    """One worker, held up by a slow answer; two wait. What a lost worker had not begun was asked for earlier."""
    order: list[str] = []
    with GradingPool({"naughty": VerifierSpec("pool_verifiers:Naughty")}, timeout=5.0) as pool:
        slow = pool.submit("naughty", "slow", 1)
        while not slow.running():
            time.sleep(0.001)
        waiting = [pool._job("grade", "naughty", name, 1) for name in ("third", "fourth")]
        back = [pool._job("grade", "naughty", name, 1) for name in ("first", "second")]
        for job, name in zip([*waiting, *back], ["third", "fourth", "first", "second"], strict=True):
            job.future.add_done_callback(lambda _, name=name: order.append(name))
        pool._enqueue(waiting)
        pool._give_back(back)
        for job in waiting:
            job.future.result(timeout=30)
    assert order == ["first", "second", "third", "fourth"]


def test_a_traceback_begins_in_the_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of the worker and of the import machinery before the user's file are left out, those behind it kept."""
    (tmp_path / "verifier_that_imports_nothing.py").write_text("import json\n\nimport nothing_of_this_name\n")
    (tmp_path / "verifier_that_raises_deep.py").write_text(
        "import json\n\nclass Deep:\n    def check_reference(self, reference): pass\n"
        "    def grade(self, completion, reference): return json.loads('{')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WorkerStartError) as caught:
        GradingPool({"x": VerifierSpec("verifier_that_imports_nothing:V")}, workers=1).close()
    said = str(caught.value)
    assert said.startswith("a verifier could not be built: ModuleNotFoundError: No module named 'nothing_of_this_name'")
    frames = [line for line in said.splitlines() if line.startswith("  File ")]
    assert [frame.split(", in ")[0] for frame in frames] == [
        f'  File "{tmp_path / "verifier_that_imports_nothing.py"}", line 3'
    ]
    with GradingPool({"x": VerifierSpec("verifier_that_raises_deep:Deep")}, workers=1) as pool:
        (verdict,) = pool.grade_many([("x", "text", None)])
    frames = [line for line in verdict.detail["traceback"].splitlines() if line.startswith("  File ")]
    assert "verifier_that_raises_deep.py" in frames[0]
    assert "json/decoder.py" in frames[-1]
