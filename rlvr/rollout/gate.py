"""Where sampling waits while it must not run.

Each answer of each group asks at the gate before it samples. While the gate is closed the askers wait; when it opens
they are let in in the order of their places, whatever the order in which they came, so that a step's batch is the same
in each repetition of a run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

Place = tuple[int, int, int]
"""Whose request it is: place of the group in the order of drawing, index of the answer (-1 for the greedy one),
segment."""


class Gate:
    """Lets requests in while it is open, and knows what runs, what waits and when something last changed."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.is_open = is_open
        self.running = 0
        """Requests in the engine."""
        self.grading = 0
        """Answers at the graders."""
        self.asked: set[int] = set()
        """Groups that have asked since this set was last emptied."""
        self.last_sampled = 0.0
        """When the last request ended (`time.perf_counter`)."""
        self.busy = 0.0
        """Seconds in which at least one request was in the engine."""
        self.last_change = time.monotonic()
        self._budget: int | None = None
        self._spent: dict[tuple[int, int], int] = {}
        self._waiting: list[tuple[Place, asyncio.Future[None]]] = []
        self._watchers: list[asyncio.Future[None]] = []
        self._since = 0.0

    def open(self, budget: int | None = None) -> None:
        """Let in what waits; with `budget` each answer may sample so many tokens until the gate is opened again."""
        self.is_open, self._budget, self._spent = True, budget, {}
        for _, future in sorted(self._waiting, key=lambda one: one[0]):
            if not future.done():
                future.set_result(None)
        self._waiting = []

    def close(self) -> None:
        """Let nothing more in; what runs goes on."""
        self.is_open = False

    def has_waiting(self, order: int) -> bool:
        """True if an answer of this group waits here."""
        return any(place[0] == order and not future.done() for place, future in self._waiting)

    async def enter(self, place: Place, wanted: int) -> int:
        """How many of the `wanted` tokens may be sampled now, at least one; waits until it is so."""
        self.asked.add(place[0])
        while True:
            if self.is_open:
                allowed = wanted if self._budget is None else self._budget - self._spent.get(place[:2], 0)
                if allowed > 0:
                    return min(wanted, allowed)
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((place, future))
            self.notify()
            try:
                await future
            finally:
                self._waiting = [one for one in self._waiting if one[1] is not future]

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around a request to the engine."""
        if not self.running:
            self._since = time.perf_counter()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.last_sampled = time.perf_counter()
            if not self.running:
                self.busy += self.last_sampled - self._since
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

    def spend(self, place: Place, tokens: int) -> None:
        """An answer has grown by `tokens`."""
        self._spent[place[:2]] = self._spent.get(place[:2], 0) + tokens

    def busy_until_now(self) -> float:
        """`busy`, and the part of the requests under way."""
        return self.busy + (time.perf_counter() - self._since if self.running else 0.0)

    def notify(self) -> None:
        """Something has changed: a request or a grading ended, an answer waits, a group has finished."""
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
