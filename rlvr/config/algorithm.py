"""Recipe section ``algorithm``: the objective, one slot for each independent choice.

What each type computes stands in `rlvr.learn.shaping`, `rlvr.learn.advantages` and `rlvr.learn.losses`, beside its
formula; the slots of the loss are in `rlvr.config.losses`. A slot also takes a plug-in:
``{type: "module:name", args: {...}}``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from rlvr.config.base import NonNegativeFloat, NonNegativeInt, PlugIn, Section
from rlvr.config.losses import (
    KL,
    ClipSurrogate,
    Correction,
    Entropy,
    NoCorrection,
    NoEntropyBonus,
    NoKL,
    Ratio,
    Share,
    Surrogate,
    check_loss,
)


def _tag(value: Any) -> str | None:
    """The tag of a slot: its ``type``, or ``plugin`` where that is an import path; None if it is no slot at all."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "plugin" if isinstance(kind, str) and ":" in kind else kind


# ------------------------------------------------------------------------------------------------------------ groups


class GroupFilter(Section):
    """What happens to groups whose rewards are all equal: they teach nothing but cost a forward and backward pass."""

    type: Literal["keep", "drop"] = "drop"
    """``keep`` trains them (their advantages are 0), ``drop`` leaves them out; either way they are counted."""


class KimiLength(Section):
    """Kimi k1.5's length reward (2501.12599, 2.3.3): in a group shorter is better, a wrong answer never gains."""

    type: Literal["kimi_length"]
    weight: PositiveFloat = 1.0
    warmup_steps: NonNegativeInt = 0
    """Steps without it at the start of the run: a length penalty from the beginning stops answers from growing."""


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


Shaping = Annotated[
    Annotated[KimiLength, Tag("kimi_length")]
    | Annotated[SoftOverlong, Tag("soft_overlong")]
    | Annotated[PlugIn, Tag("plugin")],
    Discriminator(_tag),
]


class MeanBaseline(Section):
    """Mean reward of the group (GRPO, 2402.03300)."""

    type: Literal["mean"] = "mean"


class LeaveOneOutBaseline(Section):
    """Mean reward of the group's other rollouts (RLOO, 2402.14740)."""

    type: Literal["leave_one_out"]


class NoBaseline(Section):
    """Nothing is subtracted (REINFORCE)."""

    type: Literal["none"]


Baseline = Annotated[
    Annotated[MeanBaseline, Tag("mean")]
    | Annotated[LeaveOneOutBaseline, Tag("leave_one_out")]
    | Annotated[NoBaseline, Tag("none")]
    | Annotated[PlugIn, Tag("plugin")],
    Discriminator(_tag),
]


class Scale(Section):
    """What centred rewards are divided by: nothing (Dr. GRPO), the group's or the batch's standard deviation."""

    type: Literal["none", "group_std", "batch_std"] = "group_std"
    epsilon: PositiveFloat = 1e-4
    """Added to the standard deviation (Bessel's, as torch computes it)."""


# ------------------------------------------------------------------------------------------------------- aggregation


class TokenMean(Section):
    """All tokens of the global batch weigh the same (DAPO)."""

    type: Literal["token_mean"] = "token_mean"


class PromptMean(Section):
    """Tokens weigh the same within a problem's group, and groups weigh the same (ScaleRL)."""

    type: Literal["prompt_mean"]


class SequenceMean(Section):
    """Tokens weigh the same within an answer, and answers weigh the same (GRPO's 1/|o|)."""

    type: Literal["sequence_mean"]


class SequenceSum(Section):
    """Token losses are summed and divided by answers times a constant (Dr. GRPO)."""

    type: Literal["sequence_sum"]
    length: PositiveInt
    """The constant, usually `rollout.max_new_tokens`."""


Aggregation = Annotated[TokenMean | PromptMean | SequenceMean | SequenceSum, Field(discriminator="type")]


class Algorithm(Section):
    """The objective: what a scored group does to the policy."""

    filter: GroupFilter = GroupFilter()
    truncated: Literal["train", "mask"] = "train"
    """``mask`` takes answers that hit the token limit out of the loss (DAPO's overlong filtering); they stay in the
    baseline."""
    shaping: list[Shaping] = []
    """Added to the rewards of a group before the baseline."""
    baseline: Baseline = MeanBaseline()
    scale: Scale = Scale()
    ratio: Ratio = Ratio()
    surrogate: Surrogate = ClipSurrogate()
    correction: Correction = NoCorrection()
    aggregation: Aggregation = TokenMean()
    off_policy_mask: PositiveFloat | None = None
    """Answers with a negative advantage whose mean log(mu / pi_theta) a token is above this leave the loss, mu the
    engine's policy (off-policy sequence masking, DeepSeek-V3.2, 2512.02556); the denominator stays. None is off."""
    kl: KL = NoKL()
    squared_log_ratio: NonNegativeFloat = 0.0
    """This times log(pi_theta / mu)^2 is added to each token's loss, mu the engine's policy (prime-rl: 1e-3)."""
    entropy: Entropy = NoEntropyBonus()
    top_entropy: Share = 1.0
    """The surrogate counts on this share of an optimiser step's trained tokens only, those of the highest entropy
    before the first update on the batch (2506.01939: 0.2); the denominator stays that of all."""
    positive_nll: NonNegativeFloat = 0.0
    """This times the mean negative log-likelihood of the tokens with a positive advantage is added to the loss (VAPO,
    2504.05118: 0.1)."""
    updates_per_batch: PositiveInt = 1
    """Optimiser steps a rollout batch, each on an equal share of its groups."""
    epochs: PositiveInt = 1
    """Passes over a rollout batch."""
    reset_optimizer: bool = False
    """Forget the optimizer's moments at the start of each rollout batch (Kimi k1.5)."""

    @model_validator(mode="after")
    def _orthogonal(self) -> Algorithm:
        check_loss(
            ratio=self.ratio, surrogate=self.surrogate, correction=self.correction, aggregation=self.aggregation.type,
            kl=self.kl, top_entropy=self.top_entropy, steps_per_batch=self.updates_per_batch * self.epochs,
        )  # fmt: skip
        return self

    def smallest_group(self) -> int:
        """Fewest answers a group needs for the baseline and scale to be defined."""
        return 1 if self.baseline.type == "none" and self.scale.type != "group_std" else 2
