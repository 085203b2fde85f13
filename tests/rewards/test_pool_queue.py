"""How jobs leave and enter a pool's queue, and what is counted, by hand: no worker is started."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

import pytest

from rewards import Outcome, Verdict
from rewards.job import Job, PoolStats
from rewards.pool import BATCH, BATCH_BYTES, BATCH_SECONDS, PATIENCE, GradingPool
from rewards.spares import SpareWorkers


def bare(workers: int = 1, pace: float = 1e-9) -> GradingPool:
    """A pool without threads and processes."""
    pool = object.__new__(GradingPool)
    pool._lock, pool._jobs, pool._closed, pool._broken = threading.Condition(), deque(), False, None
    pool._workers, pool._in_hand = workers, [deque(maxlen=2) for _ in range(workers)]
    pool._pace, pool._timeout, pool._stats = {"v": pace}, 2.0, PoolStats()
    pool._spares = object.__new__(SpareWorkers)
    pool._spares.lowest, pool._spares.timeouts = {"v": -1.0}, {"v": 2.0}
    return pool


def jobs(count: int, size: int = 1) -> list[Job]:
    return [Job("v", bytes([index % 256]) * size, Future()) for index in range(count)]


def taken(pool: GradingPool) -> int:
    found = pool._take(0, wait=False)
    assert found is not None
    return len(found)


def test_a_worker_takes_an_even_share_in_order() -> None:
    pool, queued = bare(workers=2), jobs(10)
    pool._jobs.extend(queued)
    found = pool._take(0)
    assert found == queued[:5]
    assert all(job.is_running for job in found)
    assert [taken(pool), taken(pool), taken(pool), taken(pool), taken(pool)] == [2, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("pace", "size", "count"),
    [(1e-9, 1, BATCH), (BATCH_SECONDS / 4, 1, 4), (BATCH_SECONDS, 1, 1), (1e-9, BATCH_BYTES // 4, 4),
     (1e-9, 2 * BATCH_BYTES, 1)],
)  # fmt: skip
def test_a_batch_is_bounded_by_number_time_and_bytes(pace: float, size: int, count: int) -> None:
    """One job is always taken, whatever its size."""
    pool = bare(pace=pace)
    pool._jobs.extend(jobs(BATCH + 10, size))
    assert taken(pool) == count


def test_a_cancelled_job_is_dropped_and_a_closed_or_broken_pool_gives_none() -> None:
    pool, queued = bare(), jobs(3)
    pool._jobs.extend(queued)
    queued[1].future.cancel()
    assert pool._take(0) == [queued[0], queued[2]]
    pool._jobs.extend(jobs(1))
    pool._closed = True
    assert pool._take(0) is None
    pool._closed, pool._broken = False, RuntimeError("broken")
    assert pool._take(0) is None


def test_the_first_death_may_be_a_bystanders_and_the_second_is_the_jobs_own() -> None:
    class Dead:
        def obituary(self) -> str:
            return "killed by signal 9"

    pool, (job, other) = bare(), jobs(2)
    pool._jobs.append(other)
    pool._died(Dead(), job)  # type: ignore[arg-type]
    assert list(pool._jobs) == [job, other]  # at the front again
    assert (pool._stats.retries, pool._stats.crashes, job.deaths) == (1, 0, 1)
    pool._died(Dead(), pool._jobs.popleft())  # type: ignore[arg-type]
    assert list(pool._jobs) == [other]
    verdict = job.future.result(timeout=0).verdict
    assert (verdict.score, verdict.outcome, verdict.detail) == (-1.0, Outcome.CRASHED, {"reason": "killed by signal 9"})
    assert (pool._stats.retries, pool._stats.crashes, pool._stats.graded) == (1, 1, 1)


@pytest.mark.parametrize(
    ("outcome", "counted"),
    [
        (Outcome.CORRECT, (0, 0, 0)),
        (Outcome.TIMEOUT, (1, 0, 0)),
        (Outcome.CRASHED, (0, 1, 0)),
        (Outcome.ERROR, (0, 0, 1)),
    ],
)
def test_verdicts_are_counted_by_kind_and_seconds_are_added(outcome: Outcome, counted: tuple[int, int, int]) -> None:
    pool, (one, two) = bare(), jobs(2)
    verdict = Verdict(None if outcome is Outcome.ERROR else 0.0, outcome)
    pool._finish([(one, verdict, 0.25), (two, Verdict(1.0, Outcome.CORRECT), 0.5)])
    stats = pool._stats
    assert (stats.timeouts, stats.crashes, stats.errors) == counted
    assert (stats.graded, stats.busy_seconds) == (2, 0.75)
    assert one.future.result(timeout=0) == (verdict, 0.25)


@pytest.mark.parametrize(
    ("limit", "seconds", "pace"), [(2.0, 0.05, 0.026), (2.0, 9.0, 0.016 + 0.2 * PATIENCE), (2.5, 0.05, 0.02)]
)
def test_the_pace_of_a_verifier_is_a_moving_average(limit: float, seconds: float, pace: float) -> None:
    """0.02 + 0.2 (0.05 - 0.02); no answer counts for more than the patience; a verifier with a limit of its own above
    the pool's is slow by its own word, and gets one job at a time."""
    pool = bare(pace=0.02)
    pool._spares.timeouts["v"] = limit
    pool._finish([(jobs(1)[0], Verdict(1.0, Outcome.CORRECT), seconds)])
    assert pool._pace["v"] == pytest.approx(pace)


def test_jobs_given_back_to_a_pool_that_ended_fail_with_its_reason() -> None:
    for ended, reason in (({"_closed": True}, "was closed"), ({"_broken": RuntimeError("no workers")}, "no workers")):
        pool, (job,) = bare(), jobs(1)
        for name, value in ended.items():
            setattr(pool, name, value)
        pool._give_back([job])
        assert len(pool._jobs) == 0
        error: Any = job.future.exception(timeout=0)
        assert reason in str(error)
