"""How SIGINT and SIGTERM end a command.

| signal        | while a run trains                               | elsewhere           | exit status   |
|---------------|--------------------------------------------------|---------------------|---------------|
| first SIGINT  | closes what is open, saves nothing new           | the same            | `INTERRUPTED` |
| second SIGINT | ends at once; children see their parent's end    | the same            | `INTERRUPTED` |
| SIGTERM       | drops this step's completions, saves what's done | closes what is open | `TERMINATED`  |
| a stop rule   | the same, after the step in which it fired       |                     | `STOPPED`     |

SIGTERM comes from a scheduler that leaves little time: the run does not wait for a whole step's completions, and
nothing that was trained is lost.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

INTERRUPTED = 130
"""128 + SIGINT, as shells count."""
TERMINATED = 75
"""EX_TEMPFAIL of sysexits.h, "the user is invited to retry": the same command goes on."""

STOPPED = 3
"""A rule of ``run.stop_on`` ended the run; 0, 1 and 2 say that it is done, has failed, could not begin."""

ECHO_SECONDS = 5.0
"""A second SIGINT so soon after the first is the launcher's, which passes on what the terminal has sent already."""

PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "rank 0 could not prepare this update")
"""How torch and the learner say, in a `RuntimeError`, that another process of the run has ended."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Interrupted(KeyboardInterrupt):
    """A signal ends the command; what it had begun is closed on the way out."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status
        """What the process exits with."""


class _GivenUp(BaseException):
    """Raised by SIGTERM inside `Preemption.attempt`, and caught there."""


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM within the block raise `Interrupted`, once; a second SIGINT ends the process at once."""
    first: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            if number == signal.SIGTERM:
                raise Interrupted("SIGTERM", TERMINATED)
            raise Interrupted("Ctrl-C", INTERRUPTED)
        if number == signal.SIGINT and not (_is_launched_by_torch() and now - first[0] < ECHO_SECONDS):
            os.write(2, b"\nrlvr: ended at once\n")
            os._exit(INTERRUPTED)

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    end_with_launcher()
    try:
        yield
    except Interrupted:  # exiting: ignore the launcher's repeated signal; a second Ctrl-C still kills
        before = {signal.SIGINT: signal.SIG_IGN if _is_launched_by_torch() else stop, signal.SIGTERM: signal.SIG_IGN}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Preemption:
    """SIGTERM as a wish, granted before the next update of the weights; every rank enters it as a context manager."""

    def __init__(self, any_rank: Callable[[bool], bool]) -> None:
        """`any_rank` tells every rank whether one of them passed True; collective."""
        self.requested = False
        """SIGTERM has come to this rank, or a stop rule fired on it."""
        self.rule: str | None = None
        """Which stop rule fired on this rank, and what it found."""
        self._any_rank, self._may_raise = any_rank, False
        self._before: Any = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():  # Python allows no other to set handlers
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:  # ignore the launcher's repeated signal while exiting
            signal.signal(signal.SIGTERM, signal.SIG_IGN if self.requested else self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._may_raise:
            self._may_raise = False
            raise _GivenUp

    def stop(self, rule: str) -> None:
        """Wish for the end as SIGTERM does, because a rule of the run's own fired."""
        self.requested, self.rule = True, rule

    def attempt(self, work: Callable[[], T]) -> T | None:
        """``work()``, or None if SIGTERM came before or meanwhile: then it is left where it stands."""
        try:
            self._may_raise = True
            if self.requested:
                return None
            result = work()
            self._may_raise = False
            return result
        except _GivenUp:
            return None
        finally:
            self._may_raise = False

    def agreed(self) -> bool:
        """True on every rank once SIGTERM has come to any of them."""
        return self._any_rank(self.requested)

    def agreed_on_rule(self) -> bool:
        """Once `agreed`: True on every rank if it was a rule that wished for the end."""
        return self._any_rank(self.rule is not None)


def end_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher ends: accelerate's leaves its child behind when it is ended."""
    if sys.platform == "linux" and any(name.startswith("ACCELERATE_") for name in os.environ):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _is_launched_by_torch() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
