"""Refill and the greedy completion in whole runs: what is drawn, what is trained, what resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvr.config import RecipeError, load_recipe
from rlvr.runlog.run_log import read_metrics
from tests.runs import Workspace, assert_same_weights, assert_trained, elsewhere

pytestmark = pytest.mark.usefixtures("nothing_left")

GRADER = '''
from rewards import Outcome, Verdict


class Divided:
    """Completions to problems whose number is divisible by three are judged by chance (their length), all others
    right."""

    def check_reference(self, reference):
        pass

    def grade(self, completion, reference):
        right = int(reference) % 3 != 0 or len(completion) % 2 == 0
        return Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG)
'''


def make(folder: Path, model: Path, **algorithm: Any) -> Workspace:
    """Twelve problems, of which four can have variance; three steps of two problems with four completions."""
    work = Workspace(folder, model)
    work.write("divided.py", GRADER)
    work.write_problems([{"problem": f"What is {a}?", "answer": str(a)} for a in range(12)])
    work.recipe["rewards"] = {"terms": [{"name": "divided", "verifier": "divided:Divided"}]}
    work.recipe["rollout"] |= {"prompts_per_step": 2, "max_new_tokens": 6}
    work.recipe["run"] |= {"steps": 3, "save_every": 1}
    work.recipe["algorithm"] = algorithm
    return work


def checked(work: Workspace, extra: int) -> list[dict[str, Any]]:
    """The steps' metrics, after the counts that must balance in each."""
    lines = [line for line in work.metrics() if line["step"] > 0]
    logged = work.rollouts()
    for line in lines:
        mine = [one for one in logged if one["step"] == line["step"]]
        drawn = {(one["problem_id"], one["visit"]) for one in mine}
        assert line["groups/total"] == len(drawn) == 2 + line["groups/extra"]
        assert line["groups/trained"] + line["groups/zero_variance"] + line["groups/too_few_scored"] == len(drawn)
        assert line["groups/missing"] == 2 - line["groups/trained"]
        assert 0 <= line["groups/extra"] <= extra
        assert line["groups/extra"] == extra or line["groups/missing"] == 0
        trained = {one["group"] for one in mine if one["advantage"] is not None}
        for group in {one["group"] for one in mine}:
            rewards = {one["reward"] for one in mine if one["group"] == group}
            assert (len(rewards) > 1) == (group in trained)
        if "tokens/generated_per_trained" in line:
            ratio = line["tokens/generated"] / line["tokens/trained"]
            assert line["tokens/generated_per_trained"] == pytest.approx(ratio)
    return lines


@pytest.mark.slow
def test_refill_trains_full_batches_and_resumes_exactly(tmp_path: Path, tiny_tied: Path) -> None:
    """Problems are drawn until two groups have variance or 12 more were drawn; each problem once an epoch, with nothing
    passed over. Killed after its first step and resumed, the run is the same to the last bit: the sampler's state after
    a refilled step is exact."""
    settings = {"filter": {"type": "refill", "max_extra": 6}}
    whole = make(tmp_path / "whole", tiny_tied, **settings)
    assert whole.run() == 0
    lines = checked(whole, extra=12)
    assert_trained(lines)
    assert sum(line["groups/extra"] for line in lines) > 0
    order = list(dict.fromkeys((one["step"], one["problem_id"], one["visit"]) for one in whole.rollouts()))
    visits = [(visit, problem) for _, problem, visit in order]
    assert len(set(visits)) == len(visits)
    assert [visit for visit, _ in visits] == sorted(visit for visit, _ in visits)
    for epoch in range(visits[-1][0]):  # epochs that are over were drawn whole
        assert len([1 for visit, _ in visits if visit == epoch]) == 12
    parts = make(tmp_path / "parts", tiny_tied, **settings)
    assert parts.run("run.steps=1") == 0
    assert parts.run() == 0
    assert parts.rollouts() == whole.rollouts()
    assert [line for line in parts.metrics() if line["step"] == 3] == [line for line in lines if line["step"] == 3]
    assert_same_weights(parts.weights(), whole.weights())


@pytest.mark.slow
def test_the_bound_of_refill_is_respected(tmp_path: Path, tiny_tied: Path) -> None:
    """With half of a batch to spare, one more problem a step at most; what is missing then is counted."""
    work = make(tmp_path / "work", tiny_tied, filter={"type": "refill", "max_extra": 0.5})
    assert work.run() == 0
    lines = checked(work, extra=1)
    assert sum(line["groups/missing"] for line in lines) > 0


