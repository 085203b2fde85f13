"""Rules about a recipe's settings alone, before any file is read."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rlvr.config import Recipe
from rlvr.config.groups import NoBaseline, TeacherDistillation, Whiten
from rlvr.config.losses import ClipSurrogate, FixedEntropyBonus, KLPenalty
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.rule import Rule

COLD, COOL, HOT = 0.1, 0.5, 1.5
"""Temperatures: completions of a group are all alike; are often alike; are noise."""
NEAR_PEAK = 0.3
"""Share of a pre-training learning rate from which on fine-tuning forgets."""
LORA = 10
"""Adapters learn best at about ten times the rate of the weights (Schulman et al. 2025, LoRA Without Regret)."""
SHORT_COMPLETION = 32
"""New tokens in which nobody reasons."""
REASONING_TEMPLATES = ("r1_zero", "r1_zero_think", "qwen_math")
ROUNDS_AWAY = 2.0**-9 * 0.02
"""Half a unit in the last place of a bfloat16 weight of usual size, 0.02: AdamW's step is about the learning rate."""
KL_STRONG = 0.5
WEIGHTS_DECAYED = 0.1
CLIP_OF_COMPLETIONS = 0.05

LR_HIGH = Rule(
    "learning_rate_high", Grade.STOPS,
    "`learner.lr` is at or above the rate that pre-trains a model of this size, 0.003239 - 0.0001395 ln(weights) "
    f"(Kaplan et al. 2020, arXiv 2001.08361, eq. D.1; at least 6e-5; ten times that for adapters); from "
    f"{NEAR_PEAK:g} of it on it slows learning",
    "lower learner.lr: runs that are known to learn take about a twentieth of that rate or less (1e-6 for billions of "
    "weights, 3e-5 for 135 million)",
)  # fmt: skip
LR_LOST = Rule(
    "updates_round_to_nothing", Grade.SLOWS,
    f"`model.dtype` is bfloat16 and `learner.lr` below {ROUNDS_AWAY:.0e}: a step of AdamW is below half a unit in "
    "the last place of a usual weight",
    "set model.dtype: float32 with model.autocast: bfloat16, which keeps the weights in float32",
)  # fmt: skip
WARM_UP = Rule(
    "warmup_never_ends", Grade.SLOWS, "`learner.schedule.warmup_steps` is at least half of the run's optimiser steps",
    "lower learner.schedule.warmup_steps, which counts optimiser steps (run.steps * updates_per_batch * epochs), or "
    "raise run.steps",
)  # fmt: skip
NO_WEIGHT = Rule(
    "reward_weights_zero", Grade.STOPS,
    "every term of `rewards.terms` has weight 0; slows learning where `algorithm.shaping` is left to learn from",
    "give the term that says whether an answer is right a weight of 1",
)  # fmt: skip
NEGATIVE = Rule(
    "reward_weights_negative", Grade.SLOWS, "no term of `rewards.terms` has a weight above 0",
    "a positive weight rewards high scores: write 1.0 for -1.0 unless every verifier scores what is bad",
)  # fmt: skip
TEMPERATURE_LOW = Rule(
    "temperature_low", Grade.STOPS, f"`rollout.temperature` is below {COLD:g}; below {COOL:g} it slows learning",
    "set rollout.temperature: 1.0: the completions of a group have to differ to be compared",
)  # fmt: skip
TEMPERATURE_HIGH = Rule(
    "temperature_high", Grade.SLOWS, f"`rollout.temperature` is above {HOT:g}",
    "set rollout.temperature: 1.0: at this one most completions are noise",
)  # fmt: skip
NO_BASELINE = Rule(
    "no_baseline", Grade.SLOWS,
    "`algorithm.baseline` is none, `scale` is not whiten: nothing is compared with anything, each completion is "
    "trained by its plain reward; `rollout.group_size: 1` usually comes with it",
    "use groups (rollout.group_size: 8 with baseline: {type: mean}), or for single completions baseline: {type: ema} "
    "or {type: greedy}",
)  # fmt: skip
SMALL_GROUP = Rule(
    "single_comparison", Grade.NOTE,
    "`rollout.group_size` is 2: a group teaches only if one completion is right and one wrong",
    "with the same number of completions a step, rollout.group_size: 8 and a quarter of prompts_per_step finds more "
    "groups of both kinds where problems are easy or hard",
)  # fmt: skip
FEW_TOKENS = Rule(
    "few_new_tokens", Grade.SLOWS,
    f"`rollout.max_new_tokens` is below {SHORT_COMPLETION} under a template that asks for reasoning ("
    + ", ".join(REASONING_TEMPLATES) + ")",
    "raise rollout.max_new_tokens until few completions are cut: hundreds for word problems",
)  # fmt: skip
CLIPPED = Rule(
    "clip_closed", Grade.SLOWS,
    "surrogate clip has low = high = 0 with several optimiser steps a batch: from the second on half of the tokens get "
    "no gradient",
    "set algorithm.surrogate.low: 0.2 and high: 0.2 (0.28 for clip-higher), or updates_per_batch: 1",
)  # fmt: skip
CLIP_LEVEL = Rule(
    "clip_never_reached", Grade.NOTE,
    f"surrogate clip with ratio.type sequence_mean and a bound above {CLIP_OF_COMPLETIONS:g}: a mean ratio hardly "
    "moves so far",
    "GSPO's bounds are low: 3e-4, high: 4e-4",
)  # fmt: skip
KL_HIGH = Rule(
    "kl_too_strong", Grade.SLOWS, f"`algorithm.kl.coefficient` is {KL_STRONG:g} or more",
    "lower algorithm.kl.coefficient: GRPO takes 0.04, most recipes 0.001 or none",
)  # fmt: skip
ENTROPY_HIGH = Rule(
    "entropy_bonus_strong", Grade.SLOWS, "`algorithm.entropy` is fixed with a coefficient of 0.1 or more",
    "lower algorithm.entropy.coefficient to 0.001 or so: completions become noise",
)  # fmt: skip
DECAY_HIGH = Rule(
    "weight_decay_high", Grade.SLOWS,
    f"`learner.weight_decay` * lr * optimiser steps is {WEIGHTS_DECAYED:g} or more: the weights shrink by that share",
    "lower learner.weight_decay: 0 or 0.01",
)  # fmt: skip
UNSCORED = Rule(
    "broken_verifier_goes_on", Grade.NOTE, "`rewards.max_unscored` is 0.9 or more",
    "lower rewards.max_unscored (0.1), or a verifier that always raises will not stop the run",
)  # fmt: skip

