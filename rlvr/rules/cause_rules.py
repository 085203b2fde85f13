"""Rules that name causes: engine and learner that disagree, failing graders, broken updates."""

from __future__ import annotations

import dataclasses

from rlvr.rules.finding import Finding, Grade
from rlvr.rules.history import UNREADABLE, History
from rlvr.rules.rule import Rule
from rlvr.rules.watcher import DAMAGE, FLAT, IN_A_ROW, LATEST, healthy, watcher
from rlvr.runlog.thresholds import at

# ------------------------------------------------------------------------------------------- between engine and learner


@watcher(
    "stale_engine", Grade.STOPS,
    f"mismatch/abs at least {at('mismatch_visible'):g} nats and {at('mismatch_stale'):g} times its first value, and "
    f"sync/mismatch, where it is measured, at least {at('sync_behind'):g} times sync/learner_change; or the run ended "
    "because the engine did not follow",
    "The engine samples from weights that the learner has left behind. Keep rollout.self_test: true, which names the "
    "group of parameters that does not arrive, and look at what loads the weights: engine.log, rollout.engine.extra.",
    explains=("mismatch_growing", "engine_mismatch", "learning_rate_too_large", "clip_share", *DAMAGE, *FLAT),
)  # fmt: skip
def stale_engine(h: History, rule: Rule) -> Finding | None:
    grown, now = h.grown("mismatch/abs"), h.now("mismatch/abs")
    change, behind = h.now("sync/learner_change"), h.now("sync/mismatch")
    apart = False
    if change is not None and behind is not None:
        apart = change >= at("change_seen") and behind >= at("sync_behind") * change
        if not apart:
            return None
    grows = grown is not None and now is not None and grown >= at("mismatch_stale") and now >= at("mismatch_visible")
    behind_grows = apart and (h.grown("sync/mismatch") or 0.0) >= at("mismatch_grown")
    if not (behind_grows or (grows and (apart or h.is_on_policy))):
        return None
    return rule.finding(
        f"engine and learner move apart: mismatch/abs is {now or behind:.2g} nats a token and began at "
        f"{h.start('mismatch/abs') or 0.0:.2g}, as when the engine keeps old weights",
        evidence=(h.compared("mismatch/abs"), h.shown("sync/mismatch"), h.shown("sync/learner_change")),
    )


@watcher(
    "engine_mismatch", Grade.SLOWS,
    f"from the first step on mismatch/abs above {healthy('mismatch/abs')[1]:g} nats, or above "
    f"{at('mismatch_float32'):g} where engine and learner both compute in float32, or mismatch/ess under "
    f"{healthy('mismatch/ess')[0]:g}; where tokens may be older than a step, sync/mismatch instead; a note from "
    f"{at('mismatch_float32'):g} on where algorithm.correction is none",
    "Engine and learner compute other probabilities from the same weights: give rollout.engine.dtype and "
    "model.autocast one type (float32 for both settles it), set model.head_dtype: float32, check rope scaling, "
    "quantisation and the sampling temperature; algorithm.correction: {type: truncate, cap: 2.0} limits the harm.",
    explains=("mismatch_growing", "clip_share"),
)  # fmt: skip
def engine_mismatch(h: History, rule: Rule) -> Finding | None:
    key = "mismatch/abs" if h.is_on_policy else "sync/mismatch"
    first, now = h.start(key), h.now(key)
    if first is None or now is None or h.is_young:
        return None
    recipe = h.recipe
    exact = recipe.rollout.engine.dtype == recipe.model.dtype == "float32" and recipe.model.autocast == "none"
    bound = at("mismatch_float32") if exact else healthy(key)[1]
    size = [share for share in (h.start("mismatch/ess"), h.now("mismatch/ess")) if share is not None and h.is_on_policy]
    apart = min(first, now) > bound or (len(size) == 2 and max(size) < healthy("mismatch/ess")[0])
    if not apart and (recipe.algorithm.correction.type != "none" or min(first, now) <= at("mismatch_float32")):
        return None
    finding = rule.finding(
        f"engine and learner differ by {now:.2g} nats a token ({key}), from the first step on"
        + ("" if apart else ", which is rounding, and nothing corrects for it"),
        evidence=(h.compared(key), h.compared("mismatch/ess"), h.shown("mismatch/ratio_max")),
    )
    return finding if apart else dataclasses.replace(finding, grade=Grade.NOTE)


@watcher(
    "mismatch_growing", Grade.SLOWS,
    f"mismatch/abs at least {at('mismatch_grown'):g} times its first value and {at('mismatch_visible'):g} nats",
    "Low precision and a policy that changes drive them apart, often before a collapse: use "
    "algorithm.correction: {type: truncate, cap: 2.0}, model.head_dtype: float32 or one dtype on both sides, and a "
    "lower learner.lr.",
)  # fmt: skip
def mismatch_growing(h: History, rule: Rule) -> Finding | None:
    grown, now = h.grown("mismatch/abs"), h.now("mismatch/abs")
    if grown is None or now is None or grown < at("mismatch_grown") or now < at("mismatch_visible"):
        return None
    if not h.is_on_policy:
        return None
    return rule.finding(
        f"the mismatch between engine and learner has grown {grown:.1f} times, to {now:.2g} nats a token",
        evidence=(h.compared("mismatch/abs"), h.shown("mismatch/kl"), h.shown("sync/mismatch")),
    )


