"""Admission to the engine: which requests may sample, in which order, and how many tokens.

Every request asks here before it samples. While the gate is closed, requests wait. When it opens, they are admitted by
their fixed order, not by when they asked, so that a repeated run forms the same batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Place = tuple[int, int, int]
"""Whose request it is: number of the group in the order of drawing, index of the rollout (-1 for the greedy one),
segment."""


class Gate:
    """Admits requests while it is open; stateful."""

    def __init__(self, *, is_open: bool = False, on_wait: Callable[[], None] = lambda: None) -> None:
        """`on_wait` is called each time that a request begins to wait."""
        self.is_open = is_open
        self._on_wait = on_wait
        self.asked: set[int] = set()
        """Groups that have asked since this set was last emptied."""
        self._budget: int | None = None
        self._spent: dict[tuple[int, int], int] = {}
        self._waiting: list[tuple[Place, asyncio.Future[None]]] = []

    def open(self, budget: int | None = None) -> None:
        """Admit what waits; `budget` is the most tokens that each rollout may sample until the gate opens again."""
        self.is_open, self._budget, self._spent = True, budget, {}
        for _, future in sorted(self._waiting, key=lambda waiting: waiting[0]):
            if not future.done():
                future.set_result(None)
        self._waiting = []

    def close(self) -> None:
        """Admit nothing more; requests in the engine go on."""
        self.is_open = False

    def has_waiting(self, order: int) -> bool:
        """True if a request of the group that was drawn as number `order` waits here."""
        return any(place[0] == order and not future.done() for place, future in self._waiting)

    async def enter(self, place: Place, wanted: int) -> int:
        """Wait for admission; returns how many of the `wanted` tokens may be sampled now, at least one."""
        self.asked.add(place[0])
        while True:
            if self.is_open:
                allowed = wanted if self._budget is None else self._budget - self._spent.get(place[:2], 0)
                if allowed > 0:
                    return min(wanted, allowed)
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((place, future))
            self._on_wait()
            try:
                await future
            finally:
                self._waiting = [waiting for waiting in self._waiting if waiting[1] is not future]

    def spend(self, place: Place, tokens: int) -> None:
        """Count `tokens` that a rollout has sampled against its budget."""
        self._spent[place[:2]] = self._spent.get(place[:2], 0) + tokens