@pytest.mark.slow
def test_a_greedy_completion_is_graded_logged_and_never_trained(tmp_path: Path, tiny_tied: Path) -> None:
    """ReMax in a whole run: one completion more a group, as sample -1; its reward is what the advantages are against;
    its tokens count as generated, not as trained; it is the same for every visit of equal weights."""
    work = make(
        tmp_path / "work", tiny_tied, baseline={"type": "greedy"}, filter={"type": "keep"}, scale={"type": "none"}
    )
    assert work.run() == 0
    logged = work.rollouts()
    for line in (line for line in work.metrics() if line["step"] > 0):
        mine = [one for one in logged if one["step"] == line["step"]]
        assert [one["sample"] for one in mine] == [0, 1, 2, 3, -1] * 2
        greedy = {one["group"]: one for one in mine if one["sample"] == -1}
        assert line["greedy/reward"] == sum(one["reward"] for one in greedy.values()) / 2
        assert all(one["advantage"] is None for one in greedy.values())
        for one in mine:
            if one["sample"] >= 0:
                assert one["advantage"] == one["reward"] - greedy[one["group"]]["reward"]
        assert line["rollouts/count"] == 8
        assert line["tokens/generated"] == sum(one["tokens"] for one in mine)
        assert line["tokens/trained"] == sum(one["tokens"] for one in mine if one["sample"] >= 0)


@pytest.mark.slow
def test_the_moving_average_is_saved_exactly(tmp_path: Path, tiny_tied: Path) -> None:
    """Killed after its first step and resumed, a run with ``ema`` has the advantages of one that was not: the average
    is in the checkpoint."""
    settings = {"baseline": {"type": "ema", "decay": 0.5}, "filter": {"type": "keep"}, "scale": {"type": "none"}}
    whole, parts = (make(tmp_path / name, tiny_tied, **settings) for name in ("whole", "parts"))
    assert whole.run() == 0
    assert parts.run("run.steps=1") == 0
    assert parts.run() == 0
    assert parts.rollouts() == whole.rollouts()
    assert_same_weights(parts.weights(), whole.weights())
    first, last = (
        {one["reward"] - one["advantage"] for one in whole.rollouts() if one["step"] == step} for step in (1, 3)
    )
    assert first == {0.0}
    assert len(last) == 1
    assert 0.0 < last.pop() < 1.0
    assert read_metrics(whole.results())[-1]["step"] == 3


def test_negative_rewards_under_maxrl_end_the_run_with_the_reason(
    tmp_path: Path, tiny_tied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = make(tmp_path / "work", tiny_tied, scale={"type": "group_mean"}, filter={"type": "keep"})
    assert work.run("rewards.terms.0.weight=-1.0") == 1
    assert "algorithm.scale 'group_mean' divides by a group's mean reward" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.filter={type: refill, max_extra: 0.4}"], "algorithm.filter.max_extra must allow at least one more "
         "problem, got 0.4 of rollout.prompts_per_step = 2; use 0.5 or more"),
        (["algorithm.baseline={type: pass_at_k, k: 4}", "algorithm.scale.type=none"],
         "rollout.group_size must be at least 5, got 4: baseline 'pass_at_k' with scale 'none'"),
        (["algorithm.baseline={type: pass_at_k, k: 2}"],
         "scale must be none or whiten with baseline 'pass_at_k', got 'group_std'"),
        (["algorithm.baseline={type: gdpo}", "algorithm.scale.type=whiten",
          "algorithm.shaping=[{type: kimi_length}]"], "shaping must be empty with baseline 'gdpo', got 'kimi_length'"),
        *((["algorithm.baseline={type: " + name + "}", "algorithm.scale.type=none"],
           f"algorithm.filter must be keep with baseline '{name}', got 'drop'") for name in ("none", "ema", "greedy")),
        (["rollout.group_size=1", "rollout.prompts_per_step=1", "algorithm.baseline={type: none}",
          "algorithm.scale.type=whiten"], "rollout.prompts_per_step * rollout.group_size must be at least 2 with scale "
         "'whiten', got 1"),
        (["rollout.group_size=1", "algorithm.baseline={type: none}", "algorithm.scale.type=group_mean"],
         "rollout.group_size must be at least 2, got 1: baseline 'none' with scale 'group_mean'"),
        (["algorithm.shaping=[{type: cosine_length, max_tokens: 7, exceeded: -1.0}]"],
         "cosine_length.max_tokens must be at most rollout.max_new_tokens = 6, got 7"),
        (["algorithm.baseline={type: ema, decay: 1.0}", "algorithm.filter.type=keep"], "algorithm.baseline.decay"),
        (["algorithm.scale={type: whiten, epsilon: 0.0}"], "algorithm.scale.epsilon"),
    ],
    ids=str,
)  # fmt: skip
def test_slots_that_cannot_work_are_refused_when_the_recipe_is_read(
    tmp_path: Path, tiny_tied: Path, overrides: list[str], message: str
) -> None:
    """Key, value, rule and fix."""
    work = make(tmp_path / "work", tiny_tied)
    work.save_recipe()
    with elsewhere(work.folder), pytest.raises(RecipeError) as refused:
        load_recipe("recipe.yaml", overrides)
    assert message in str(refused.value)
