"""Learning rate over the optimiser steps of a run."""

from __future__ import annotations

import math
from typing import assert_never

from rlvr.config.recipe import LRSchedule


def learning_rate(update: int, total_updates: int, peak: float, schedule: LRSchedule) -> float:
    """Learning rate of optimiser step ``update`` (0 is the first) of ``total_updates``.

    Warm-up is linear: step ``warmup_steps - 1`` is the first at the peak. From there the named curve reaches
    ``final * peak`` with the last step, and stays there.
    """
    if update < schedule.warmup_steps:
        return peak * (update + 1) / schedule.warmup_steps
    last = total_updates - 1 - schedule.warmup_steps
    done = 0.0 if last <= 0 else min(1.0, (update - schedule.warmup_steps) / last)
    match schedule.type:
        case "constant":
            return peak
        case "linear":
            return peak * (1.0 - (1.0 - schedule.final) * done)
        case "cosine":
            return peak * (schedule.final + (1.0 - schedule.final) * 0.5 * (1.0 + math.cos(math.pi * done)))
        case _:
            assert_never(schedule.type)
