"""Ranks wait for rank 0 in a group of their own, longer than any collective of the default group may take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlvr.control as control

ROOT = Path(__file__).parents[1]

RANKS = """
import time
from datetime import timedelta
import torch, torch.distributed as dist
import rlvr.control as control
from rlvr.run.signals import Preemption

dist.init_process_group("gloo", timeout=timedelta(seconds=3))
control.open_group(60)
rank = dist.get_rank()
if rank == 0:
    time.sleep(6)  # samples
assert Preemption(control.any_rank).agreed() is False
assert control.any_rank(rank == 1) is True
if rank == 0:
    time.sleep(6)
assert control.from_main(("rank", rank)) == ("rank", 0)
assert control.scatter([["a"], ["b"]] if rank == 0 else None) == [["a"], ["b"]][rank]
assert control.scatter(None) is None
one = torch.ones(1)
dist.all_reduce(one)
print(f"rank {rank} went on with {int(one)}", flush=True)
if rank == 0:
    time.sleep(6)
try:
    dist.all_reduce(one)
except RuntimeError as error:
    print(f"rank {rank}: a collective of the default group ends after its own timeout", flush=True)
"""


@pytest.mark.slow
def test_ranks_outlive_a_wait_that_a_collective_would_not(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(RANKS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    for rank in (0, 1):
        assert f"rank {rank} went on with 2" in done.stdout, done.stderr[-3000:]
    assert "rank 1: a collective of the default group ends after its own timeout" in done.stdout


def test_one_process_gives_back_what_it_is_given() -> None:
    control.wait()
    assert control.any_rank(True) is True
    assert control.from_main("x") == "x"
    assert control.scatter([3]) == 3
    assert control.scatter(None) is None
