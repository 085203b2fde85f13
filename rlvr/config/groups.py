"""Slots of section ``algorithm`` that turn the rewards of a group into advantages: filter, shaping, baseline, scale.

For what each computes, see `rlvr.learn.samples`, `rlvr.learn.shaping` and `rlvr.learn.advantages`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from rlvr.config.base import NonNegativeInt, PlugIn, Section, slot_tag

# ------------------------------------------------------------------------------------------------------------- filter


class KeepGroups(Section):
    """Groups whose rewards are all equal are trained, and counted."""

    type: Literal["keep"]


class DropGroups(Section):
    """Groups whose rewards are all equal are left out, and counted: compared with each other they teach nothing, but
    cost a forward and backward pass."""

    type: Literal["drop"] = "drop"


class RefillGroups(Section):
    """As ``drop``, and as many new problems are drawn as groups are missing, again and again, until the batch is full
    (DAPO's dynamic sampling, 2503.14476, eq. 11) or the bound is reached."""

    type: Literal["refill"]
    max_extra: PositiveFloat = 3.0
    """Most problems drawn beyond `rollout.prompts_per_step`, as a multiple of it; then the step trains what it has."""

    def most_extra(self, prompts: int) -> int:
        """Most problems drawn beyond the first `prompts`."""
        return int(self.max_extra * prompts)


GroupFilter = Annotated[KeepGroups | DropGroups | RefillGroups, Field(discriminator="type")]


# ------------------------------------------------------------------------------------------------------------ shaping


class KimiLength(Section):
    """Kimi k1.5's length reward (2501.12599, 2.3.3): in a group shorter is better, a wrong completion never gains."""

    type: Literal["kimi_length"]
    weight: PositiveFloat = 1.0
    warmup_steps: NonNegativeInt = 0
    """Steps without it at the start of the run: a length penalty from the beginning stops completions from growing."""


class SoftOverlong(Section):
    """DAPO's soft overlong punishment (2503.14476, eq. 13): from 0 to -1 over the last `buffer` tokens allowed."""

    type: Literal["soft_overlong"]
    max_tokens: PositiveInt
    """Length at which the punishment reaches -1."""
    buffer: PositiveInt
    """Tokens before `max_tokens` over which it grows."""
    weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _inside(self) -> SoftOverlong:
        if self.buffer >= self.max_tokens:
            raise ValueError(f"buffer must be below max_tokens = {self.max_tokens}, got {self.buffer}")
        return self


class CosineLength(Section):
    """Cosine length reward (2502.03373): from one value for an empty completion along half a cosine to another
    at `max_tokens`, with one pair of values for right completions and one for wrong ones.

    It is added to the graded reward, where the paper's takes its place; the defaults turn 1 and 0 into open-r1's 1 to
    0.5 for right completions and -1 to -0.5 for wrong ones.
    """

    type: Literal["cosine_length"]
    max_tokens: PositiveInt
    """Length from which on the second value holds."""
    correct: tuple[float, float] = (0.0, -0.5)
    """For a right completion of no token and one of `max_tokens`: short ones are better."""
    wrong: tuple[float, float] = (-1.0, -0.5)
    """The same for a wrong completion: thinking longer is better than giving up."""
    exceeded: float | None = None
    """Instead of either for a completion of `max_tokens` or more (the paper's -10); None makes no difference there."""


class Repetition(Section):
    """Repetition penalty (as in open-r1, after 2502.03373): -weight * (1 - different n-grams / n-grams), on token ids.

    The paper's own punishes the tokens of repeated n-grams alone; this one punishes the completion.
    """

    type: Literal["repetition"]
    ngram: Annotated[int, Field(ge=2)] = 3
    """Tokens of an n-gram."""
    weight: PositiveFloat = 1.0


class RepetitionStopped(Section):
    """Completions that `rollout.repetition` ended get less (Kimi k1.5, 2501.12599, figure 3; no figure given there)."""

    type: Literal["repetition_stop"]
    penalty: PositiveFloat = 1.0
    """What is taken off their reward."""


Shaping = Annotated[
    Annotated[KimiLength, Tag("kimi_length")]
    | Annotated[SoftOverlong, Tag("soft_overlong")]
    | Annotated[CosineLength, Tag("cosine_length")]
    | Annotated[Repetition, Tag("repetition")]
    | Annotated[RepetitionStopped, Tag("repetition_stop")]
    | Annotated[PlugIn, Tag("plugin")],
    Discriminator(slot_tag),
]


# ----------------------------------------------------------------------------------------------------------- baseline


class MeanBaseline(Section):
    """Mean reward of the group (GRPO, 2402.03300)."""

    type: Literal["mean"] = "mean"


class LeaveOneOutBaseline(Section):
    """Mean reward of the group's other rollouts (RLOO, 2402.14740)."""

    type: Literal["leave_one_out"]


class LogMeanExpBaseline(Section):
    """beta * log mean exp(reward / beta) over the group (OAPL's V, 2602.19362): the mean for a large beta, the best
    reward for a small one."""

    type: Literal["log_mean_exp"]
    beta: PositiveFloat = 1.0
    """OAPL's beta_1; its beta_2 is the temperature of the squared surrogate."""


class LengthWeightedBaseline(Section):
    """Mean reward of the group weighted by the completions' lengths (OPO, 2505.23585)."""

    type: Literal["length_weighted"]


class PassAtKBaseline(Section):
    """The group counts as all its subsets of k completions, each as good as its best completion; a completion's value
    is the mean of the subsets that hold it, the baseline the mean of all of them (closed form of Pass@k training,
    2508.10751)."""

    type: Literal["pass_at_k"]
    k: PositiveInt
    normalise: bool = True
    """Divide by the standard deviation of the subsets, as the paper does."""
    epsilon: PositiveFloat = 1e-6
    """Added to that standard deviation."""


class EmaBaseline(Section):
    """Exponential moving average of the rewards of earlier steps (SPIRAL's RAE, 2506.24119, without roles): the step's
    own rewards move it afterwards."""

    type: Literal["ema"]
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    """average <- decay * average + (1 - decay) * mean reward, once a step (``run``) or visit (``problem``)."""
    per: Literal["run", "problem"] = "run"
    """One average for all, or one for each problem."""
    initial: float = 0.0
    """The average before the first reward."""


class GreedyBaseline(Section):
    """Reward of the greedy completion to the same problem (ReMax, 2310.10505): one more request per problem at
    temperature 0, graded, shaped as its own group and never trained."""

    type: Literal["greedy"]


class GdpoBaseline(Section):
    """Each reward term is centred and divided by its standard deviation within the group by itself, then weighted and
    added up (GDPO, 2601.05242); the paper scales with ``whiten`` afterwards."""

    type: Literal["gdpo"]
    epsilon: PositiveFloat = 1e-4
    """Added to each term's standard deviation."""


class NoBaseline(Section):
    """Nothing is subtracted (REINFORCE)."""

    type: Literal["none"]


Baseline = Annotated[
    Annotated[MeanBaseline, Tag("mean")]
    | Annotated[LeaveOneOutBaseline, Tag("leave_one_out")]
    | Annotated[LogMeanExpBaseline, Tag("log_mean_exp")]
    | Annotated[LengthWeightedBaseline, Tag("length_weighted")]
    | Annotated[PassAtKBaseline, Tag("pass_at_k")]
    | Annotated[EmaBaseline, Tag("ema")]
    | Annotated[GreedyBaseline, Tag("greedy")]
    | Annotated[GdpoBaseline, Tag("gdpo")]
    | Annotated[NoBaseline, Tag("none")]
    | Annotated[PlugIn, Tag("plugin")],
    Discriminator(slot_tag),
]

OUTSIDE_THE_GROUP = (NoBaseline, EmaBaseline, GreedyBaseline)
"""Baselines that do not come from the group itself: with them a group of equal rewards has advantages other than 0."""

OWN_SCALE = (PassAtKBaseline, GdpoBaseline)
"""Baselines whose advantages are not rewards minus something: a deviation of the rewards says nothing about them."""


# -------------------------------------------------------------------------------------------------------------- scale


class NoScale(Section):
    """Centred rewards as they are (Dr. GRPO, 2503.20783)."""

    type: Literal["none"]


class GroupStd(Section):
    """Divided by the standard deviation of the group's rewards (GRPO, 2402.03300)."""

    type: Literal["group_std"] = "group_std"
    epsilon: PositiveFloat = 1e-4
    """Added to the standard deviation (Bessel's, as torch computes it)."""


class BatchStd(Section):
    """Divided by the standard deviation of all rewards of the batch (2508.08221, 2510.13786)."""

    type: Literal["batch_std"]
    epsilon: PositiveFloat = 1e-4
    """Added to the standard deviation (Bessel's)."""


class GroupMean(Section):
    """Divided by the group's mean reward (MaxRL, 2602.02710), which must not be negative: hard problems weigh more."""

    type: Literal["group_mean"]
    epsilon: PositiveFloat = 1e-6
    """Added to the mean."""


class Whiten(Section):
    """The advantages of the batch minus their mean, divided by their standard deviation (REINFORCE++, 2501.03262): one
    number a rollout, however long."""

    type: Literal["whiten"]
    epsilon: PositiveFloat = 1e-4
    """Added to the standard deviation (Bessel's)."""


Scale = Annotated[NoScale | GroupStd | BatchStd | GroupMean | Whiten, Field(discriminator="type")]

OVER_THE_BATCH = (BatchStd, Whiten)
"""Scales that need two rollouts in the batch."""


# ------------------------------------------------------------------------------------------------------- distillation


class NoDistillation(Section):
    """Advantages come from rewards."""

    type: Literal["none"] = "none"


class TeacherDistillation(Section):
    """On-policy distillation: each sampled token's advantage gets coefficient * (log pi_teacher - log pi), the negative
    of the reverse KL's estimate on that token (GKD, 2306.13649, on the policy's own samples)."""

    type: Literal["teacher"]
    path: str
    """The teacher, a Hugging Face folder or a name on the hub, with the policy's vocabulary; frozen, on each rank."""
    coefficient: PositiveFloat = 1.0
    rewards: Literal["ignore", "add"] = "ignore"
    """``ignore``: rewards are measured, the teacher alone teaches; ``add``: to the advantages from rewards."""


Distillation = Annotated[NoDistillation | TeacherDistillation, Field(discriminator="type")]


def smallest_group(baseline: Baseline, scale: Scale) -> int:
    """Fewest scored completions with which a group can teach under a baseline and a scale."""
    if isinstance(baseline, PassAtKBaseline):  # of k completions there is but one subset, nothing to compare it with
        return baseline.k + 1
    return 1 if isinstance(baseline, OUTSIDE_THE_GROUP) and not isinstance(scale, GroupStd | GroupMean) else 2


def check_slots(baseline: Baseline, scale: Scale, shaping: list[Shaping]) -> None:
    """Raise `ValueError` for slots that contradict each other."""
    if isinstance(baseline, OWN_SCALE) and not isinstance(scale, NoScale | Whiten):
        raise ValueError(
            f"scale must be none or whiten with baseline {baseline.type!r}, got {scale.type!r}: its advantages are not "
            "rewards minus a baseline, and have been divided by a deviation of their own"
        )
    if isinstance(baseline, GdpoBaseline) and shaping:
        raise ValueError(
            f"shaping must be empty with baseline 'gdpo', got {shaping[0].type!r}: gdpo normalises each reward term by "
            "itself, and what shaping adds belongs to none; make it a term of rewards.terms"
        )


def check_distillation(
    distillation: Distillation,
    group_filter: GroupFilter,
    *,
    surrogate: str,
    ratio: str,
    positive_nll: float,
    off_policy_mask: float | None,
) -> None:
    """Raise `ValueError` where a teacher does not go with the filter, with a loss of whole completions, or with what
    looks at the advantages from rewards."""
    if not isinstance(distillation, TeacherDistillation):
        return
    if not isinstance(group_filter, KeepGroups):
        raise ValueError(
            f"filter must be keep with distillation 'teacher', got {group_filter.type!r}: the teacher teaches from "
            "groups of equal rewards as well; use filter: {type: keep}"
        )
    if surrogate in ("gmpo", "squared", "clip_cov", "kl_cov") or ratio == "sequence_product":
        raise ValueError(
            f"surrogate {surrogate!r} with ratio.type {ratio!r} takes one advantage for the whole completion, and "
            "distillation 'teacher' gives each token its own; use surrogate clip, cispo or reinforce with ratio: "
            "{type: token}"
        )
    for key, value, off in (("positive_nll", positive_nll, 0.0), ("off_policy_mask", off_policy_mask, None)):
        if value != off:
            raise ValueError(
                f"{key} must be {'null' if off is None else off} with distillation 'teacher', got {value}: it goes by "
                "whether a completion's advantage is positive, and the teacher gives each token its own"
            )


def check_sizes(group_filter: GroupFilter, baseline: Baseline, scale: Scale, prompts: int, group_size: int) -> None:
    """Raise `ValueError` where the slots do not fit `rollout.prompts_per_step` and `rollout.group_size`."""
    smallest = smallest_group(baseline, scale)
    if group_size < smallest:
        because = (
            f"has only one subset of k = {baseline.k} completions to look at; use more completions or a smaller k"
            if isinstance(baseline, PassAtKBaseline)
            else "compares the completions of a group with each other"
        )
        raise ValueError(
            f"rollout.group_size must be at least {smallest}, got {group_size}: baseline {baseline.type!r} with scale "
            f"{scale.type!r} {because}"
        )
    if isinstance(scale, OVER_THE_BATCH) and prompts * group_size < 2:
        raise ValueError(
            f"rollout.prompts_per_step * rollout.group_size must be at least 2 with scale {scale.type!r}, got 1: one "
            "reward has no standard deviation"
        )
    if isinstance(baseline, OUTSIDE_THE_GROUP) and not isinstance(group_filter, KeepGroups) and group_size > 1:
        raise ValueError(
            f"algorithm.filter must be keep with baseline {baseline.type!r}, got {group_filter.type!r}: the baseline "
            "does not come from the group, so that a group of equal rewards teaches as well; use filter: {type: keep}"
        )
    if isinstance(group_filter, RefillGroups) and group_filter.most_extra(prompts) < 1:
        raise ValueError(
            f"algorithm.filter.max_extra must allow at least one more problem, got {group_filter.max_extra} of "
            f"rollout.prompts_per_step = {prompts}; use {1 / prompts:g} or more, or filter: {{type: drop}}"
        )
