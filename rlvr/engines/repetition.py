"""Detects a completion that repeats itself: its last tokens are many copies of one pattern (Kimi k1.5, 2501.12599)."""

from __future__ import annotations

from collections.abc import Sequence

from rlvr.records import RepetitionStop


def repeats(ids: Sequence[int], stop: RepetitionStop) -> bool:
    """True where `ids` end in ``count`` copies of one pattern of ``shortest`` to ``longest`` tokens; what vLLM's own
    detector says."""
    for size in range(stop.shortest, stop.longest + 1):
        span = size * stop.count
        if span > len(ids):
            return False
        # cheap first: most endings differ here already
        if ids[-1] == ids[-1 - size] and list(ids[-span:-size]) == list(ids[-span + size :]):
            return True
    return False