# -------------------------------------------------------------------------------------------------------------- grading


def _failing(h: History, outcome: str) -> tuple[str, float] | None:
    """The term in which an outcome is most frequent, and its share in the last steps, if it is not negligible."""
    shares = []
    for term in h.recipe.rewards.terms:
        key = f"outcome/{term.name}/{outcome}"
        share = h.now(key)
        events = sum(line.get(key, 0.0) * line["rollouts/count"] for line in h.latest)
        if share is not None and share > healthy(key)[1] and events >= at("steps"):
            shares.append((term.name, share))
    return max(shares, key=lambda term: term[1], default=None)


def _outcome_finding(h: History, rule: Rule, outcome: str, problem: str) -> Finding | None:
    failing = _failing(h, outcome)
    if failing is None:
        return None
    term, share = failing
    finding = rule.finding(
        f"{share:.0%} of the completions {problem} (term {term!r}): they get its lowest score whatever they say",
        evidence=(h.compared(f"outcome/{term}/{outcome}"), h.shown("reward/mean")),
    )
    return finding if share >= at("timeouts_stop") else dataclasses.replace(finding, grade=Grade.SLOWS)


@watcher(
    "verifier_timeouts", Grade.STOPS,
    f"outcome/TERM/timeout above {healthy('outcome/x/timeout')[1]:g}, {IN_A_ROW}; it stops learning from "
    f"{at('timeouts_stop'):g}, below it slows",
    "Read such a text by `rlvr view`, and run `python -m rewards check module:Class`, which tries a verifier with "
    "adversarial texts; make the verifier faster, or raise rewards.timeout where it works honestly; more "
    "rewards.workers do not help a verifier that hangs.",
    explains=("all_wrong", "constant_reward", "no_variance", "no_progress", "slow_grading", "length_collapsing"),
)  # fmt: skip
def verifier_timeouts(h: History, rule: Rule) -> Finding | None:
    limit = f"{h.recipe.rewards.timeout:g} s"
    return _outcome_finding(h, rule, "timeout", f"kept their verifier busy until it was killed after {limit}")


@watcher(
    "verifier_crashes", Grade.STOPS,
    f"outcome/TERM/crashed above {healthy('outcome/x/crashed')[1]:g}, {IN_A_ROW}; it stops learning from "
    f"{at('timeouts_stop'):g}, below it slows",
    "The verifier's process died on the texts: raise rewards.memory_mb if it ran out of memory, else run "
    "`python -m rewards check module:Class`.",
    explains=("all_wrong", "constant_reward", "no_variance", "no_progress"),
)  # fmt: skip
def verifier_crashes(h: History, rule: Rule) -> Finding | None:
    return _outcome_finding(h, rule, "crashed", "killed the process of their verifier")


@watcher(
    "unscored", Grade.SLOWS,
    f"rollouts/unscored above {healthy('rollouts/unscored')[1]:g}, {IN_A_ROW}; or the run ended because of them",
    "Read the error in the verdict's detail: an ERROR is the verifier's or the machinery's own fault, a BAD_REFERENCE "
    "the data's; `rlvr doctor RECIPE` checks every reference.",
    explains=("no_progress", "slow_grading"),
)  # fmt: skip
def unscored(h: History, rule: Rule) -> Finding | None:
    share = h.now("rollouts/unscored")
    events = sum(line.get("rollouts/unscored", 0.0) * line["rollouts/count"] for line in h.latest)
    if share is None or share <= healthy("rollouts/unscored")[1] or events < at("steps"):
        return None
    causes = [
        h.shown(f"outcome/{term.name}/{outcome}")
        for term in h.recipe.rewards.terms
        for outcome in ("error", "bad_reference")
        if h.now(f"outcome/{term.name}/{outcome}")
    ]
    return rule.finding(
        f"{share:.0%} of the completions have no reward and are left out of training",
        evidence=(h.shown("rollouts/unscored"), *causes),
    )


# ----------------------------------------------------------------------------------------------------------- the update


@watcher(
    "non_finite", Grade.STOPS,
    f"half or more of the optimiser steps of {LATEST} left out because a loss or gradient was not finite; or the run "
    "ended by one",
    "Lower learner.lr, set model.autocast: bfloat16 or none, learner.max_grad_norm: 1.0; `rlvr replay` on the batch "
    "that the run kept under non_finite/ says which sample does it.",
    explains=("gradient_zero", "policy_not_moving", *DAMAGE, *FLAT),
)  # fmt: skip
def non_finite(h: History, rule: Rule) -> Finding | None:
    bad, done = h.total("update/non_finite"), h.total("update/count")
    if h.steps < at("steps") or bad == 0 or bad < done:
        return None
    return rule.finding(
        f"{bad:.0f} of the last {bad + done:.0f} optimiser steps were left out: their loss or gradient was not finite",
        evidence=(h.shown("update/non_finite"), h.shown("update/grad_norm")),
    )


