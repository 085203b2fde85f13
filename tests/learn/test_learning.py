"""Objectives learn: a small part of `make bench-learning`, whose table is docs/learning.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.learning import ENOUGH, OBJECTIVES, STEPS, steps_to_learn
from rlvr.config.losses import ClipSurrogate, Surrogate


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip, ratio sequence_mean (GSPO)", "squared"])
def test_a_tiny_model_learns_the_toy_task(name: str) -> None:
    """From a reward of 0.11 to 0.9 of the reachable within 60 steps of two updates each."""
    steps, reward = steps_to_learn(OBJECTIVES[name], seed=0)
    assert steps is not None
    assert 3 < steps <= STEPS
    assert reward >= ENOUGH


def test_every_surrogate_is_in_the_table_and_learned() -> None:
    """The page holds each objective with three seeds, none of which failed, and no surrogate is left out."""
    types = {settings.get("surrogate", ClipSurrogate().model_dump())["type"] for settings in OBJECTIVES.values()}
    known = set(re.findall(r"tag='(\w+)'", repr(Surrogate))) - {"plugin"}
    assert types == known
    assert len(known) == 10
    page = (Path(__file__).parents[2] / "docs/learning.md").read_text()
    for name in OBJECTIVES:
        assert re.search(rf"^\| {re.escape(name)} \| \d+, \d+, \d+ \|", page, re.MULTILINE), name
