"""Two processes on gloo run the whole loop as one process does, and end together whatever ends them."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from rlvr.runlog.run_log import read_metrics
from rlvr.state import checkpoint
from tests.helpers import make_tiny_tokenizer
from tests.recorded import piece, write_recording
from tests.runs import Workspace, assert_trained, family, launcher, wait_for

pytestmark = pytest.mark.slow

STEPS = 5
LIMIT = 240
"""Seconds after which a run is taken to hang."""

PLUG_INS = '''
import asyncio, dataclasses
from pathlib import Path

from rewards import Outcome, Verdict
from tests.recorded import replay


async def workflow(session):
    """Recorded completions; in the third step they do not come if the test wants so, in the sixth one is not scored."""
    if session.engine.version == 2 and Path("stop").exists():
        Path("reached").touch()
        await asyncio.sleep(3600)
    rollouts = await replay(session)
    if session.engine.version == 5:
        rollouts[0] = dataclasses.replace(
            rollouts[0], reward=None, verdicts={"even": Verdict(None, Outcome.ERROR, {"error": "made up"})}
        )
    return rollouts
'''


def recorded_workspace(folder: Path, model: Path) -> Workspace:
    """A recipe whose rollouts are recorded, with several micro-batches for each rank and a KL term."""
    work = Workspace(folder, model)
    work.write_problems([{"problem": f"What is {a}+{a}?", "answer": "aeiou"} for a in range(10, 14)])
    work.write("plug_ins.py", PLUG_INS)
    work.recipe["run"] |= {"steps": STEPS, "save_every": 1, "keep": 2}
    work.recipe["rollout"] |= {"workflow": "plug_ins:workflow", "self_test": True}
    work.recipe["algorithm"] |= {
        "aggregation": {"type": "prompt_mean"}, "kl": {"type": "k3", "coefficient": 0.05},
        "correction": {"type": "truncate"},
    }  # fmt: skip
    work.recipe["learner"] |= {"lr": 3.0e-3, "micro_batch_tokens": 60}
    tokenizer, rng, recording = make_tiny_tokenizer(), random.Random(0), {}
    for problem in range(1, 5):
        for visit in range(STEPS + 1):
            for sample in range(4):
                ids = [rng.randrange(4, 98) for _ in range(rng.randint(1, 11))]
                logprobs = [rng.gauss(-4.5, 0.3) for _ in range(len(ids) + 1)]
                recording[f"train:{problem}/{visit}/{sample}"] = [piece(tokenizer.decode(ids), [*ids, 2], logprobs)]
    write_recording(work.folder, recording)
    return work


@dataclass(frozen=True)
class Launch:
    """One start of two processes under `accelerate launch`, ended."""

    status: int
    out: str
    err: str
    left: list[psutil.Process]
    """Processes of it that were still there afterwards."""
    steps: list[int]
    """Those in metrics.jsonl then."""


@dataclass(frozen=True)
class Story:
    """One process: five steps. Two processes: Ctrl-C in the third step; again, until the sixth fails on rank 0."""

    work: Workspace
    interrupted: Launch
    failed: Launch


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path) -> Story:
    work = recorded_workspace(tmp_path_factory.mktemp("two") / "work", tiny_tied)
    assert work.run("name=one") == 0
    (work.folder / "stop").touch()
    interrupted = launch(work, interrupt=True)
    checkpoint.verify(work.results("two") / "checkpoints/step_000002")
    (work.folder / "stop").unlink()
    return Story(work, interrupted, launch(work, "run.steps=7"))


def launch(work: Workspace, *overrides: str, interrupt: bool = False) -> Launch:
    """Start two processes and see them end."""
    process = work.start("name=two", *overrides, launcher=launcher("cpu2"))
    processes: list[psutil.Process] = []
    try:
        if interrupt:
            wait_for(work.folder / "reached", process)
            processes = family(process)
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60 if interrupt else LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    left = psutil.wait_procs(processes, timeout=10)[1]
    return Launch(process.returncode, out, err, left, [line["step"] for line in read_metrics(work.results("two"))])


def assert_same_rollouts(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """The same lines; what the learner says of their tokens is computed by the rank that has them, and agrees to
    float32 rounding."""
    own = [[line.pop("trainer_logprobs", None) for line in lines] for lines in (ours, theirs)]
    assert ours == theirs
    assert sum(values is not None for values in own[0]) >= STEPS
    for mine, other in zip(*own, strict=True):
        assert mine == (other if other is None else pytest.approx(other, abs=1e-4))


def test_two_processes_end_with_the_weights_of_one(story: Story) -> None:
    """Theorem: five steps of `rlvr train` (sampling played back; grading, advantages, packing, ten optimiser steps with
    a reference model, sync, self-test and checkpoints all real) on two gloo processes, interrupted and resumed on the
    way, leave the weights of one uninterrupted process to float32 rounding, its metrics but for how the batches were
    cut, and its rollouts exactly."""
    work = story.work
    assert "2 on cpu" in story.failed.out
    ours, theirs = work.weights("two", "step_000005"), work.weights("one")
    start = load_file(work.folder / "model" / "model.safetensors")
    moved = max(float((theirs[name] - start[name]).abs().max()) for name in theirs)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    assert moved > 1e-2
    assert apart < 2e-5, f"weights moved by {moved:.2g}"
    assert_same_rollouts([one for one in work.rollouts("two") if one["step"] <= STEPS], work.rollouts("one"))
    one, two = work.metrics("one"), work.metrics("two")
    assert_trained(one)
    for ours_then, theirs_then in zip(two, one, strict=True):
        assert_close(ours_then, theirs_then)


def assert_close(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Metrics of a step by two processes and by one; how batches are cut among ranks is their own business."""
    assert ours.keys() == theirs.keys()
    cut = {"tokens/computed", "tokens/padding_share", "update/micro_batches", "update/flops", "sync/mismatch"}
    for key in theirs.keys() - cut:
        assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), key


def test_ctrl_c_ends_both_processes_and_leaves_whole_files(story: Story) -> None:
    """Rank 0 waits for completions and rank 1 for rank 0; the signal comes from the terminal and from the launcher."""
    assert story.interrupted.status != 0
    assert "rlvr: stopped by Ctrl-C; what was written is whole" in story.interrupted.err
    assert not story.interrupted.left
    assert story.interrupted.steps == [1, 2]


def test_both_processes_end_when_rank_0_cannot_go_on(story: Story) -> None:
    """Its message is there, the other does not hang, nor bury the message under a trace of its own."""
    assert story.failed.status != 0
    assert "rlvr: TooManyUnscored: 4 of 16 rollouts could not be scored" in story.failed.err
    assert "rlvr: rank 1 ends because another process did" in story.failed.err
    assert "[rank1]" not in story.failed.err
    assert story.failed.steps == [1, 2, 3, 4, 5]
    assert {line["step"] for line in story.work.rollouts("two")} == {1, 2, 3, 4, 5}
    assert checkpoint.verify(story.work.results("two") / "checkpoints/latest").step == 5


def test_only_rank_0_speaks(story: Story) -> None:
    for step in (3, 4, 5):
        assert story.failed.out.count(f"step {step}/7") == 1
