"""Tracks what the engine and the graders are doing right now, and when that last changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Activity:
    """Counts requests and gradings under way, measures busy time, and wakes those who wait for a change; stateful."""

    def __init__(self) -> None:
        self.running = 0
        """Requests in the engine."""
        self.grading = 0
        """Rollouts at the graders."""
        self.last_sampled = 0.0
        """When the last request ended (`time.perf_counter`, seconds)."""
        self.last_change = time.monotonic()
        self._busy = 0.0
        self._busy_since = 0.0
        self._watchers: list[asyncio.Future[None]] = []

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around a request to the engine."""
        if not self.running:
            self._busy_since = time.perf_counter()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.last_sampled = time.perf_counter()
            if not self.running:
                self._busy += self.last_sampled - self._busy_since
            self.notify()

    @contextmanager
    def at_graders(self) -> Iterator[None]:
        """Around a grading."""
        self.grading += 1
        try:
            yield
        finally:
            self.grading -= 1
            self.notify()

    @property
    def busy_seconds(self) -> float:
        """Seconds so far in which at least one request was in the engine."""
        return self._busy + (time.perf_counter() - self._busy_since if self.running else 0.0)

    def notify(self) -> None:
        """Something has changed: a request or a grading ended, a request waits at the gate, a group has finished."""
        self.last_change = time.monotonic()
        for future in self._watchers:
            if not future.done():
                future.set_result(None)
        self._watchers = []

    async def changed(self, timeout: float) -> bool:
        """Wait for the next change; False if none comes for `timeout` seconds."""
        future = asyncio.get_running_loop().create_future()
        self._watchers.append(future)
        done, _ = await asyncio.wait({future}, timeout=timeout)
        return bool(done)
