"""Small recipes and rollouts for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewards import Outcome, Verdict
from rlvr.config import Recipe
from rlvr.records import FinishReason, Problem, Rollout, RolloutGroup


def recipe_data(output: Path | str = "runs", **run: Any) -> dict[str, Any]:
    """A complete recipe as a mapping, with no more than it needs."""
    return {
        "schema": 1,
        "name": "test",
        "run": {"steps": 4, "output": str(output), **run},
        "model": {"path": "model"},
        "template": {"type": "none"},
        "problems": {"train": {"type": "jsonl", "path": "train.jsonl"}},
        "rewards": {"terms": [{"name": "answer", "verifier": "module:Class"}]},
        "rollout": {
            "engine": {"type": "hf"},
            "prompts_per_step": 4,
            "group_size": 4,
            "max_new_tokens": 16,
        },
        "algorithm": {},
        "learner": {"lr": 1.0e-5},
    }


def make_recipe(output: Path | str = "runs", **run: Any) -> Recipe:
    """The recipe of `recipe_data`, with other settings of its section ``run``."""
    return Recipe.model_validate(recipe_data(output, **run))


def verdict(outcome: Outcome = Outcome.CORRECT, **detail: Any) -> Verdict:
    """A verdict with the score that goes with the outcome: 1 for CORRECT, 0.5 for PARTIAL, None or 0."""
    score = {Outcome.CORRECT: 1.0, Outcome.PARTIAL: 0.5}.get(outcome, 0.0 if outcome.is_scored else None)
    return Verdict(score, outcome, detail)


def make_rollout(
    outcome: Outcome = Outcome.CORRECT,
    *,
    tokens: int = 3,
    problem: str = "p",
    sample: int = 0,
    finish: FinishReason = "stop",
    versions: tuple[int, ...] | None = None,
    text: str = "text",
    seconds: float = 0.0,
    **detail: Any,
) -> Rollout:
    """A rollout graded by one term named ``answer``."""
    one = verdict(outcome, **detail)
    return Rollout(
        problem_id=problem,
        visit=0,
        sample_index=sample,
        request_seed=7,
        prompt_ids=(5, 6),
        ids=tuple(range(tokens)),
        loss_mask=(1,) * tokens,
        behaviour_logprobs=(-0.5,) * tokens,
        weight_version=versions if versions is not None else (0,) * tokens,
        text=text,
        finish_reason=finish,
        verdicts={"answer": one},
        reward=one.score,
        grade_seconds=seconds,
    )


def make_group(*rollouts: Rollout, problem: str = "p") -> RolloutGroup:
    """A group of rollouts to one problem."""
    return RolloutGroup(
        problem=Problem(id=problem, prompt="3*7?", reference="21", key=problem, source="train.jsonl:1"),
        visit=0,
        rollouts=rollouts,
    )
