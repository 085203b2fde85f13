"""Each rule on hand-made metrics: what makes it fire, what just does not, and which cause is named for it."""

from __future__ import annotations

import typing

import pytest

from rlvr.config.recipe import RuleName
from rlvr.rules.finding import Grade
from rlvr.rules.rules import RULES, WATCHERS, causes_of, look
from rlvr.runlog.glossary import find
from rlvr.runlog.thresholds import THRESHOLDS, at
from tests.rules.lines import FLAT, Change, history, late, recipe

NOTHING: Change = {"outcome/answer/correct": 0.0, "reward/mean": 0.0, "reward/std": 0.0, "reward/se": 0.0,
                   "groups/zero_variance": 8.0, "groups/none_correct": 8.0, "groups/trained": 0.0}  # fmt: skip
"""Every reward is 0."""

SICK: dict[str, tuple[Change, Change]] = {
    "non_finite": ({"update/non_finite": 1.0, "update/count": 0.0}, {"update/non_finite": late(0.0, 1.0, 12)}),
    "stale_engine": (
        {"mismatch/abs": lambda s: 1e-6 if s == 1 else 0.02 * s, "sync/mismatch": lambda s: 0.04 * s,
         "sync/learner_change": lambda s: 0.05 * s},
        {"mismatch/abs": lambda s: 0.03 if s == 1 else 0.04},
    ),
    "engine_mismatch": ({"mismatch/abs": 0.3, "mismatch/ess": 0.7}, {"mismatch/abs": 0.004}),
    "verifier_timeouts": (
        {"outcome/answer/timeout": 0.6, **FLAT}, {"outcome/answer/timeout": late(0.0, 0.01, 12)},
    ),
    "verifier_crashes": ({"outcome/answer/crashed": 0.6, **FLAT}, {"outcome/answer/crashed": 0.005}),
    "unscored": ({"rollouts/unscored": 0.08, "outcome/answer/error": 0.08}, {"rollouts/unscored": 0.005}),
    "learning_rate_too_large": (
        {**FLAT, "reward/mean": late(0.25, 0.02), "reward/se": late(0.05, 0.01),
         "outcome/answer/correct": late(0.25, 0.02), "policy/entropy": late(0.5, 2.5),
         "groups/zero_variance": late(1.0, 8.0), "length/truncated": late(0.05, 1.0)},
        {**FLAT, "reward/mean": late(0.25, 0.2), "policy/entropy": late(0.5, 0.9)},
    ),
    "policy_not_moving": ({**FLAT, "sync/learner_change": 0.0}, {**FLAT, "sync/learner_change": 0.004}),
    "learning_rate_too_small": ({**FLAT, "sync/learner_change": 1e-3}, {"sync/learner_change": 1e-3}),
    "length_exploding": (
        {**FLAT, "length/mean": late(100, 260), "length/truncated": late(0.05, 0.95)},
        {"length/mean": lambda s: 100 + 20 * s, "length/truncated": 0.1},
    ),
    "all_truncated": (
        {**NOTHING, "length/truncated": 0.97}, {"length/truncated": lambda s: 0.97 if s < 12 else 0.85},
    ),
    "no_answer": (
        {**NOTHING, "outcome/answer/no_answer": 0.95, "outcome/answer/wrong": 0.05},
        {"outcome/answer/no_answer": lambda s: max(0.0, 0.6 - 0.05 * s)},
    ),
    "entropy_gone": (
        {**FLAT, "policy/entropy": late(0.5, 0.01), "groups/zero_variance": late(1.0, 8.0, 3)},
        {"policy/entropy": late(0.5, 0.01), "outcome/answer/correct": late(0.25, 0.95),
         "groups/zero_variance": late(1.0, 7.0, 3)},
    ),
    "always_right": (
        {"outcome/answer/correct": 1.0, "reward/mean": 1.0, "reward/std": 0.0, "reward/se": 0.0,
         "groups/zero_variance": 8.0, "groups/all_correct": 8.0},
        {"outcome/answer/correct": late(0.9, 1.0, 2), "groups/zero_variance": late(1.0, 8.0, 2)},
    ),
    "all_wrong": (NOTHING, {**NOTHING, "outcome/answer/correct": late(0.0, 0.02, 12), "reward/std": late(0, 0.1, 12)}),
    "constant_reward": (
        {**NOTHING, "reward/mean": 0.5, "outcome/answer/partial": 1.0, "outcome/answer/correct": 0.5},
        {"reward/mean": 0.5},
    ),
    "no_variance": (
        {**FLAT, "groups/zero_variance": 7.8, "groups/none_correct": 7.8},
        {**FLAT, "groups/zero_variance": 5.0, "groups/none_correct": 5.0},
    ),
    "reward_collapsed": (
        {**FLAT, "reward/mean": late(0.25, 0.02), "reward/se": late(0.05, 0.01)},
        {**FLAT, "reward/mean": late(0.25, 0.1), "reward/se": 0.06},
    ),
    "gradient_zero": ({**FLAT, "update/grad_norm": 0.0}, {**FLAT, "update/grad_norm": late(0.0, 1e-4, 12)}),
    "mismatch_growing": (
        {"mismatch/abs": lambda s: 0.02 if s == 1 else 0.09, "sync/mismatch": 0.05, "sync/learner_change": 0.5},
        {"mismatch/abs": 1e-3},
    ),
    "clip_share": ({"policy/clip_fraction": 0.4}, {"policy/clip_fraction": lambda s: 0.4 if s % 2 else 0.2}),
    "entropy_exploding": ({**FLAT, "policy/entropy": late(0.5, 1.2)}, {"policy/entropy": late(0.5, 1.2)}),
    "gradient_exploding": ({**FLAT, "update/grad_norm": late(0.5, 6.0)}, {"update/grad_norm": late(0.5, 6.0)}),
    "length_collapsing": ({**FLAT, "length/mean": late(100, 40)}, {"length/mean": late(100, 40)}),
    "often_truncated": ({"length/truncated": 0.6}, {"length/truncated": lambda s: 0.6 - 0.001 * s}),
    "dead_term": (
        {"outcome/tags/bad_format": 1.0, "reward/tags": 0.0}, {"outcome/tags/bad_format": late(0.9, 1.0)},
    ),
    "judge_disagrees": ({"judge/answer/agreement": late(0.95, 0.85)}, {"judge/answer/agreement": late(0.95, 0.93)}),
}  # fmt: skip
"""For each rule metrics on which it fires as the cause, and metrics near them on which nothing stops or slows."""


