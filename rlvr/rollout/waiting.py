"""Waits for groups: raises the error that ended one, warns when nothing changes for long, and gives up in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rlvr.errors import RlvrError
from rlvr.rollout.activity import Activity
from rlvr.rollout.buffer import Buffer

WARNINGS = 10
"""How often the wait for something that does not come is told before it ends."""


class Stalled(RlvrError, RuntimeError):
    """Engine and graders have ended nothing for ``rollout.stall_timeout`` seconds; the message says what waits."""


class Waiting:
    """Waits for the groups of a buffer, and warns while nothing moves."""

    def __init__(self, buffer: Buffer, activity: Activity, timeout: float, warn: Callable[[str, str], None]) -> None:
        """``timeout`` is ``rollout.stall_timeout``, seconds; ``warn`` gets a name and a message."""
        self._buffer, self._activity, self._timeout, self._warn = buffer, activity, timeout, warn
        self._watcher: asyncio.Task[None] | None = None

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait for `ready`, which is asked after each change; says so when nothing changes for long."""
        while True:
            for pending in self._buffer.pending:
                if pending.task is not None and pending.task.done() and pending.group is None:
                    pending.task.result()  # raises what ended it
            if ready():
                return
            if not await self._activity.changed(self._timeout / WARNINGS):
                unfinished = [str(pending) for pending in self._buffer.unfinished()]
                silent = time.monotonic() - self._activity.last_change
                text = (
                    f"no completion has ended for {silent:.0f} s; {self._activity.running} requests are in the engine, "
                    f"{self._activity.grading} completions at the graders, and these groups wait: "
                    f"{', '.join(unfinished[:8])}" + (f" and {len(unfinished) - 8} more" if len(unfinished) > 8 else "")
                )
                if silent >= self._timeout:
                    raise Stalled(f"{text}; rollout.stall_timeout = {self._timeout:g} s allows no more")
                self._warn("rollouts_stalled", text)

    def watch(self) -> None:
        """From now on, while the learner computes, say so when all completions wait for it."""
        self._watcher = asyncio.create_task(self._tell_blocked())

    def stop_watching(self) -> None:
        """Undo `watch`; safe where nothing is watched."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _tell_blocked(self) -> None:
        interval = self._timeout / WARNINGS
        idle = 0.0
        while True:
            idle = 0.0 if await self._activity.changed(interval) or self._buffer.unfinished() else idle + interval
            if idle:
                names = ", ".join(str(pending) for pending in self._buffer.pending[:8])
                self._warn(
                    "rollouts_blocked",
                    f"the engine has been idle for {idle:.0f} s: {len(self._buffer.pending)} finished groups wait for "
                    f"the learner, and rollout.schedule allows no more to be begun: {names}",
                )
