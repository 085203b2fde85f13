"""Rules about symptoms in reward, entropy and gradient: flat, collapsing, or too good to be true."""

from __future__ import annotations

import dataclasses

from rlvr.rules.finding import Finding, Grade
from rlvr.rules.history import History
from rlvr.rules.rule import Rule
from rlvr.rules.watcher import FLAT, IN_A_ROW, LATEST, healthy, watcher
from rlvr.runlog.thresholds import at


@watcher(
    "entropy_gone", Grade.STOPS,
    f"policy/entropy under {healthy('policy/entropy')[0]:g} nats and {at('entropy_fallen'):g} of its first value, or "
    f"at most {at('entropy_gone'):g} of it, while the task is not solved and {at('variance_low'):g} of the groups have "
    "equal rewards",
    "The policy no longer tries anything else. Go back to an earlier checkpoint with a wider upper clip "
    "(surrogate: {type: clip, low: 0.2, high: 0.28}), an entropy bonus (algorithm.entropy), a higher "
    "rollout.temperature or a lower learner.lr.",
    explains=("learning_rate_too_small", "length_collapsing", *FLAT),
)  # fmt: skip
def entropy_gone(h: History, rule: Rule) -> Finding | None:
    now, grown, flat = h.now("policy/entropy"), h.grown("policy/entropy"), h.zero_variance
    if h.is_young or now is None or grown is None or flat is None or flat < at("variance_low") or h.is_solved:
        return None
    low = now < healthy("policy/entropy")[0] and grown <= at("entropy_fallen")
    if h.was_flat or not (low or grown <= at("entropy_gone")):
        return None
    return rule.finding(
        f"the entropy has fallen to {now:.2g} nats a token, {grown:.0%} of its first value, and {flat:.0%} of the "
        "groups give all their completions one reward",
        evidence=(h.compared("policy/entropy"), h.compared("groups/zero_variance"), h.compared("reward/mean")),
    )


@watcher(
    "entropy_exploding", Grade.SLOWS,
    f"policy/entropy at least {at('entropy_risen'):g} times its first value, while the reward has not risen",
    "The policy dissolves into noise: lower the entropy bonus (algorithm.entropy) or the upper clip, then learner.lr.",
    explains=("no_progress",),
)  # fmt: skip
def entropy_exploding(h: History, rule: Rule) -> Finding | None:
    grown = h.grown("policy/entropy")
    if h.is_young or grown is None or grown < at("entropy_risen") or h.has_learned:
        return None
    return rule.finding(
        f"the entropy is {grown:.1f} times that of the first step, and the reward has not risen",
        evidence=(h.compared("policy/entropy"), h.compared("reward/mean")),
    )


@watcher(
    "always_right", Grade.STOPS,
    "the first term has given full marks to every completion, from the first step on",
    "Either the verifier takes anything or the problems are too easy: grade a nonsense text by `python -m rewards "
    "grade` or `python -m rewards check module:Class`; read three completions by `rlvr view`; then fix "
    "rewards.terms[0] or give harder problems.",
    explains=FLAT,
)  # fmt: skip
def always_right(h: History, rule: Rule) -> Finding | None:
    shares = [line.get(f"outcome/{h.first_term}/correct", 0.0) for line in h.latest]
    if h.is_young or min(shares) < 1.0 or h.outcome_at_start("correct") < 1.0:
        return None
    return rule.finding(
        f"term {h.first_term!r} has called every completion right since the first step: there is nothing to learn from "
        "it",
        evidence=(h.shown(f"outcome/{h.first_term}/correct"), h.shown("reward/mean"), h.shown("length/truncated")),
    )


@watcher(
    "all_wrong", Grade.STOPS,
    "the first term has called no completion right and the reward has been the same for all, from the first step on",
    "Either the problems are too hard for this model or the references cannot be met: compare a completion with its "
    "reference by `rlvr view` (units, formats), run `rlvr doctor RECIPE`, then take easier problems, a stronger or "
    "fine-tuned model, or a larger rollout.group_size.",
    explains=FLAT,
)  # fmt: skip
def all_wrong(h: History, rule: Rule) -> Finding | None:
    shares = [line.get(f"outcome/{h.first_term}/correct", 0.0) for line in h.latest]
    if h.is_young or not h.is_constant or max(shares) > 0 or h.outcome_at_start("correct") > 0:
        return None
    return rule.finding(
        f"not one completion of {h.steps} steps is right, and all have the reward {h.latest[-1]['reward/mean']:.3g}",
        evidence=(h.shown("reward/mean"), h.shown("groups/none_correct"), h.shown(f"outcome/{h.first_term}/wrong")),
    )


@watcher(
    "constant_reward", Grade.STOPS,
    "all completions have had one and the same reward, from the first step on",
    "The verifier gives everything the same score: grade two different texts by `python -m rewards grade`, then fix "
    "rewards.terms.",
    explains=FLAT,
)  # fmt: skip
def constant_reward(h: History, rule: Rule) -> Finding | None:
    if h.is_young or not h.is_constant:
        return None
    return rule.finding(
        f"every completion of {h.steps} steps has the reward {h.latest[-1]['reward/mean']:.3g}",
        evidence=(h.shown("reward/mean"), h.shown("reward/std"), h.shown("groups/zero_variance")),
    )


