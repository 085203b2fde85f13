"""The rules that watch a run: pure functions of its `History`, each naming a likely cause.

They are ordered as causes come: engine against learner, grading, the update, the completions, and last what shows only
in the reward. A rule that fires explains later ones: a policy wrecked by its learning rate has no reward variance
either, but only the first is worth acting on.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlvr.rules import cause_rules as causes
from rlvr.rules import completion_rules
from rlvr.rules import reward_rules as reward
from rlvr.rules.finding import Finding
from rlvr.rules.history import History
from rlvr.rules.rule import Rule
from rlvr.rules.watcher import Watcher

WATCHERS: tuple[Watcher, ...] = (
    causes.non_finite,
    causes.stale_engine,
    causes.engine_mismatch,
    causes.verifier_timeouts,
    causes.verifier_crashes,
    causes.unscored,
    causes.learning_rate_too_large,
    causes.policy_not_moving,
    completion_rules.length_exploding,
    completion_rules.all_truncated,
    completion_rules.no_answer,
    completion_rules.dead_term,
    reward.entropy_gone,
    reward.always_right,
    reward.all_wrong,
    reward.constant_reward,
    reward.no_variance,
    reward.reward_without_eval,
    reward.reward_collapsed,
    reward.gradient_zero,
    causes.learning_rate_too_small,
    causes.mismatch_growing,
    reward.clip_share,
    reward.entropy_exploding,
    reward.gradient_exploding,
    completion_rules.length_collapsing,
    completion_rules.often_truncated,
    reward.judge_disagrees,
    reward.no_progress,
    reward.too_good_too_soon,
    reward.solved,
)
"""Every rule over metrics, likely causes first."""

RULES: tuple[Rule, ...] = tuple(watcher.rule for watcher in WATCHERS)
_PLACE = {rule.name: place for place, rule in enumerate(RULES)}


def look(history: History) -> list[Finding]:
    """The findings of all rules, likely causes first, symptoms included."""
    return [finding for watcher in WATCHERS if (finding := watcher(history)) is not None]


def causes_of(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that no other finding explains; a rule explains only rules after it in the table.

    A finding milder than its rule's grade explains only findings outside the table, those about time.
    """
    explained = set()
    for finding in findings:
        if finding.rule in _PLACE:
            watcher = WATCHERS[_PLACE[finding.rule]]
            strong = finding.grade is watcher.rule.grade
            behind = {name for name in watcher.explains if _PLACE.get(name, len(RULES)) > _PLACE[finding.rule]}
            explained |= behind if strong else behind - _PLACE.keys()
    return [finding for finding in findings if finding.rule not in explained]
