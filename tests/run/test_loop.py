"""Whole runs: the same twice, the same after an interruption anywhere, the same under a launcher.

All runs of this file train one recipe, with an eval set and the start-up self-test, so that each is compared with one
uninterrupted run of this process: weights to the last bit, metrics number for number, rollouts line for line.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from rlvr.config import load_recipe
from rlvr.run import loop
from rlvr.run.build import build
from rlvr.runlog.run_log import read_metrics
from rlvr.state import checkpoint
from rlvr.view.runs import Run as ViewedRun
from tests.runs import (
    Workspace,
    assert_same_weights,
    assert_trained,
    elsewhere,
    family,
    launcher,
    nothing_left_behind,
    wait_for,
)

PLUG_INS = '''
import asyncio, os, time
from pathlib import Path

import torch

from rlvr.learn.losses.surrogates import clip_surrogate
from rlvr.rollout.collector import completions_to_one_prompt


def reached(place):
    """True in the third step, if the test has asked to be told there."""
    wanted = os.path.exists("stop_at_" + place) and os.path.exists("runs/run/checkpoints/step_000002")
    if wanted:
        Path("reached").touch()
    return wanted


async def workflow(session):
    """As the default; where it is to stop, some problems' completions are waited for and others' never come."""
    if reached("rollout") and int(session.problem.id.split(":")[1]) % 2:
        await asyncio.sleep(3600)
    if reached("closing"):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            Path("closing").touch()
            time.sleep(3600)
    return await completions_to_one_prompt(session)


def surrogate(tokens):
    """As the built-in one."""
    if reached("update"):
        time.sleep(3600)
    if reached("slow_update"):
        time.sleep(2)
    ratio = torch.exp(tokens.trainer_logprobs - tokens.old_logprobs)
    return clip_surrogate(ratio, tokens.advantages, low=0.2, high=0.2)
'''


def make_workspace(folder: Path, model: Path) -> Workspace:
    """The recipe of this file."""
    work = Workspace(folder, model)
    work.write("plug_ins.py", PLUG_INS)
    work.write_problems([{"problem": f"What is {a}+1?", "answer": "aeiou"} for a in range(30, 34)], "eval.jsonl")
    work.recipe["problems"]["eval"] = [
        {"name": "held_out", "source": {"type": "jsonl", "path": "eval.jsonl"}, "samples": 2, "k": [1, 2]}
    ]
    work.recipe["run"]["eval_every"] = 3
    work.recipe["rollout"] |= {"self_test": True, "workflow": "plug_ins:workflow"}
    work.recipe["algorithm"] |= {"surrogate": {"type": "plug_ins:surrogate"}, "kl": {"type": "k3"}}
    work.recipe["learner"] |= {"schedule": {"type": "cosine", "warmup_steps": 2}}
    return work


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path) -> Workspace:
    """Four steps in one go."""
    work = make_workspace(tmp_path_factory.mktemp("loop") / "work", tiny_tied)
    with nothing_left_behind():
        assert work.run() == 0
    assert_trained(work.metrics())
    return work


def evaluation(work: Workspace) -> list[dict[str, Any]]:
    """The completions of the eval set, without times; none where the recipe has no eval set."""
    path = work.results() / "evaluations/held_out/rollouts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key != "grade_seconds"} for line in lines]


def assert_same_run(ours: Workspace, theirs: Workspace) -> None:
    """Weights, metrics and rollouts, times aside."""
    for one, other in zip(ours.metrics(), theirs.metrics(), strict=True):
        assert {key for key in one | other if one.get(key) != other.get(key)} == set(), f"step {one['step']}"
    assert ours.rollouts() == theirs.rollouts()
    assert evaluation(ours) == evaluation(theirs)
    assert_same_weights(ours.weights(), theirs.weights())


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(uninterrupted: Workspace) -> None:
    """A line of metrics a step and one for the start, a line for each rollout, the newest checkpoints, the recipe."""
    folder = uninterrupted.results()
    assert [line["step"] for line in read_metrics(folder)] == [0, 1, 2, 3, 4]
    assert [line["step"] for line in uninterrupted.rollouts()] == [step for step in (1, 2, 3, 4) for _ in range(16)]
    assert sorted(one.name for one in (folder / "checkpoints").iterdir()) == ["latest", "step_000002", "step_000004"]
    assert load_recipe(folder / "recipe.yaml").run.steps == 4
    evaluated = [line["step"] for line in read_metrics(folder) if "eval/held_out/pass@2" in line]
    assert evaluated == [0, 3, 4]
    answers = evaluation(uninterrupted)
    assert [line["step"] for line in answers] == [step for step in (0, 3, 4) for _ in range(len(answers) // 3)]
    shown = ViewedRun(folder / "evaluations/held_out", "held_out")
    shown.index.catch_up()
    assert shown.rollouts.overview()["rollouts"] == len(answers) > 0
    assert (folder / "curve.png").stat().st_size > 1000


def test_the_times_of_a_step_add_up_to_its_wall_clock(uninterrupted: Workspace) -> None:
    """Idle time is named and small: nothing that takes long is outside the phases."""
    for line in read_metrics(uninterrupted.results()):
        parts = sum(v for k, v in line.items() if k.startswith("time/") and k not in ("time/step", "time/grade_max")
                    and not k.startswith("time/beside/"))  # fmt: skip
        assert parts == pytest.approx(line["time/step"], abs=1e-6)
        assert all(value >= 0 for key, value in line.items() if key.startswith("time/"))


def test_problems_are_drawn_without_replacement_and_versions_are_those_of_the_step_before(
    uninterrupted: Workspace,
) -> None:
    """Twelve problems, four a step: the fourth step begins the second visit. Every token of step s was sampled by the
    weights of version s - 1: the loop is on-policy."""
    drawn = {(line["step"], line["problem_id"], line["visit"]) for line in uninterrupted.rollouts()}
    assert len({problem for step, problem, visit in drawn if step <= 3 and visit == 0}) == 12
    assert {visit for step, _, visit in drawn if step == 4} == {1}
    for line in uninterrupted.rollouts():
        assert line["versions"] == [[line["step"] - 1, line["tokens"]]]


@pytest.mark.slow
def test_a_run_under_accelerate_with_a_verifier_of_ones_own_is_the_same_run(
    uninterrupted: Workspace, tmp_path: Path, tiny_tied: Path
) -> None:
    """`accelerate launch --config_file launch/cpu.yaml -m rlvr train`, in a process with other hashes, equals
    `rlvr train` to the last bit; the verifier lies in the current directory."""
    work = make_workspace(tmp_path / "work", tiny_tied)
    done = work.start(launcher=launcher("cpu"), PYTHONHASHSEED="77")
    out, err = done.communicate(timeout=240)
    assert done.returncode == 0, err
    assert "step 4/4" in out
    assert_same_run(work, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["rollout", "update"])
def test_interrupted_in_the_middle_of_a_step_and_resumed_it_is_the_same_run(
    uninterrupted: Workspace, tmp_path: Path, tiny_tied: Path, place: str
) -> None:
    """Ctrl-C while completions are sampled and while the learner computes, both in step 3, after the checkpoint of step
    2: a clear message, status 130, no process left, whole files; the same command again ends in the weights, metrics
    and rollouts of a run that was never interrupted, without gaps or doubles."""
    work = make_workspace(tmp_path / "work", tiny_tied)
    work.write(f"stop_at_{place}", "")
    process = work.start("run.background_save=false", TORCHELASTIC_RUN_ID="none")
    try:
        wait_for(work.folder / "reached", process)
        processes = family(process)
        assert len(processes) > 1, "the graders should be running"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does,
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # and a launcher after it
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-2:] == [
        "rlvr: stopped by Ctrl-C; what was written is whole",
        "rlvr: the same command goes on after step 2, the last that was saved",
    ]
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    assert [line["step"] for line in read_metrics(work.results())] == [0, 1, 2]
    assert {line["step"] for line in work.rollouts()} == {1, 2}
    checkpoint.verify(work.results() / "checkpoints/step_000002")

    (work.folder / f"stop_at_{place}").unlink()
    assert work.run() == 0
    assert_same_run(work, uninterrupted)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, tiny_tied: Path) -> None:
    """The workflow does not let itself be cancelled, so that closing would take an hour; the second signal ends the run
    and its graders all the same, and what was written is whole."""
    work = make_workspace(tmp_path / "work", tiny_tied)
    work.write("stop_at_closing", "")
    process = work.start("run.background_save=false")
    try:
        wait_for(work.folder / "reached", process)
        processes = family(process)
        os.killpg(process.pid, signal.SIGINT)
        wait_for(work.folder / "closing", process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "rlvr: ended at once" in err
    assert not psutil.wait_procs(processes, timeout=10)[1]
    checkpoint.verify(work.results() / "checkpoints/step_000002")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["rollout", "slow_update"])
def test_sigterm_saves_the_steps_done_and_the_same_command_goes_on(
    uninterrupted: Workspace, tmp_path: Path, tiny_tied: Path, place: str
) -> None:
    """While completions of step 3 are sampled they are given up; step 2 is saved already. While the learner computes
    step 3 that step is finished and saved, which no interval asked for. Status 75; resumed, it is the run never
    stopped."""
    work = make_workspace(tmp_path / "work", tiny_tied)
    work.write(f"stop_at_{place}", "")
    after = 3 if place == "slow_update" else 2
    process = work.start("run.background_save=false")
    try:
        wait_for(work.folder / "reached", process)
        processes = family(process)
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, err
    assert f"rlvr: stopped by SIGTERM after step {after}, which is saved: the same command goes on" in err
    assert not psutil.wait_procs(processes, timeout=10)[1]
    assert [line["step"] for line in read_metrics(work.results())] == list(range(after + 1))
    assert checkpoint.verify(work.results() / "checkpoints/latest").step == after
    (work.folder / f"stop_at_{place}").unlink()
    assert work.run() == 0
    assert_same_run(work, uninterrupted)


def test_a_finished_run_does_no_step_again(uninterrupted: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    before = (uninterrupted.metrics(), (uninterrupted.results() / "metrics.jsonl").read_bytes())
    assert uninterrupted.run() == 0
    assert before == (uninterrupted.metrics(), (uninterrupted.results() / "metrics.jsonl").read_bytes())
    said = capsys.readouterr().out
    assert "step 1/4" not in said
    assert "nothing to do: step 4 of 4 is done already" in said
    assert "run.steps=8 goes on, another name=... starts anew" in said
    assert "starting the engine" not in said
    assert f"next:  rlvr view {Path('runs') / 'run'} shows the run" in said
    assert "saved: runs/run/checkpoints/step_000004" in said


def test_what_the_same_command_does_after_an_interruption() -> None:
    def said(done: int, saved: int | None) -> str:
        run: Any = SimpleNamespace(done=done, saver=SimpleNamespace(last=saved))
        return loop.how_to_go_on(run)

    assert said(0, None) == said(3, None) == "no step was saved: the same command begins again"
    assert said(5, 5) == "the same command goes on after step 5, the last that was saved"
    assert said(6, 5) == "the same command goes on after step 5, the last that was saved, and does step 6 again"
    assert said(8, 5).endswith("and does steps 6 to 8 again")


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_other_settings_where_they_may_change(
    uninterrupted: Workspace, tmp_path: Path, tiny_tied: Path
) -> None:
    """More steps than before: the run goes on after its last step; `resume: never` refuses it, `must` a new one."""
    work = make_workspace(tmp_path / "work", tiny_tied)
    assert work.run("run.resume=must") == 2
    assert work.run("run.steps=1") == 0
    assert work.run("run.resume=never") == 2
    assert work.run("run.steps=2", "run.resume=must") == 0
    assert [line["step"] for line in read_metrics(work.results())] == [0, 1, 2]


@pytest.mark.slow
def test_resumed_several_times_it_is_the_same_run(tmp_path: Path, tiny_tied: Path) -> None:
    """Eleven steps in one go, and in four: longer than what the freshness probe looks back on."""
    whole, parts = Workspace(tmp_path / "whole", tiny_tied), Workspace(tmp_path / "parts", tiny_tied)
    for work in (whole, parts):
        work.recipe["rollout"] |= {"prompts_per_step": 2, "max_new_tokens": 6}
    assert whole.run("run.steps=11") == 0
    for steps in (4, 5, 10, 11):
        assert parts.run(f"run.steps={steps}") == 0
    assert_trained(whole.metrics())
    assert_same_run(parts, whole)


def test_ranks_other_than_0_take_part_without_deciding(workspace: Workspace) -> None:
    """With `run.coordinator` None, as on every rank but 0, a step draws no problem and writes no line."""
    with elsewhere(workspace.folder):
        workspace.save_recipe()
        with build(load_recipe("recipe.yaml")) as run:
            coordinator, run.coordinator = run.coordinator, None
            assert loop.evaluate(run) == {}
            loop.measure_start(run)
            run.coordinator = coordinator
    assert (workspace.results() / "metrics.jsonl").read_text() == ""


def test_steps_at_which_something_is_due(workspace: Workspace) -> None:
    """Every so many steps and at the last, or only at the last."""
    with elsewhere(workspace.folder):
        workspace.save_recipe()
        recipe = load_recipe("recipe.yaml", ["run.steps=7"])
        run: Any = type("OnlyARecipe", (), {"recipe": recipe})
        assert [step for step in range(1, 8) if loop.is_due(3, step, run)] == [3, 6, 7]
        assert [step for step in range(1, 8) if loop.is_due(None, step, run)] == [7]


@pytest.mark.slow
def test_a_run_in_this_process_leaves_it_as_it_was(workspace: Workspace) -> None:
    """Signal handlers, threads and child processes."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), torch.get_num_threads()
    with nothing_left_behind():
        assert workspace.run("run.steps=1") == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), torch.get_num_threads()) == before
