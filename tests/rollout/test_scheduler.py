"""What the recipe says about sampling reaches the engine, in training and not in evaluations."""

from __future__ import annotations

import pytest

from rlvr.runlog.run_log import read_metrics
from tests.runs import Workspace

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.slow
def test_training_from_a_part_of_the_vocabulary_has_ratios_of_the_learner_alone(workspace: Workspace) -> None:
    """With top_p 0.7 the first ratio to the recomputed policy is exactly 1; what the engine says lies above it by the
    kept mass, between 0.7 and 1, which the mismatch shows: its effective sample size is not that of an error."""
    workspace.recipe["rollout"] |= {"top_p": 0.7}
    workspace.recipe["algorithm"] = {"filter": {"type": "keep"}}
    assert workspace.run("run.steps=2") == 0
    for line in read_metrics(workspace.results()):
        assert line["policy/ratio_max"] == 1.0
        assert 0.7 <= line["mismatch/ratio_max"] < 1.0
        assert 0.05 < line["mismatch/abs"] < 0.36  # -log 0.7


@pytest.mark.slow
def test_completions_that_repeat_themselves_end_in_training_and_not_in_an_evaluation(workspace: Workspace) -> None:
    """Two tokens to choose from: many completions soon hold one token twice in a row. Each that ended so does end
    so, was shaped by the penalty, and the evaluation's completions are all of full length or stopped."""
    workspace.write_problems([{"problem": f"Say {i}", "answer": "aeiou 13579"} for i in range(6)], "eval.jsonl")
    workspace.recipe["problems"]["eval"] = [
        {"name": "held_out", "source": {"type": "jsonl", "path": "eval.jsonl"}, "greedy": True}
    ]
    workspace.recipe["rollout"] |= {"top_k": 2, "repetition": {"longest": 1, "count": 2}}
    workspace.recipe["algorithm"] = {
        "filter": {"type": "keep"}, "shaping": [{"type": "repetition_stop", "penalty": 0.5}]
    }  # fmt: skip
    workspace.recipe["run"] |= {"log_token_groups": 4}
    assert workspace.run("run.steps=1", "run.save_every=1") == 0
    start, line = read_metrics(workspace.results())
    assert start["eval/held_out/greedy_low"] <= start["eval/held_out/greedy"] <= start["eval/held_out/greedy_high"]
    rollouts = workspace.rollouts()
    ended = [one["ids"] for one in rollouts if one["finish_reason"] == "repetition"]
    assert 0 < len(ended) < len(rollouts)
    assert all(len(ids) < 12 and len(set(ids[-2:])) == 1 for ids in ended)
    assert line["finish/repetition"] == len(ended) / len(rollouts)
    assert line["reward/shaping"] == pytest.approx(-0.5 * len(ended) / len(rollouts))
    assert start["eval/held_out/truncated"] > 0.5
