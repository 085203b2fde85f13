"""Whole runs under each schedule: what is drawn, how old what is trained may be, and what a restart finds again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvr.config import RecipeError, load_recipe
from tests.runs import Workspace, assert_same_weights, assert_trained, elsewhere

pytestmark = pytest.mark.usefixtures("nothing_left")

SCHEDULES: dict[str, dict[str, Any]] = {
    "budget": {"type": "partial", "tokens": 7, "oversample": 2.0, "max_staleness": 2},
    "april": {"type": "partial", "oversample": 2.0, "max_staleness": 2},
    "kimi": {"type": "partial", "tokens": 12, "oversample": 1.5, "max_staleness": 0, "on_stale": "mask"},
    "drop": {"type": "partial", "tokens": 7, "oversample": 3.0, "max_staleness": 1, "on_stale": "drop"},
    "ahead": {"type": "ahead"},
    "asynchronous": {"type": "asynchronous", "oversample": 3.0, "max_staleness": 2},
    "recompute": {"type": "asynchronous", "oversample": 2.0, "max_staleness": 1, "cache": "recompute"},
}
EXACT = ("budget", "kimi", "drop", "ahead")
"""Schedules in which everything follows from token counts: nothing from what the clock says."""


def make(folder: Path, model: Path, name: str, **algorithm: Any) -> Workspace:
    """Five steps of three problems with four completions."""
    work = Workspace(folder, model)
    work.recipe["run"] |= {"steps": 5, "save_every": 1, "keep": 10}
    work.recipe["rollout"] |= {"prompts_per_step": 3, "max_new_tokens": 24, "schedule": SCHEDULES[name]}
    work.recipe["algorithm"] = {"correction": {"type": "truncate"}} | algorithm
    return work


def checked(work: Workspace, bound: int) -> None:
    """Ages within the bound, and each problem drawn is trained, waits in the buffer or was dropped, once."""
    lines = [line for line in work.metrics() if line["step"] > 0]
    assert_trained(lines)
    logged = work.rollouts()
    groups = {(one["problem_id"], one["visit"]) for one in logged}
    assert len(logged) == 4 * len(groups)
    for line in lines:
        assert line.get("staleness/max", 0) <= bound
        assert line["buffer/unfinished"] + line["buffer/finished"] <= 9
    for one in logged:
        assert all(version < one["step"] for version, _ in one["versions"])
    visits = sorted(visit for _, visit in groups)
    dropped = sum(line["buffer/dropped_stale"] for line in lines)
    drawn = len(groups) + dropped + lines[-1]["buffer/unfinished"] + lines[-1]["buffer/finished"]
    assert visits[-1] <= drawn // 12  # twelve problems, each once an epoch


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_under_each_schedule(tmp_path: Path, tiny_tied: Path, name: str) -> None:
    """It trains on tokens within the bound, and its accounts balance."""
    work = make(tmp_path / "work", tiny_tied, name)
    assert work.run() == 0
    settings = SCHEDULES[name]
    checked(work, settings.get("max_staleness", 1))
    lines = work.metrics()
    if name in ("budget", "drop", "recompute"):
        assert max(line["rollouts/several_versions"] for line in lines) > 0
    if name == "ahead":
        assert [line["staleness/mean"] for line in lines] == [0, 1, 1, 1, 1]
    if name == "kimi":
        assert {line.get("staleness/max", 0) for line in lines} == {0}
    if settings.get("on_stale", "wait") == "wait":
        assert sum(line["buffer/dropped_stale"] for line in lines) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_resumed_with_groups_on_their_way_it_is_the_same_run(tmp_path: Path, tiny_tied: Path, name: str) -> None:
    """Theorem: a run ended after each of its steps and resumed is, to the last bit, the run that was not: unfinished
    completions, finished groups that were not trained and refilled problems included."""
    refill = {"filter": {"type": "refill", "max_extra": 1}}
    whole = make(tmp_path / "whole", tiny_tied, name, **refill)
    assert whole.run() == 0
    parts = make(tmp_path / "parts", tiny_tied, name, **refill)
    for step in (1, 2, 4, 5):
        assert parts.run(f"run.steps={step}") == 0
    assert parts.metrics() == whole.metrics()
    assert parts.rollouts() == whole.rollouts()
    assert_same_weights(parts.weights(), whole.weights())
    if name == "budget":
        assert sum(line["buffer/unfinished"] for line in whole.metrics()[:-1]) > 0


@pytest.mark.slow
def test_an_asynchronous_run_loses_and_doubles_nothing_by_restarts(tmp_path: Path, tiny_tied: Path) -> None:
    """Each problem of an epoch is trained once, in whichever part of the run."""
    work = make(tmp_path / "work", tiny_tied, "asynchronous")
    for step in (1, 2, 4, 5):
        assert work.run(f"run.steps={step}") == 0
    checked(work, 2)
    assert [line["step"] for line in work.metrics()] == [1, 2, 3, 4, 5]
    groups = [(one["problem_id"], one["visit"]) for one in work.rollouts()]
    assert len(groups) == 4 * len(set(groups)) == 4 * 15


@pytest.mark.parametrize(
    ("schedule", "algorithm", "words"),
    [
        ({"type": "partial", "oversample": 3.0, "max_staleness": 1}, {}, ("at most max_staleness + 1 = 2", "got 3")),
        ({"type": "partial", "oversample": 0.5}, {}, ("oversample", "greater than or equal to 1")),
        ({"type": "ahead", "oversample": 2.0}, {}, ("oversample",)),
        ({"type": "later"}, {}, ("later", "synchronous")),
        (
            {"type": "ahead"},
            {"rollout": {"engine": {"type": "vllm", "sleep": True}}},
            ("rollout.engine.sleep", "ahead", "got true"),
        ),
        ({"type": "ahead"}, {"correction": {"type": "none"}}, ("rollout.schedule", "correction", "ratio.against")),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, tiny_tied: Path, schedule: dict[str, Any], algorithm: dict[str, Any], words: tuple[str, ...]
) -> None:
    work = make(tmp_path / "work", tiny_tied, "ahead", **algorithm)
    work.recipe["rollout"] |= {"schedule": schedule} | work.recipe["algorithm"].pop("rollout", {})
    work.save_recipe()
    with elsewhere(work.folder), pytest.raises(RecipeError) as raised:
        load_recipe("recipe.yaml")
    for word in words:
        assert word in str(raised.value)
