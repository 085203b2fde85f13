"""Worker processes on their way into a pool: they are started, tried again, and one is kept ready as a spare."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Mapping

from rewards.process import WorkerProcess, WorkerStartError
from rewards.spec import VerifierSpec

START_TIMEOUT = 120.0
"""Seconds that a worker may take to import its verifiers, on a busy machine."""
START_PAUSE = 0.5
"""Seconds before the next attempt where the system starts no process at the moment."""
START_ATTEMPTS = 3
"""How often starting is tried when a worker dies or is late; a verifier that cannot be built fails at once."""
SPARE_DELAY = 4.0
"""Seconds that the first spare waits for, unless trouble comes first: a short run does not pay for it."""
CLOSED = "the grading pool was closed before this answer was graded"


class SpareWorkers:
    """Starts a worker whenever one is wanted; all in a thread of its own, because a worker dies with its thread.

    Args: specs by name; workers that the pool uses at once; timeout and memory_mb as `rewards.pool.GradingPool` has
    them.
    """

    def __init__(self, specs: Mapping[str, VerifierSpec], *, workers: int, timeout: float, memory_mb: int) -> None:
        self._specs, self._workers, self._timeout, self._memory_mb = specs, workers, timeout, memory_mb
        self.timeouts: dict[str, float] = {}
        """Seconds for one item, by verifier; known when the first worker is ready."""
        self.lowest: dict[str, float] = {}
        """What each verifier declares as its lowest score; known when the first worker is ready."""
        self._ready: queue.Queue[WorkerProcess | WorkerStartError] = queue.Queue()
        self._wanted = threading.Semaphore(workers)
        self._hurry = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._spawn, name="grading-spawner", daemon=True)
        self._thread.start()

    def wait_for_first(self) -> None:
        """Return when a worker is ready. Raises `WorkerStartError` with its reason if there will be none."""
        first = self._ready.get()
        self._ready.put(first)
        if isinstance(first, WorkerStartError):
            raise first

    def take(self) -> WorkerProcess | WorkerStartError:
        """A worker that is ready, usually the spare, or why there is none; blocks until there is either."""
        return self._ready.get()

    def fail(self, failure: WorkerStartError) -> None:
        """One of the next `take` gives this failure."""
        self._ready.put(failure)

    def want(self) -> None:
        """One more worker is to be started."""
        self._wanted.release()

    def hurry(self) -> None:
        """A worker was lost or may soon be, or the pool ends: time for the spare."""
        self._hurry.set()

    def close(self) -> None:
        """Start no more; whoever still takes one gets a failure."""
        self._closed = True
        self.hurry()
        self.want()
        self._thread.join()
        self.fail(WorkerStartError(CLOSED))

    def kill(self) -> None:
        """End the workers that nobody took."""
        while not self._ready.empty():
            spare = self._ready.get()
            if isinstance(spare, WorkerProcess):
                spare.kill()

    def _spawn(self) -> None:
        for count in itertools.count():
            if count == self._workers:
                self._hurry.wait(SPARE_DELAY)
            else:
                self._wanted.acquire()
            if self._closed:
                return
            try:
                started = self._start()
            except BaseException as error:  # a mistake of ours: without this the callers would wait for ever
                started = WorkerStartError(f"the thread that starts workers failed: {type(error).__name__}: {error}")
            self._ready.put(started)

    def _start(self) -> WorkerProcess | WorkerStartError:
        for attempt in range(START_ATTEMPTS):
            try:
                worker = WorkerProcess(self._specs, self._memory_mb)
                self.lowest, needs = worker.wait_ready(START_TIMEOUT)
                for name, spec in self._specs.items():
                    self.timeouts[name] = spec.timeout or max(self._timeout, needs[name])
                return worker
            except OSError as error:
                failure = WorkerStartError(f"no process can be started for a grading worker: {error}")
                time.sleep(START_PAUSE)
            except WorkerStartError as error:
                failure = error
            if attempt == START_ATTEMPTS - 1 or failure.is_final or self._closed:
                return failure
        raise AssertionError("unreachable: the last attempt returns")