@watcher(
    "no_variance", Grade.STOPS,
    f"at least {at('variance_low'):g} of the groups of {LATEST} have equal rewards (it stops learning from "
    f"{at('variance_gone'):g}, below it slows), as many in the first step, and the policy has not learned",
    "Most groups are all right or all wrong: a larger rollout.group_size finds the rare completion, other problems do "
    "so cheaper (problems.sampler: {type: prioritised}, fewer that are always or never solved), and algorithm.filter: "
    "{type: refill} samples until enough groups differ.",
    explains=("no_progress",),
)  # fmt: skip
def no_variance(h: History, rule: Rule) -> Finding | None:
    flat = h.zero_variance
    if h.is_young or flat is None or flat < at("variance_low") or h.is_solved or (h.has_learned and not h.was_flat):
        return None
    if not h.was_flat and flat < at("variance_gone"):
        return None
    groups = h.total("groups/total")
    finding = rule.finding(
        f"in {flat:.0%} of the last {groups:.0f} groups all {h.recipe.rollout.group_size} completions have one reward "
        f"({h.total('groups/all_correct'):.0f} all right, {h.total('groups/none_correct'):.0f} all wrong): nothing to "
        "compare",
        evidence=(h.shown("groups/zero_variance"), h.shown("groups/all_correct"), h.shown("groups/none_correct")),
    )
    return finding if flat >= at("variance_gone") else dataclasses.replace(finding, grade=Grade.SLOWS)


@watcher(
    "reward_collapsed", Grade.STOPS,
    f"the reward has lost {at('reward_fallen'):g} or more of its best, by more than {at('errors'):g} standard errors",
    "Read completions from before and after the fall by `rlvr view`; go back to a checkpoint from before it "
    "(run.resume: CHECKPOINT) with a lower learner.lr.",
    explains=("no_variance", "no_progress"),
)  # fmt: skip
def reward_collapsed(h: History, rule: Rule) -> Finding | None:
    fall = h.reward_fall()
    if h.is_young or fall is None or not h.is_comparable:
        return None
    return rule.finding(
        f"the reward has fallen from {fall[0]:.3g} (step {fall[2]:.0f}) to {fall[1]:.3g}",
        evidence=(h.compared("reward/mean"), h.compared("policy/entropy"), h.compared("length/mean")),
    )


@watcher(
    "gradient_zero", Grade.STOPS,
    f"update/grad_norm is 0 though groups are trained, {IN_A_ROW}",
    "Nothing flows back: all completions may be masked (algorithm.truncated: mask), all tokens at a clip bound, or the "
    "advantages 0 (a group_size of 1 under a baseline).",
    explains=("no_progress", "policy_not_moving"),
)  # fmt: skip
def gradient_zero(h: History, rule: Rule) -> Finding | None:
    norms, trained = h.last("update/grad_norm"), h.last("groups/trained")
    empty = h.last("update/count")
    is_zero = bool(norms) and max(norms) == 0.0
    is_empty = bool(empty) and max(empty) == 0.0
    if h.is_young or not trained or min(trained) == 0 or not (is_zero or is_empty):
        return None
    return rule.finding(
        "groups are trained, and the gradient is 0" if is_zero else "groups are trained, and no update has any token",
        evidence=(h.shown("update/grad_norm"), h.shown("advantage/abs_mean"), h.shown("samples/truncated_masked")),
    )


@watcher(
    "gradient_exploding", Grade.SLOWS,
    f"update/grad_norm at least {at('gradient_risen'):g} times its first value, while the reward has not risen",
    "Lower learner.lr, keep learner.max_grad_norm: 1.0, and look at the completions of the step in which it jumped; "
    "many collapses begin so.",
)  # fmt: skip
def gradient_exploding(h: History, rule: Rule) -> Finding | None:
    grown = h.grown("update/grad_norm")
    if h.is_young or grown is None or grown < at("gradient_risen") or h.has_learned:
        return None
    return rule.finding(
        f"the gradient norm is {grown:.0f} times that of the first step, and the reward has not risen",
        evidence=(h.compared("update/grad_norm"), h.shown("update/grad_norm_max"), h.compared("reward/mean")),
    )


@watcher(
    "clip_share", Grade.SLOWS,
    f"policy/clip_fraction at least {at('clip_high'):g}, {IN_A_ROW}",
    "Later updates of a batch move the policy out of its bounds: fewer algorithm.updates_per_batch or epochs, a lower "
    "learner.lr, or wider bounds (algorithm.surrogate).",
)  # fmt: skip
def clip_share(h: History, rule: Rule) -> Finding | None:
    shares = h.last("policy/clip_fraction")
    if h.is_young or not shares or min(shares) < at("clip_high"):
        return None
    return rule.finding(
        f"{shares[-1]:.0%} of the trained tokens are at a clip bound and have no gradient",
        evidence=(h.shown("policy/clip_fraction"), h.shown("policy/clip_low"), h.shown("policy/clip_high"),
                  h.shown("policy/ratio_max")),
    )  # fmt: skip