@watcher(
    "learning_rate_too_large", Grade.STOPS,
    f"the reward has lost {at('reward_fallen'):g} or more of its best, or {at('unreadable_risen'):g} more of the "
    "completions cannot be read, while it does not rise; with a second sign of damage: entropy, length or gradient "
    "norm far from the first step's",
    "Divide learner.lr by 10, with learner.schedule.warmup_steps, and start again from before the fall; fewer "
    "algorithm.updates_per_batch and a KL penalty (algorithm.kl) hold the policy too.",
    explains=("policy_not_moving", *DAMAGE, *FLAT),
)  # fmt: skip
def learning_rate_too_large(h: History, rule: Rule) -> Finding | None:
    if h.is_young or h.steps < at("steps") + 1 or h.has_learned:
        return None
    fall = h.reward_fall()
    unreadable = h.outcome(*UNREADABLE)
    lost = min(unreadable, default=0.0) - h.outcome_at_start(*UNREADABLE) >= at("unreadable_risen")
    entropy, length = h.grown("policy/entropy"), h.grown("length/mean")
    cut = (h.now("length/truncated") or 0.0) - (h.start("length/truncated") or 0.0)
    signs = {
        "policy/entropy": entropy is not None and not at("entropy_gone") < entropy < at("entropy_risen"),
        "length/mean": length is not None and not at("length_fallen") < length < at("length_risen"),
        "length/truncated": cut >= at("length_cut"),
        "update/grad_norm": (h.grown("update/grad_norm") or 0.0) >= at("gradient_risen"),
        f"outcome/{h.first_term}/no_answer": lost,
        "policy/ratio_max": (h.now("policy/ratio_max") or 0.0) > healthy("policy/ratio_max")[1],
    }
    seen = [key for key, is_seen in signs.items() if is_seen]
    wrecked = fall is not None and len(seen) >= (1 if h.is_comparable else 2)
    if not (wrecked or (lost and len(seen) >= 2 and h.reward_change() < 0)):
        return None
    went = f"fell from {fall[0]:.3g} (step {fall[2]:.0f}) to {fall[1]:.3g}" if fall else "does not rise"
    return rule.finding(
        f"the updates wreck the policy: the reward {went} within {h.steps} steps at a learning rate of "
        f"{h.recipe.learner.lr:g}",
        evidence=(h.compared("reward/mean"), *(h.compared(key) for key in seen), h.shown("sync/learner_change")),
    )


@watcher(
    "policy_not_moving", Grade.STOPS,
    f"sync/learner_change at most {at('change_none'):g} nats after {at('steps'):g} steps with a gradient",
    "The updates do not reach the weights: learner.lr is far too small, the schedule ends at 0, or bfloat16 weights "
    "round each update away (model.dtype: float32 with model.autocast: bfloat16).",
    explains=("learning_rate_too_small", "no_progress"),
)  # fmt: skip
def policy_not_moving(h: History, rule: Rule) -> Finding | None:
    change = h.now("sync/learner_change")
    if h.is_young or change is None or change > at("change_none") or not _has_gradient(h):
        return None
    return rule.finding(
        f"after {h.steps} steps the policy's log-probabilities are those of the start: they have moved by {change:.1g} "
        f"nats at a learning rate of {h.start('update/lr') or 0.0:.2g}",
        evidence=(h.shown("sync/learner_change"), h.shown("update/lr"), h.shown("update/grad_norm")),
    )


@watcher(
    "learning_rate_too_small", Grade.SLOWS,
    f"sync/learner_change at most {at('change_small'):g} nats after {at('small_steps'):g} steps with a gradient, and "
    "the reward has not risen",
    "Raise learner.lr by 10: 1e-6 is usual for billions of weights, 1e-5 to 1e-4 for small models and adapters.",
    explains=("no_progress",),
)  # fmt: skip
def learning_rate_too_small(h: History, rule: Rule) -> Finding | None:
    change = h.now("sync/learner_change")
    if h.steps < at("small_steps") or h.is_young or change is None or h.has_learned or not _has_gradient(h):
        return None
    if change > at("change_small"):
        return None
    return rule.finding(
        f"after {h.steps} steps the policy has moved by {change:.1g} nats a token, and the reward has not risen",
        evidence=(h.shown("sync/learner_change"), h.shown("update/lr"), h.compared("reward/mean")),
    )


def _has_gradient(h: History) -> bool:
    return (h.now("update/grad_norm") or 0.0) > 0 and h.total("groups/trained") > 0
