"""Objectives learn: a small part of `make bench-learning`."""

from __future__ import annotations

import re

import pytest

from benchmarks.learning import ENOUGH, OBJECTIVES, STEPS, steps_to_learn
from rlvr.config.losses import ClipSurrogate, Surrogate


@pytest.mark.parametrize("name", ["clip, ratio sequence_mean (GSPO)", "squared"])
def test_a_tiny_model_learns_the_toy_task(name: str) -> None:
    """From a reward of 0.11 to 0.9 of the reachable within 60 steps of two updates each."""
    steps, reward = steps_to_learn(OBJECTIVES[name], seed=0)
    assert steps is not None
    assert 3 < steps <= STEPS
    assert reward >= ENOUGH


def test_the_benchmark_leaves_no_surrogate_out() -> None:
    types = {settings.get("surrogate", ClipSurrogate().model_dump())["type"] for settings in OBJECTIVES.values()}
    known = set(re.findall(r"Tag\('(\w+)'\)", repr(Surrogate))) - {"plugin"}
    assert types == known
    assert len(known) == 10