@watcher(
    "reward_without_eval", Grade.STOPS,
    f"training's share of right completions has risen by {at('gain_train'):g} or more since the first step, an "
    f"evaluation by less than {at('gain_share'):g} of that and within its interval",
    "The policy has found what the training reward pays for and the evaluation does not: read its best completions by "
    "`rlvr view` (Suspects), grade them by a second verifier (rewards.hybrid with args.audit), and check that the eval "
    "set asks the same kind of question; with few problems it may have learned them by heart.",
    explains=("solved",),
)  # fmt: skip
def reward_without_eval(h: History, rule: Rule) -> Finding | None:
    now = h.correct()
    if h.is_young or now is None or len(h.evals) < 2:
        return None
    gain = now - h.outcome_at_start("correct")
    first, last = h.evals[0], h.evals[-1]
    if gain < at("gain_train") or last["step"] < h.latest[-1]["step"] - at("window"):
        return None
    names = [name for name in last if name != "step" and "/" not in name and name in first]
    behind = [
        name for name in names
        if last[name] - first[name] < at("gain_share") * gain and last[name] <= first[f"{name}/high"]
    ]  # fmt: skip
    if not behind or len(behind) < len(names):
        return None
    name = behind[0]
    return rule.finding(
        f"right completions in training went up by {gain:.0%}, on {name!r} from {first[name]:.0%} to {last[name]:.0%}",
        evidence=(
            h.compared(f"outcome/{h.first_term}/correct"),
            *(f"step {line['step']:.0f}: eval {name} {line[name]:.3g}" for line in (first, last)),
        ),
    )


@watcher(
    "judge_disagrees", Grade.SLOWS,
    f"judge/TERM/agreement has fallen by {at('agreement_falls'):g} or more since the first step, and the reward rises",
    "Rules and judge part as the policy learns, so one of them is being fooled: read completions on which they differ "
    "by `rlvr view`, and raise rewards.hybrid's args.audit.",
)  # fmt: skip
def judge_disagrees(h: History, rule: Rule) -> Finding | None:
    if h.is_young or not h.has_learned:
        return None
    for term in h.recipe.rewards.terms:
        key = f"judge/{term.name}/agreement"
        first, now = h.start(key), h.now(key)
        if first is not None and now is not None and first - now >= at("agreement_falls"):
            return rule.finding(
                f"rules and judge of term {term.name!r} agreed on {first:.0%} of the completions, now on {now:.0%}, "
                "and the reward rises",
                evidence=(h.compared(key), h.compared("reward/mean")),
            )
    return None


@watcher(
    "too_good_too_soon", Grade.NOTE,
    f"{at('soon_to'):g} or more of the completions are right within {at('soon_steps'):g} steps, under "
    f"{at('soon_from'):g} were in the first",
    "Real skills grow slower: read some of these completions by `rlvr view` (Suspects) before trusting them.",
)  # fmt: skip
def too_good_too_soon(h: History, rule: Rule) -> Finding | None:
    now, first = h.correct(), h.outcome_at_start("correct")
    if h.is_young or now is None or h.steps > at("soon_steps") or first >= at("soon_from") or now < at("soon_to"):
        return None
    return rule.finding(
        f"{now:.0%} of the completions are right after {h.steps} steps, {first:.0%} were in the first",
        evidence=(h.compared(f"outcome/{h.first_term}/correct"), h.compared("length/mean")),
    )


@watcher(
    "no_progress", Grade.SLOWS,
    f"after {at('idle_steps'):g} steps the reward is within {at('errors'):g} standard errors of the first step's, and "
    "the task is not solved",
    "Nothing above explains it: check that the reward measures what the model can reach (`rlvr generate` prints the "
    "pass rates), raise rollout.prompts_per_step or group_size against noise, then learner.lr; a large algorithm.kl "
    "holds the policy where it was.",
)  # fmt: skip
def no_progress(h: History, rule: Rule) -> Finding | None:
    now = h.correct()
    if h.steps < at("idle_steps") or h.is_young or not h.is_comparable or h.has_learned:
        return None
    if now is not None and now >= at("solved"):
        return None
    return rule.finding(
        f"after {h.steps} steps the reward is where it began",
        evidence=(h.compared("reward/mean"), h.shown("reward/se"), h.shown("sync/learner_change")),
    )


@watcher(
    "solved", Grade.NOTE,
    f"at least {at('solved'):g} of the completions are right and {at('variance_low'):g} of the groups have equal "
    "rewards, after a rise",
    "The problems are learned: stop here, or go on with harder ones.",
)  # fmt: skip
def solved(h: History, rule: Rule) -> Finding | None:
    flat, now = h.zero_variance, h.correct()
    if h.is_young or flat is None or now is None or flat < at("variance_low") or not h.is_solved:
        return None
    return rule.finding(
        f"{now:.0%} of the completions are right, and {flat:.0%} of the groups have nothing left to compare",
        evidence=(h.compared(f"outcome/{h.first_term}/correct"), h.shown("groups/zero_variance")),
    )
