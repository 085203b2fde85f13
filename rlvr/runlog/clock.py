"""Where the wall-clock time of a step goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PHASES = (
    "generate",
    "grade_wait",
    "pack",
    "old_logprobs",
    "ref_logprobs",
    "teacher_logprobs",
    "forward_backward",
    "optimizer",
    "sync",
    "eval",
    "checkpoint",
    "log",
)
"""What a step spends its time on, in order; whatever is left of the wall clock is ``idle``."""

OVERLAPS = ("grade", "sampling")
"""Work that runs beside a phase, measured apart: it is not part of the sum."""


class StepClock:
    """Divides the wall clock of a step among its phases, so that the parts add up to the whole.

    At each instant one phase at most is running: a phase begun inside another pauses the outer one. `lap` ends a
    step and begins the next at the same instant, so that no time falls between steps; what is written to the logs
    after `lap` counts in the next step.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._beside = dict.fromkeys(OVERLAPS, 0.0)
        self._running: list[str] = []
        self._start = self._mark = now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the block as `name`, one of `PHASES`."""
        if name not in self._spent:
            raise ValueError(f"phase {name!r} is not one of {', '.join(PHASES)}")
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def move(self, source: str, target: str, seconds: float) -> None:
        """Book `seconds` that were counted as phase `source` as `target`: known only afterwards whose they were."""
        self._spent[source] -= seconds
        self._spent[target] += seconds

    def overlap(self, name: str, seconds: float) -> None:
        """Add work that ran beside a phase, one of `OVERLAPS`; its seconds may exceed the wall clock's."""
        if name not in self._beside:
            raise ValueError(f"overlap {name!r} is not one of {', '.join(OVERLAPS)}")
        self._beside[name] += seconds

    def lap(self) -> dict[str, float]:
        """End the step; seconds of ``time/step``, ``time/PHASE`` of each phase, ``time/idle``, ``time/beside/NAME``."""
        self._charge()
        total = self._mark - self._start
        result = {"time/step": total} | {f"time/{name}": spent for name, spent in self._spent.items()}
        result["time/idle"] = total - math.fsum(self._spent.values())
        result |= {f"time/beside/{name}": spent for name, spent in self._beside.items()}
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._beside = dict.fromkeys(OVERLAPS, 0.0)
        self._start = self._mark
        return result

    def _charge(self) -> None:
        """Book the time since the last change of phase to the phase that was running."""
        now = self._now()
        if self._running:
            self._spent[self._running[-1]] += now - self._mark
        self._mark = now