def terms(*names: str) -> dict[str, object]:
    return {"terms": [{"name": name, "verifier": "module:Class"} for name in names]}


CORRECTED = {"correction": {"type": "truncate", "cap": 2.0}}
BFLOAT16 = {"engine": {"type": "hf", "dtype": "bfloat16"}}
RECIPE = recipe(rewards=terms("answer", "tags"), algorithm=CORRECTED, rollout=BFLOAT16)


def names(change: Change, steps: int = 12, *, grades: tuple[Grade, ...] = (Grade.STOPS, Grade.SLOWS)) -> list[str]:
    found = causes_of(look(history(change, steps, RECIPE)))
    return [finding.rule for finding in found if finding.grade in grades]


@pytest.mark.parametrize("rule", SICK)
def test_a_rule_fires_on_its_sickness_and_is_the_only_cause(rule: str) -> None:
    assert names(SICK[rule][0]) == [rule]


@pytest.mark.parametrize("rule", SICK)
def test_a_rule_is_silent_on_what_is_only_near(rule: str) -> None:
    assert rule not in names(SICK[rule][1], grades=tuple(Grade))


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 12, 40])
def test_a_run_that_learns_is_left_alone(steps: int) -> None:
    assert names({}, steps) == []


@pytest.mark.parametrize("rule", SICK)
def test_a_young_run_is_left_alone(rule: str) -> None:
    """Two steps prove nothing."""
    assert names(SICK[rule][0], 2) == []


def test_a_flat_reward_without_another_cause_is_no_progress() -> None:
    assert names(FLAT, 49) == []
    assert names(FLAT, 50) == ["no_progress"]


