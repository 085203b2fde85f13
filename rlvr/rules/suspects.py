"""Suspects: completions of high reward whose text does not look like the others'.

| rule       | a completion of high reward whose ...                                                     |
|------------|-------------------------------------------------------------------------------------------|
| short      | tokens are at most a quarter of the median of its step and the ten before                 |
| repeated   | text, to the letter, has a high reward under three or more different references           |
| unreasoned | answer begins at once, where the median completion reasons for ten words or more          |

A reward is high from nine tenths of the way between the lowest and the highest. A suspect is a text to read, not a
verdict. The limits are defined here; `rlvr.view.suspects` shows every completion of a run beyond them, and the
rules of `rlvr.doctor.suspicious` say whether there are too many of them lately to be an accident.
"""

from __future__ import annotations

import re
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain

HIGH = 0.9
SHORT = 0.25
STEPS = 10
"""Earlier steps whose lengths count."""
REFERENCES = 3
REASONED = 10
"""Words before the answer that the median completion must have for the rule to say anything."""
UNREASONED = 0.1
"""Share of that median up to which an answer begins at once."""

MARKERS = ("<answer>", "\\boxed", "####", "nswer is", "nswer:")
"""What an answer begins with."""
TAGS = re.compile(r"</?\w+>")


def high_reward(least: float, greatest: float) -> float:
    """The reward from which a completion is looked at."""
    return least + HIGH * (greatest - least)


def short_limits(lengths: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """For each step the tokens up to which a completion is very short, from the lengths of each step's completions.

    Measured against the completions of the time: a policy that learns to be brief is no suspect, one that jumps there
    is.
    """
    recent: deque[Sequence[int]] = deque(maxlen=STEPS + 1)
    limits = {}
    for step in sorted(lengths):
        recent.append(lengths[step])
        limits[step] = int(SHORT * statistics.median(chain.from_iterable(recent)))
    return limits


def unreasoned_limit(median: float) -> int | None:
    """Words before the answer up to which it is given at once, where the median completion has `median` of them; None
    where that is too few to call reasoning a habit."""
    return None if median < REASONED else int(UNREASONED * median)


def words_before_answer(text: str) -> int | None:
    """Words before the last sign of an answer, tags not counted; None without such a sign."""
    place = max(text.rfind(marker) for marker in MARKERS)
    if place < 0:
        return None
    return len(TAGS.sub(" ", text[:place]).split()) if place < 1000 else text.count(" ", 0, place) + 1
