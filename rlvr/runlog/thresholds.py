"""Thresholds of the rules that watch a run: every number at which a rule fires, with its meaning.

A threshold that is a metric's healthy range is defined in `rlvr.runlog.glossary` instead. They are set so that the
measured runs of the shipped recipes raise no warning, and the runs broken on purpose in the tests do.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Threshold:
    """One number that a rule compares with."""

    name: str
    value: float
    meaning: str


THRESHOLDS = (
    Threshold("steps", 3, "Steps in a row in which a rule must see the same before it speaks."),
    Threshold("window", 10, "Latest steps over which rare events are counted."),
    Threshold("groups", 24, "Groups that a rule about groups must have seen."),
    Threshold("completions", 48, "Completions that a rule about completions must have seen."),
    Threshold("errors", 4, "Standard errors by which a reward must differ from another to count as changed."),
    Threshold("recovered", 2, "Standard errors under the first step's reward from which a fall is made good."),
    Threshold("solved", 0.8, "Share of right completions from which a policy that has learned counts as done."),
    Threshold("learned", 0.1, "Rise in the share of right completions from which a policy counts as having learned."),
    Threshold("truncated_all", 0.9, "Share of truncated completions that leaves nothing to grade."),
    Threshold("truncated_often", 0.5, "Share of truncated completions that costs much and is not getting less."),
    Threshold("no_answer", 0.9, "Share of completions in which the first term finds nothing to grade."),
    Threshold("dead_term", 0.98, "Share of one failing outcome from which a term has only one opinion."),
    Threshold(
        "timeouts_stop", 0.5, "Share of completions that end in a timeout or a crash from which nothing is learned."
    ),
    Threshold("variance_gone", 0.95, "Share of groups with equal rewards from which there is nothing to compare."),
    Threshold("variance_low", 0.75, "Share of groups with equal rewards from which most sampling is for nothing."),
    Threshold("entropy_fallen", 0.5, "Entropy over that of the first step up to which it counts as fallen."),
    Threshold("entropy_gone", 0.1, "Entropy over that of the first step up to which it counts as gone."),
    Threshold("entropy_risen", 2.0, "Entropy over that of the first step from which the policy counts as damaged."),
    Threshold(
        "unreadable_risen", 0.2, "Rise of completions that cannot be read from which the policy counts as damaged."
    ),
    Threshold(
        "length_risen", 2.0, "Mean length over that of the first step from which completions count as exploding."
    ),
    Threshold("length_cut", 0.3, "Share of truncated completions that goes with exploding lengths."),
    Threshold(
        "length_fallen", 0.5, "Mean length over that of the first step up to which completions count as collapsing."
    ),
    Threshold("reward_fallen", 0.5, "Share of the best reward that is lost when a policy has collapsed."),
    Threshold("gradient_risen", 10.0, "Gradient norm over that of the first step from which it counts as exploding."),
    Threshold("clip_high", 0.3, "Share of clipped tokens from which most of a batch's later updates do nothing."),
    Threshold("mismatch_stale", 5.0, "Growth of mismatch/abs since the first step that a stale engine explains."),
    Threshold("mismatch_visible", 0.02, "mismatch/abs below which growth says nothing, in nats."),
    Threshold("mismatch_grown", 3.0, "Growth of mismatch/abs since the first step that is more than rounding."),
    Threshold("mismatch_float32", 0.005, "mismatch/abs that float32 on both sides does not explain, in nats."),
    Threshold("sync_behind", 0.5, "sync/mismatch over sync/learner_change from which the engine has not followed."),
    Threshold("change_seen", 0.2, "sync/learner_change from which it can be told whether the engine follows, in nats."),
    Threshold("change_none", 1e-6, "sync/learner_change up to which the policy has not moved at all, in nats."),
    Threshold("change_small", 2e-3, "sync/learner_change up to which the policy hardly moves, in nats."),
    Threshold("small_steps", 10, "Steps after which a policy that hardly moves is spoken of."),
    Threshold("gain_train", 0.2, "Rise in training's share of right completions that an evaluation should follow."),
    Threshold("gain_share", 0.25, "Part of training's rise that the evaluation must show."),
    Threshold("agreement_falls", 0.05, "Fall of a judge's agreement with the rules that is no chance."),
    Threshold("soon_steps", 10, "Steps within which a reward is too good too soon."),
    Threshold("soon_from", 0.5, "Share of right completions in the first step from which nearly all are no wonder."),
    Threshold("soon_to", 0.95, "Share of right completions that is too good so soon."),
    Threshold("idle_steps", 50, "Steps after which a reward that has not risen is spoken of."),
    Threshold("grading_share", 0.5, "Share of a step's time spent waiting for graders after the last token."),
    Threshold(
        "suspect_share", 0.1, "Share of the latest high-reward completions of one suspect kind that is no accident."
    ),
    Threshold("suspect_recent", 0.25, "Latest part of a run's steps whose completions are looked at for suspects."),
)

_VALUES = {threshold.name: threshold.value for threshold in THRESHOLDS}


def at(name: str) -> float:
    """The value of a threshold. Raises `KeyError` for a name that is not here."""
    return _VALUES[name]