def test_what_is_learned_is_a_note() -> None:
    done: Change = {
        "outcome/answer/correct": late(0.25, 0.97), "reward/mean": late(0.25, 0.97), "groups/zero_variance": 7.5,
        "groups/all_correct": late(0.0, 7.5), "policy/entropy": late(0.5, 0.01),
    }  # fmt: skip
    assert names(done, 30) == []
    assert names(done, 30, grades=(Grade.NOTE,)) == ["solved"]
    assert "too_good_too_soon" in names(done, 9, grades=(Grade.NOTE,))


def test_a_milder_share_of_timeouts_slows_and_explains_nothing() -> None:
    found = look(history({**NOTHING, "outcome/answer/timeout": 0.1}, 12, RECIPE))
    assert next(one for one in found if one.rule == "verifier_timeouts").grade is Grade.SLOWS
    assert [one.rule for one in causes_of(found)] == ["verifier_timeouts", "all_wrong"]


@pytest.mark.parametrize(("measured", "fires"), [(0.3, True), (0.34, True), (0.42, False)])
def test_a_reward_that_rises_without_the_evaluation_is_named(measured: float, fires: bool) -> None:
    """Training's share of right completions rises by 0.4, by half of that on the eval set it is no hack; a rise that is
    within the first evaluation's interval and under a quarter is one."""
    found = history({"outcome/answer/correct": late(0.25, 0.65)}, 0, RECIPE)
    key = "eval/held_out/pass@1"
    found.add(0, {key: 0.3, f"{key}_low": 0.25, f"{key}_high": 0.36})
    for step in range(1, 13):
        extra = {key: measured, f"{key}_low": measured - 0.05, f"{key}_high": measured + 0.05} if step == 12 else {}
        found.add(step, {**history_line(step), **extra})
    assert ("reward_without_eval" in [one.rule for one in look(found)]) is fires


def history_line(step: int) -> dict[str, float]:
    from tests.rules.lines import changed

    return changed(step, {"outcome/answer/correct": late(0.25, 0.65)})


def test_tokens_of_several_versions_are_no_stale_engine() -> None:
    """Where the schedule lets tokens be old, mismatch/abs grows with the policy's way; the probes still tell."""
    ahead = recipe(rollout={"schedule": {"type": "ahead"}}, algorithm=CORRECTED)
    change: Change = {"mismatch/abs": lambda s: 1e-6 if s == 1 else 0.02 * s}
    assert [one.rule for one in look(history(change, 12, ahead))] == []
    del (stale := dict(SICK["stale_engine"][0]))["mismatch/abs"]
    assert "stale_engine" in [one.rule for one in look(history(stale, 12, ahead))]


def test_rounding_without_a_correction_is_a_note() -> None:
    found = look(history({"mismatch/abs": 0.03}, 12, recipe(rollout=BFLOAT16)))
    assert [(one.rule, one.grade) for one in found] == [("engine_mismatch", Grade.NOTE)]
    assert "nothing corrects" in found[0].message


def test_the_rules_are_those_that_a_recipe_may_name() -> None:
    assert [rule.name for rule in RULES] == list(typing.get_args(RuleName))
    assert set(SICK) | {"no_progress", "solved", "too_good_too_soon", "reward_without_eval"} == {r.name for r in RULES}


def test_a_rule_explains_only_rules_that_there_are() -> None:
    known = {rule.name for rule in RULES} | {"slow_grading"}
    for watcher in WATCHERS:
        assert watcher.explains <= known, watcher.rule.name


def test_thresholds_have_one_meaning_each() -> None:
    assert len({one.name for one in THRESHOLDS}) == len(THRESHOLDS)
    assert all(at(one.name) == one.value and one.meaning.endswith(".") for one in THRESHOLDS)


def test_evidence_names_metrics_of_the_glossary() -> None:
    """Whatever the rules show as evidence can be looked up."""
    for change, _ in SICK.values():
        for finding in look(history(change, 12, RECIPE)):
            for text in finding.evidence:
                key = (
                    text.removeprefix("first ").split()[0]
                    if text.startswith("first")
                    else text.split(": ")[1].split()[0]
                )
                assert find(key) is not None, text
