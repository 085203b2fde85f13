"""Rules about completions: their length, how they end, and what the verifier can read in them."""

from __future__ import annotations

import dataclasses

from rlvr.rules.finding import Finding, Grade
from rlvr.rules.history import UNREADABLE, History
from rlvr.rules.rule import Rule
from rlvr.rules.watcher import FLAT, IN_A_ROW, LATEST, watcher
from rlvr.runlog.thresholds import at


@watcher(
    "length_exploding", Grade.STOPS,
    f"length/mean at least {at('length_risen'):g} times the first step's while the reward has not risen or "
    f"{at('length_cut'):g} of the completions are truncated; or length/truncated has risen to {at('truncated_all'):g} "
    f"from under {at('truncated_often'):g}",
    "Read some long completions: a verifier that pays for length or repetition, or a loss that favours long wrong "
    "completions (algorithm.aggregation: {type: token_mean}). Punish length by algorithm.shaping: "
    "[{type: soft_overlong, ...}]; raise rollout.max_new_tokens only if the long completions are good.",
    explains=("all_truncated", "often_truncated", "no_answer", "reward_collapsed", "entropy_exploding", *FLAT),
)  # fmt: skip
def length_exploding(h: History, rule: Rule) -> Finding | None:
    grown, cut, first_cut = h.grown("length/mean"), h.now("length/truncated"), h.start("length/truncated")
    if h.is_young or grown is None or cut is None or first_cut is None:
        return None
    longer = grown >= at("length_risen") and (cut >= at("length_cut") or not h.has_learned)
    at_limit = cut >= at("truncated_all") and first_cut < at("truncated_often") and grown > 1
    if not (longer or at_limit):
        return None
    return rule.finding(
        f"completions have become {grown:.1f} times as long as in the first step, and {cut:.0%} of them are cut off at "
        f"rollout.max_new_tokens = {h.recipe.rollout.max_new_tokens}",
        evidence=(h.compared("length/mean"), h.compared("length/truncated"), h.compared("reward/mean")),
    )


@watcher(
    "length_collapsing", Grade.SLOWS,
    f"length/mean at most {at('length_fallen'):g} of the first step's, while the reward has not risen",
    "Read the short completions: a punishment of length that is too strong (algorithm.shaping), an aggregation that "
    "rewards short ones (per-sequence means), or a verifier that takes anything.",
)  # fmt: skip
def length_collapsing(h: History, rule: Rule) -> Finding | None:
    grown = h.grown("length/mean")
    if h.is_young or grown is None or grown > at("length_fallen") or h.has_learned:
        return None
    return rule.finding(
        f"completions have shrunk to {grown:.0%} of their first length, and the reward has not risen",
        evidence=(h.compared("length/mean"), h.compared("reward/mean")),
    )


@watcher(
    "all_truncated", Grade.STOPS,
    f"length/truncated at least {at('truncated_all'):g}, {IN_A_ROW}",
    "Raise rollout.max_new_tokens, or give the template the stop string or token with which the completions end "
    "(template.stop): a completion that is cut off before its end cannot be graded.",
    explains=("no_answer", "dead_term", "no_progress", "often_truncated", *FLAT),
)  # fmt: skip
def all_truncated(h: History, rule: Rule) -> Finding | None:
    shares = h.last("length/truncated")
    if h.is_young or not shares or min(shares) < at("truncated_all"):
        return None
    return rule.finding(
        f"{shares[-1]:.0%} of the completions are cut off at rollout.max_new_tokens = "
        f"{h.recipe.rollout.max_new_tokens}",
        evidence=(h.shown("length/truncated"), h.shown("length/mean"), h.shown("reward/mean")),
    )


@watcher(
    "often_truncated", Grade.SLOWS,
    f"length/truncated at least {at('truncated_often'):g} in {LATEST}, and not less than in the first",
    "Raise rollout.max_new_tokens, or punish length softly: algorithm.shaping: [{type: soft_overlong, ...}].",
)  # fmt: skip
def often_truncated(h: History, rule: Rule) -> Finding | None:
    values = [line.get("length/truncated", 0.0) for line in h.latest]
    first = h.start("length/truncated")
    if h.steps < at("window") or first is None or min(values) < at("truncated_often") or values[-1] < first:
        return None
    return rule.finding(
        f"{sum(values) / len(values):.0%} of the completions of the last {len(values)} steps are cut off, and it is "
        "not getting less",
        evidence=(h.compared("length/truncated"), h.shown("length/mean")),
    )


@watcher(
    "no_answer", Grade.STOPS,
    f"the first term finds nothing to grade (NO_ANSWER, UNREADABLE, BAD_FORMAT) in {at('no_answer'):g} of the "
    f"completions, from the first step on, {IN_A_ROW}",
    "Prompt, template and verifier do not agree on how an answer is marked: compare one completion of `rlvr view` with "
    "what rewards.terms[0] looks for (MathVerifier's args.extract), with the template's instructions and its stop "
    "strings; a template that prefills <think> leaves no opening tag in the completion.",
    explains=("dead_term", *FLAT),
)  # fmt: skip
def no_answer(h: History, rule: Rule) -> Finding | None:
    shares = h.outcome(*UNREADABLE)
    if h.is_young or not shares or min(shares) < at("no_answer") or h.outcome_at_start(*UNREADABLE) < at("no_answer"):
        return None
    return rule.finding(
        f"term {h.first_term!r} finds no answer that it can grade in {shares[-1]:.0%} of the texts, from the first "
        "step on",
        evidence=tuple(filter(None, (h.shown(f"outcome/{h.first_term}/{name}") for name in UNREADABLE))),
    )


@watcher(
    "dead_term", Grade.SLOWS,
    f"{at('dead_term'):g} of a further term's verdicts have one and the same failing outcome, from the first step on; "
    "it stops learning where that leaves one reward for all",
    "The term teaches nothing: compare its rule with the template (a prefilled <think> under a format check that wants "
    "the tag in the completion) and with what the model writes, or remove it.",
    explains=("constant_reward", "no_variance", "no_progress"),
)  # fmt: skip
def dead_term(h: History, rule: Rule) -> Finding | None:
    if h.is_young:
        return None
    for term in h.recipe.rewards.terms[1:]:
        for name in ("bad_format", "no_answer", "unreadable", "wrong"):
            shares = h.outcome(name, term=term.name)
            if shares and min(*shares, h.outcome_at_start(name, term=term.name)) >= at("dead_term"):
                finding = rule.finding(
                    f"term {term.name!r} says {name.upper()} to {shares[-1]:.0%} of the completions, from the first "
                    "step on",
                    evidence=(h.compared(f"outcome/{term.name}/{name}"), h.shown(f"reward/{term.name}")),
                )
                return dataclasses.replace(finding, grade=Grade.STOPS) if h.is_constant else finding
    return None