SETTINGS_RULES = (
    LR_HIGH, LR_LOST, WARM_UP, NO_WEIGHT, NEGATIVE, TEMPERATURE_LOW, TEMPERATURE_HIGH, NO_BASELINE, SMALL_GROUP,
    FEW_TOKENS, CLIPPED, CLIP_LEVEL, KL_HIGH, ENTROPY_HIGH, DECAY_HIGH, UNSCORED,
)  # fmt: skip


def pretraining_rate(weights: int) -> float:
    """The learning rate at which a transformer of so many weights is trained from scratch (Kaplan et al. 2020, arXiv
    2001.08361, eq. D.1), at least GPT-3's for its largest model, 6e-5 (2005.14165, table 2.1)."""
    return max(6e-5, 0.003239 - 0.0001395 * math.log(max(1, weights)))


def check_settings(recipe: Recipe, weights: int | None = None) -> Iterator[Finding]:
    """Findings over the settings; `weights` is the model's size, None where the model is not at hand."""
    yield from _learner(recipe, weights)
    yield from _rewards(recipe)
    yield from _sampling(recipe)
    yield from _objective(recipe)


def _learner(recipe: Recipe, weights: int | None) -> Iterator[Finding]:
    learner, algorithm = recipe.learner, recipe.algorithm
    updates = recipe.run.steps * algorithm.updates_per_batch * algorithm.epochs
    peak = pretraining_rate(weights or 1)  # of an unknown model: the highest that any size allows
    peak *= 1 if recipe.model.lora is None else LORA
    if learner.lr >= NEAR_PEAK * peak:
        size = f"a model of {weights / 1e6:.3g} M parameters" if weights else "any model"
        kills = learner.lr >= peak
        yield LR_HIGH.finding(
            f"learner.lr = {learner.lr:g} is {'above' if kills else 'near'} the rate at which {size} is trained from "
            f"scratch, {peak:.1e}: the first steps {'destroy' if kills else 'may destroy'} what it knows",
            grade=Grade.STOPS if kills else Grade.SLOWS,
        )
    if recipe.model.dtype == "bfloat16" and recipe.model.lora is None and learner.lr < ROUNDS_AWAY:
        yield LR_LOST.finding(
            f"model.dtype = bfloat16 with learner.lr = {learner.lr:g}: most updates of a weight round to nothing"
        )
    if learner.schedule.warmup_steps >= max(2, updates / 2):
        yield WARM_UP.finding(
            f"learner.schedule.warmup_steps = {learner.schedule.warmup_steps} of {updates} optimiser steps in all"
        )
    shrunk = learner.weight_decay * learner.lr * updates
    if shrunk >= WEIGHTS_DECAYED:
        yield DECAY_HIGH.finding(
            f"learner.weight_decay = {learner.weight_decay:g} at lr {learner.lr:g} shrinks every weight by "
            f"{1 - math.exp(-shrunk):.0%} over {updates} optimiser steps"
        )


