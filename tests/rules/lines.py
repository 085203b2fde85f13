"""Metric lines made by hand: a healthy run's, and what each rule changes in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlvr.config import Recipe
from rlvr.rules.history import History
from tests.builders import recipe_data

Change = Mapping[str, float | Callable[[int], float]]
"""New values by key; a function is called with the step."""


def line(step: int) -> dict[str, float]:
    """A step of a run that learns: 8 groups of 8 completions, a quarter of them right at first, 2 % more each step."""
    right = min(0.9, 0.25 + 0.02 * (step - 1))
    return {
        "reward/mean": right, "reward/std": 0.43, "reward/se": 0.05, "outcome/answer/correct": right,
        "outcome/answer/wrong": 1 - right, "outcome/answer/no_answer": 0.0, "outcome/answer/unreadable": 0.0,
        "outcome/answer/bad_format": 0.0, "outcome/answer/timeout": 0.0, "outcome/answer/crashed": 0.0,
        "outcome/answer/error": 0.0, "outcome/answer/bad_reference": 0.0, "rollouts/count": 64.0,
        "rollouts/unscored": 0.0, "length/mean": 100.0, "length/truncated": 0.05, "groups/total": 8.0,
        "groups/trained": 7.0, "groups/zero_variance": 1.0, "groups/all_correct": 0.0, "groups/none_correct": 1.0,
        "update/grad_norm": 0.5, "update/count": 1.0, "update/non_finite": 0.0, "update/lr": 1e-5,
        "policy/entropy": 0.5, "policy/clip_fraction": 0.01, "policy/ratio_max": 2.0, "mismatch/abs": 1e-6,
        "mismatch/ess": 1.0, "sync/mismatch": 1e-6, "sync/learner_change": 0.02 * step,
    }  # fmt: skip


FLAT: Change = {"reward/mean": 0.25, "outcome/answer/correct": 0.25, "outcome/answer/wrong": 0.75}
"""A reward that does not rise."""


def changed(step: int, change: Change) -> dict[str, float]:
    """The healthy line of a step with other values."""
    return line(step) | {key: value(step) if callable(value) else value for key, value in change.items()}


def recipe(**sections: Mapping[str, Any]) -> Recipe:
    """The recipe of these lines, with other settings by section."""
    data = recipe_data()
    data["run"]["steps"] = 200
    for name, settings in sections.items():
        data[name] = data[name] | dict(settings)
    return Recipe.model_validate(data)


def history(change: Change, steps: int = 12, given: Recipe | None = None) -> History:
    """A run of so many steps with these changes."""
    found = History(given or recipe())
    for step in range(1, steps + 1):
        found.add(step, changed(step, change))
    return found


def late(before: float, after: float, since: int = 5) -> Callable[[int], float]:
    """One value, and another from a step on."""
    return lambda step: before if step < since else after
