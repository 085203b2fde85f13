"""Times the phases of an update on devices that execute asynchronously."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch


class Clock(Protocol):
    """Measures the phases of an update."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Counts the time inside the block."""


class NoClock:
    """Measures nothing."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Leaves the block alone."""
        return nullcontext()


class DeviceClock:
    """A clock whose phases end when the device has done its work: time is charged to who caused it."""

    def __init__(self, clock: Clock | None, device: torch.device) -> None:
        self._clock, self._device = clock or NoClock(), device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside the block and what the device still has to do at its end."""
        with self._clock.phase(name):
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