def rewards_teach(recipe: Recipe) -> bool:
    """False where a teacher alone decides what is learned."""
    distillation = recipe.algorithm.distillation
    return not (isinstance(distillation, TeacherDistillation) and distillation.rewards == "ignore")


def _rewards(recipe: Recipe) -> Iterator[Finding]:
    terms = recipe.rewards.terms
    weights = ", ".join(f"{term.name}: {term.weight:g}" for term in terms)
    if not rewards_teach(recipe):
        return
    if not any(term.weight for term in terms):
        shaped = bool(recipe.algorithm.shaping)
        yield NO_WEIGHT.finding(
            f"rewards.terms: every weight is 0 ({weights})"
            + ("; only algorithm.shaping is left to learn from" if shaped else ": every completion gets reward 0"),
            grade=Grade.SLOWS if shaped else Grade.STOPS,
        )
    elif not any(term.weight > 0 for term in terms):
        yield NEGATIVE.finding(f"rewards.terms: no weight is above 0 ({weights}): high scores are punished")
    if recipe.rewards.max_unscored >= 0.9:
        yield UNSCORED.finding(f"rewards.max_unscored = {recipe.rewards.max_unscored:g}")


def _sampling(recipe: Recipe) -> Iterator[Finding]:
    rollout = recipe.rollout
    if rollout.temperature < COOL:
        cold = rollout.temperature < COLD
        yield TEMPERATURE_LOW.finding(
            f"rollout.temperature = {rollout.temperature:g}: the {rollout.group_size} completions of a group are "
            f"{'practically' if cold else 'often'} the same",
            grade=Grade.STOPS if cold else Grade.SLOWS,
        )
    if rollout.temperature > HOT:
        yield TEMPERATURE_HIGH.finding(f"rollout.temperature = {rollout.temperature:g}")
    if rollout.group_size == 2:
        yield SMALL_GROUP.finding("rollout.group_size = 2")
    if rollout.max_new_tokens < SHORT_COMPLETION and recipe.template.type in REASONING_TEMPLATES:
        yield FEW_TOKENS.finding(
            f"rollout.max_new_tokens = {rollout.max_new_tokens} under template.type {recipe.template.type!r}"
        )


def _objective(recipe: Recipe) -> Iterator[Finding]:
    algorithm = recipe.algorithm
    several = algorithm.updates_per_batch * algorithm.epochs > 1
    if isinstance(algorithm.baseline, NoBaseline) and not isinstance(algorithm.scale, Whiten) and rewards_teach(recipe):
        yield NO_BASELINE.finding(
            f"algorithm.baseline = none with rollout.group_size = {recipe.rollout.group_size}: a reward does not say "
            "whether an answer was better than others"
        )
    surrogate = algorithm.surrogate
    if isinstance(surrogate, ClipSurrogate):
        if several and surrogate.low == surrogate.high == 0:
            yield CLIPPED.finding(f"algorithm.surrogate clips at 1 with {algorithm.updates_per_batch} updates a batch")
        if algorithm.ratio.type == "sequence_mean" and max(surrogate.low, surrogate.high) > CLIP_OF_COMPLETIONS:
            yield CLIP_LEVEL.finding(
                f"algorithm.surrogate: low {surrogate.low:g}, high {surrogate.high:g} for whole completions"
            )
    if isinstance(algorithm.kl, KLPenalty) and algorithm.kl.coefficient >= KL_STRONG:
        yield KL_HIGH.finding(f"algorithm.kl.coefficient = {algorithm.kl.coefficient:g}")
    if isinstance(algorithm.entropy, FixedEntropyBonus) and algorithm.entropy.coefficient >= 0.1:
        yield ENTROPY_HIGH.finding(f"algorithm.entropy.coefficient = {algorithm.entropy.coefficient:g}")
