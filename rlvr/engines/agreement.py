"""The distance between two sets of log-probabilities of the same tokens, and how large it may be."""

from __future__ import annotations

from collections.abc import Sequence

Logprobs = Sequence[Sequence[float]]
FOLLOWS = 0.25
"""Engine and learner may be this far apart, as a share of the learner's change; a stale engine is at about 1."""


def distance(first: Logprobs, second: Logprobs) -> float:
    """Mean absolute difference in nats over all tokens but the first of each sequence, which has no prediction."""
    pairs = [abs(a - b) for x, y in zip(first, second, strict=True) for a, b in zip(x[1:], y[1:], strict=True)]
    return sum(pairs) / len(pairs)
