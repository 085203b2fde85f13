"""Grading in persistent worker processes that can be killed: one `Verdict` for every input, in order.

A model's answer can hang sympy, eat the memory, or bring the interpreter down, and no alarm inside the same process
stops all of that (a C extension does not poll signals, `signal.alarm` needs the main thread). So verifiers run in
processes of their own; the parent keeps the clock and kills.

Threads: one per worker takes jobs from the common queue, sends a batch and sleeps until the worker rings that it is
done; while it hands the answers out the worker has its next batch. Where the bell is late it waits for each answer
until its limit. One more thread starts processes and keeps a spare ready. None of them polls: they sleep in the kernel.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import fields
from types import TracebackType
from typing import Any, Self

from rewards.job import Graded, Job, PoolStats, fail, graded, request, why_not
from rewards.process import STARVED, WorkerDied, WorkerLate, WorkerProcess, WorkerStartError, WorkerStarved
from rewards.spares import CLOSED, START_TIMEOUT, SpareWorkers
from rewards.spec import VerifierSpec, VerifierSpecError
from rewards.verdict import Outcome, Verdict
from rewards.worker import KINDS

__all__ = ["Graded", "GradingPool", "PoolStats", "VerifierSpec", "VerifierSpecError", "WorkerStartError"]

BATCH = 64
"""The most jobs a worker holds at once: the pipe then costs little beside an answer of 50 microseconds."""
BATCH_BYTES = 2**20
"""The most bytes of a batch of several jobs, so that no job pays for the reading of others."""
BATCH_SECONDS = 0.02
"""The work, by what the verifier's last answers took, that a worker is given at once."""
PATIENCE = 0.1
"""Seconds after which jobs that wait behind a slow one in the same worker are offered to the others."""


