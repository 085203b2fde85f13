"""Engine speed by number of running requests, and how many speculative tokens are accepted."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable


class EngineStats:
    """Sums over an engine's steps; `take` may be called from another thread.

    The seconds of a step are those since the end of the one before, if requests were running then and nothing was
    paused meanwhile. Sizes of batches are counted in powers of two.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._tokens: dict[int, int] = defaultdict(int)
        self._seconds: dict[int, float] = defaultdict(float)
        self._drafts = self._proposed = self._accepted = 0
        self._running = 0
        self._last: float | None = None

    def record(self, running: int, tokens: int, drafts: int = 0, proposed: int = 0, accepted: int = 0) -> None:
        """A step has ended: `running` requests go on, it made `tokens`; of `proposed` tokens in `drafts` proposals,
        one a request, `accepted` were taken."""
        with self._lock:
            now = self._now()
            if self._last is not None and self._running > 0:
                size = 1 << (self._running.bit_length() - 1)
                self._tokens[size] += tokens
                self._seconds[size] += now - self._last
            self._last, self._running = now, running
            self._drafts += drafts
            self._proposed += proposed
            self._accepted += accepted

    def pause(self) -> None:
        """The time until the next step counts for nothing."""
        with self._lock:
            self._last = None

    def take(self) -> dict[str, float]:
        """The metrics since the last call."""
        with self._lock:
            result = {
                f"engine/tokens_per_second/{size}": self._tokens[size] / seconds
                for size, seconds in sorted(self._seconds.items())
                if seconds > 0
            }
            if self._proposed:
                result["engine/acceptance_rate"] = self._accepted / self._proposed
                result["engine/acceptance_length"] = 1 + self._accepted / self._drafts
            self._tokens.clear()
            self._seconds.clear()
            self._drafts = self._proposed = self._accepted = 0
        return result
