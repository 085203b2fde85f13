"""No token is lost, doubled, mislabelled or trained too late, whatever the schedule: random runs on a scripted engine.

`benchmarks/random_schedules.py` plays 10,000 of them; here are a few hundred.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollout.scripted import make_renderer, play

EACH, PARTS = 25, 8


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_random_runs_balance_their_books(part: int, tiny_tied: Path) -> None:
    """Theorem: for every schedule, the trained completions are the sequences that the engine emitted, token for token,
    with the version that each was emitted under; each drawn group is trained once, or waits, or was dropped and
    counted; no trained token is past the bound. Restarts from the state of any step included."""
    renderer = make_renderer(tiny_tied)
    for seed in range(part * EACH, (part + 1) * EACH):
        play(seed, renderer)
