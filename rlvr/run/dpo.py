"""Direct preference optimisation on rows of prompt, chosen and rejected completion, with the same learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlvr.problems.examples import Pair
from rlvr.run.sft import batches

if TYPE_CHECKING:
    from rlvr.learn.preference import DirectPreference
    from rlvr.learn.update import Learner


def with_reference(learner: Learner, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with the log-probabilities of `learner`'s policy as it is now, the reference; all ranks call it."""
    flat = [sample for pair in pairs for sample in pair]
    logprobs = learner.logprobs([sample.ids for sample in flat])
    known = [
        dataclasses.replace(
            sample,
            behaviour_logprobs=tuple(
                lp if m else 0.0 for lp, m in zip(sampled_logprobs, sample.loss_mask, strict=True)
            ),
        )
        for sample, sampled_logprobs in zip(flat, logprobs, strict=True)
    ]
    return list(zip(known[::2], known[1::2], strict=True))


def prefer(
    learner: Learner,
    objective: DirectPreference,
    pairs: Sequence[Pair],
    *,
    steps: int,
    batch_size: int,
    seed: int,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    save_to: Path | None = None,
) -> None:
    """Train `learner` on `pairs` for `steps` optimiser steps against its own starting policy; `report` gets each
    step's metrics, on every rank."""
    known = with_reference(learner, pairs)
    for step, batch in enumerate(batches(known, batch_size, steps, seed), start=1):
        report(step, learner.preference_update([sample for pair in batch for sample in pair], objective))
    if save_to is not None:
        learner.save_policy(save_to)