class GradingPool:
    """Worker processes that grade; usable from any thread and from any asyncio loop, at the same time.

    Example::

        specs = {"math": VerifierSpec("rewards.math_answers:MathVerifier", {"extract": "boxed"})}
        with GradingPool(specs, workers=2, timeout=2.0) as pool:
            verdicts = pool.grade_many([("math", completion, "42") for completion in completions])

    Args: specs by name; workers (processes); timeout in seconds of wall clock for one item, without those in which its
    worker was ready and got no core (a spec's own timeout goes before it, and a verifier whose ``needs_seconds`` is
    larger, because it limits itself, gets that); memory_mb that a worker may allocate beyond what its verifiers took
    when they were built.
    Raises `WorkerStartError` with the worker's reason when the verifiers cannot be built.
    """

    def __init__(
        self, specs: Mapping[str, VerifierSpec], *, workers: int = 1, timeout: float = 2.0, memory_mb: int = 1024
    ) -> None:
        if not specs:
            raise ValueError("a grading pool needs at least one verifier, got none")
        for key, value in (("workers", workers), ("timeout", timeout), ("memory_mb", memory_mb)):
            if not value > 0:
                raise ValueError(f"{key}: {value!r} must be above 0")
        self._specs, self._workers, self._timeout = dict(specs), workers, timeout
        self._lock = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._closed = False
        self._broken: Exception | None = None
        self._in_hand = [deque[list[Job]](maxlen=2) for _ in range(workers)]  # what each thread took last
        self._stats = PoolStats()
        self._pace = dict.fromkeys(specs, BATCH_SECONDS)  # moving average of seconds, at first one job a batch
        self._active: set[WorkerProcess] = set()
        self._spares = SpareWorkers(self._specs, workers=workers, timeout=timeout, memory_mb=memory_mb)
        self._threads: list[threading.Thread] = []
        try:
            self._spares.wait_for_first()
        except WorkerStartError:
            self.close()
            raise
        self._threads = [
            threading.Thread(target=self._serve, args=(index,), name=f"grading-{index}", daemon=True)
            for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    # -- the caller's side ---------------------------------------------------------------------------------------

    async def grade(self, verifier: str, completion: str, reference: Any) -> Verdict:
        """The verdict on one completion, without blocking the loop it is awaited in."""
        return (await asyncio.wrap_future(self.submit(verifier, completion, reference))).verdict

    def submit(self, verifier: str, completion: str, reference: Any, *, kind: str = "grade") -> Future[Graded]:
        """Queue one completion and return at once; the kind "answer" gives a bare answer to `grade_answer`."""
        job = self._job(kind, verifier, completion, reference)
        self._enqueue([job])
        return job.future

    def grade_many(self, items: Iterable[tuple[str, str, Any]]) -> list[Verdict]:
        """The verdicts on (verifier, completion, reference) items, in their order; blocks until all are there."""
        jobs = [self._job("grade", *item) for item in items]
        self._enqueue(jobs)
        return [job.future.result().verdict for job in jobs]

    def _job(self, kind: str, verifier: str, completion: str, reference: Any) -> Job:
        if kind not in KINDS:
            raise ValueError(f"kind: {kind!r} is none of {', '.join(KINDS)}")
        if verifier not in self._specs:
            raise ValueError(f"verifier: {verifier!r} is not in this pool; it holds: {', '.join(self._specs)}")
        if not isinstance(completion, str):
            raise TypeError(f"completion: {completion!r:.200} is a {type(completion).__name__}, it must be a str")
        return Job(verifier, request(kind, verifier, completion, reference), Future())

    def _enqueue(self, jobs: list[Job]) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("the grading pool is closed")
            if self._broken is not None:
                raise RuntimeError(f"the grading pool has ended: {self._broken}") from self._broken
            self._jobs.extend(jobs)
            self._lock.notify(len(jobs))

    def check_references(self, items: Iterable[tuple[str, Any]]) -> list[str | None]:
        """For each (verifier, reference): None where it can be graded against, else the reason why not, in order."""
        futures = [self.submit(verifier, "", reference, kind="check") for verifier, reference in items]
        return [why_not(future.result().verdict) for future in futures]

    def lowest_score(self, verifier: str) -> float:
        """What the verifier declares as its lowest score: the score of TIMEOUT and CRASHED."""
        return self._spares.lowest[verifier]

    def stats(self) -> PoolStats:
        """A copy of the counters."""
        with self._lock:
            return PoolStats(*(getattr(self._stats, field.name) for field in fields(PoolStats)))

    def close(self) -> None:
        """Kill the workers; gradings that are still waiting raise `RuntimeError`. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            waiting, self._jobs = list(self._jobs), deque()
            active = list(self._active)
            self._lock.notify_all()
        for job in waiting:
            fail(job, RuntimeError(CLOSED))
        for worker in active:
            worker.interrupt()  # the thread that waits for it sees it die, and ends
        self._spares.close()
        for thread in self._threads:
            thread.join()
        for worker in active:
            worker.kill()  # where its thread ended by a mistake of ours
        self._spares.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the workers' side ---------------------------------------------------------------------------------------

    def _serve(self, index: int) -> None:
        try:
            self._serve_to_the_end(index)
        except BaseException as error:  # a mistake of ours: without this the callers would wait for ever
            failure = RuntimeError(f"a thread of the grading pool failed: {type(error).__name__}: {error}")
            self._break(failure, itertools.chain(*self._in_hand[index]))
            raise

    def _break(self, failure: Exception, in_hand: Iterable[Job] = ()) -> None:
        """End the pool: what waits, and what a thread held that failed, fails for this reason."""
        with self._lock:
            self._broken = self._broken or failure
            waiting, self._jobs = list(self._jobs), deque()
            self._lock.notify_all()
        for job in itertools.chain(in_hand, waiting):
            fail(job, failure)

    def _serve_to_the_end(self, index: int) -> None:
        worker: WorkerProcess | None = None
        while (jobs := self._take(index)) is not None:
            if not jobs:  # all were cancelled while they waited; to a worker, an empty batch means `take_back`
                continue
            if worker is None:
                worker = self._next_worker()
            if worker is None:
                self._give_back(jobs)
                return
            if not self._grade(index, worker, jobs):
                self._lose(worker)
                worker = None
        if worker is not None:
            self._lose(worker)

    def _take(self, index: int, wait: bool = True) -> list[Job] | None:
        """The next jobs for one worker, an even share of the queue; None when the pool has ended."""
        with self._lock:
            while not (self._jobs or self._closed or self._broken):
                if not wait:
                    return []
                self._lock.wait()
            if self._closed or self._broken is not None:
                return None
            share, room, space, jobs = len(self._jobs) // self._workers, BATCH_SECONDS, BATCH_BYTES, list[Job]()
            while self._jobs and (
                not jobs or (room > 0 and len(jobs) < min(BATCH, share) and len(self._jobs[0].body) <= space)
            ):
                jobs.append(self._jobs.popleft())
                room -= self._pace[jobs[-1].verifier]
                space -= len(jobs[-1].body)
            self._in_hand[index].append(jobs)
        for job in jobs:
            job.is_running = job.is_running or job.future.set_running_or_notify_cancel()
        return [job for job in jobs if job.is_running]

    def _give_back(self, jobs: Collection[Job]) -> None:
        """Jobs that a worker did not begin go to the front again, for whoever is free."""
        with self._lock:
            if not self._closed and self._broken is None:
                self._jobs.extendleft(reversed(list(jobs)))
                self._lock.notify(len(jobs))
                return
        for job in jobs:
            fail(job, self._broken or RuntimeError(CLOSED))

    def _grade(self, index: int, worker: WorkerProcess, jobs: list[Job]) -> bool:
        """Grade batches for as long as work waits; False when the worker is lost (what it had not begun is given back).

        The next batch is sent before the answers to the last are handed out, so that the worker need not wait.
        """
        is_alive = self._send(worker, jobs)
        while is_alive and jobs:
            answers = worker.receive_batch(BATCH_SECONDS) if len(jobs) > 1 else []
            if len(answers) < len(jobs):
                self._finish([(job, *graded(answer)) for job, answer in zip(jobs, answers, strict=False)])
                left = jobs[len(answers) :]
                if answers and answers[-1]["outcome"] == Outcome.CRASHED:
                    self._give_back(left)
                    return False
                return self._grade_one_by_one(worker, deque(left))
            answered, is_alive = jobs, answers[-1]["outcome"] != Outcome.CRASHED
            jobs = (self._take(index, wait=False) or []) if is_alive else []
            if jobs:
                is_alive = self._send(worker, jobs)
            self._finish([(job, *graded(answer)) for job, answer in zip(answered, answers, strict=True)])
        worker.empty_stderr()
        return is_alive

    def _send(self, worker: WorkerProcess, jobs: list[Job]) -> bool:
        try:
            worker.send_batch([job.body for job in jobs], START_TIMEOUT)
        except (WorkerDied, WorkerLate):
            if len(jobs) == 1:  # it may be what is too large to be read
                self._died(worker, jobs[0])
            else:  # it died idle: nobody's answer did that
                self._give_back(jobs)
            return False
        return True

    def _grade_one_by_one(self, worker: WorkerProcess, left: deque[Job]) -> bool:
        """Wait for each answer until its limit; False when the worker is lost."""
        is_taken_back = False
        while left:
            job = left.popleft()
            limit = self._spares.timeouts[job.verifier]
            worker.stopwatch.start()  # the worker begins a job when it has answered the one before
            try:
                try:
                    answer = worker.receive(min(limit, PATIENCE))
                except WorkerLate:
                    self._spares.hurry()
                    if left and self._workers > 1 and worker.take_back():  # let the others not wait for a slow one
                        is_taken_back = True
                        self._give_back(left)
                        left = deque()
                    answer = worker.receive_fairly(limit)
                    if "skipped" in answer:  # it had not begun this one either
                        self._give_back([job])
                        return True
            except (WorkerLate, WorkerStarved) as error:
                self._finish([(job, self._too_late(job, error), worker.stopwatch.wall())])
                self._give_back(left)
                return False
            except WorkerDied:
                self._died(worker, job)
                self._give_back(left)
                return False
            self._finish([(job, *graded(answer))])
            if answer["outcome"] == Outcome.CRASHED:
                self._give_back(left)
                return False
        worker.empty_stderr()
        if is_taken_back:
            try:
                worker.skip(PATIENCE)
            except (WorkerDied, WorkerLate, WorkerStarved):
                return False
        return True

    def _too_late(self, job: Job, error: WorkerLate | WorkerStarved) -> Verdict:
        limit = self._spares.timeouts[job.verifier]
        if isinstance(error, WorkerLate):
            return Verdict(self._spares.lowest[job.verifier], Outcome.TIMEOUT, {"limit_seconds": limit})
        reason = f"the machine is too busy: the worker did not get {limit} s of a core in {limit + STARVED:g} s"
        return Verdict(None, Outcome.ERROR, {"reason": reason})

    def _died(self, worker: WorkerProcess, job: Job) -> None:
        """The first death may be a bystander's (the kernel's out-of-memory killer chooses freely): ask once more."""
        reason = worker.obituary()
        job.deaths += 1
        if job.deaths > 1:
            verdict = Verdict(self._spares.lowest[job.verifier], Outcome.CRASHED, {"reason": reason})
            self._finish([(job, verdict, 0.0)])
            return
        with self._lock:
            self._stats.retries += not self._closed
        self._give_back([job])

    def _finish(self, graded: list[tuple[Job, Verdict, float]]) -> None:
        with self._lock:
            self._stats.graded += len(graded)
            for job, verdict, seconds in graded:
                self._stats.busy_seconds += seconds
                self._stats.timeouts += verdict.outcome is Outcome.TIMEOUT
                self._stats.crashes += verdict.outcome is Outcome.CRASHED
                self._stats.errors += verdict.outcome is Outcome.ERROR
                if self._spares.timeouts[job.verifier] <= self._timeout:  # else slow by its own word: one job at a time
                    self._pace[job.verifier] += 0.2 * (min(seconds, PATIENCE) - self._pace[job.verifier])
        for job, verdict, seconds in graded:
            job.future.set_result(Graded(verdict, seconds))

    # -- workers come and go -------------------------------------------------------------------------------------

    def _next_worker(self) -> WorkerProcess | None:
        """A started worker, usually the spare; None when none can be had: all waiting jobs have then failed."""
        spare = self._spares.take()
        with self._lock:
            if isinstance(spare, WorkerProcess) and not self._closed:
                self._active.add(spare)
                return spare
        failure = spare if isinstance(spare, WorkerStartError) else WorkerStartError(CLOSED)
        if isinstance(spare, WorkerProcess):
            spare.kill()
        self._spares.fail(failure)  # the other threads learn it the same way
        self._break(failure)
        return None

    def _lose(self, worker: WorkerProcess) -> None:
        with self._lock:
            self._active.discard(worker)
            self._stats.respawns += not self._closed
        self._spares.hurry()
        worker.kill()
        self._spares.want()
