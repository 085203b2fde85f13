"""Recipe section ``algorithm``: the objective, one slot for each independent choice.

The slots of the loss are in `rlvr.config.losses`, those of the groups in `rlvr.config.groups`. For what each type
computes, with its formula, see `rlvr.learn.shaping`, `rlvr.learn.advantages` and `rlvr.learn.losses`. A slot also takes
a plug-in: ``{type: "module:name", args: {...}}``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlvr.config.base import NonNegativeFloat, PlugIn, Section
from rlvr.config.groups import (
    Baseline,
    Distillation,
    DropGroups,
    GroupFilter,
    GroupStd,
    MeanBaseline,
    NoDistillation,
    Scale,
    Shaping,
    check_distillation,
    check_slots,
    smallest_group,
)
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

# ------------------------------------------------------------------------------------------------------- aggregation


class TokenMean(Section):
    """All tokens of the global batch weigh the same (DAPO)."""

    type: Literal["token_mean"] = "token_mean"


class PromptMean(Section):
    """Tokens weigh the same within a problem's group, and groups weigh the same (ScaleRL)."""

    type: Literal["prompt_mean"]


class SequenceMean(Section):
    """Tokens weigh the same within a completion, and completions weigh the same (GRPO's 1/|o|)."""

    type: Literal["sequence_mean"]


class SequenceSum(Section):
    """Token losses are summed and divided by completions times a constant (Dr. GRPO)."""

    type: Literal["sequence_sum"]
    length: PositiveInt
    """The constant, usually `rollout.max_new_tokens`."""


Aggregation = Annotated[TokenMean | PromptMean | SequenceMean | SequenceSum, Field(discriminator="type")]


class NoGivenText(Section):
    """Only sampled completions are trained."""

    type: Literal["none"] = "none"


class GivenTextLikelihood(Section):
    """Each optimiser step's loss gets coefficient times the mean negative log-likelihood, at temperature 1, of given
    completions' tokens: what ERL calls internalisation (2602.13949), or SFT beside RL."""

    type: Literal["nll"]
    path: str
    """JSON lines, as ``rlvr sft`` reads them; compared with the eval sets as ``problems.overlap`` says."""
    prompt: str = "prompt"
    completion: str = "completion"
    coefficient: PositiveFloat
    rows: PositiveInt
    """Rows an optimiser step, without replacement within a pass over the file, each pass in an order of its own."""


GivenText = Annotated[NoGivenText | GivenTextLikelihood, Field(discriminator="type")]


class Algorithm(Section):
    """The objective: what a scored group does to the policy."""

    filter: GroupFilter = DropGroups()
    truncated: Literal["train", "mask"] = "train"
    """``mask`` takes completions that hit the token limit out of the loss (DAPO's overlong filtering); they stay in the
    baseline."""
    shaping: list[Shaping] = []
    """Added to the rewards of a group before the baseline."""
    baseline: Baseline = MeanBaseline()
    scale: Scale = GroupStd()
    distillation: Distillation = NoDistillation()
    ratio: Ratio = Ratio()
    surrogate: Surrogate = ClipSurrogate()
    correction: Correction = NoCorrection()
    aggregation: Aggregation = TokenMean()
    off_policy_mask: PositiveFloat | None = None
    """Completions with a negative advantage whose mean log(mu / pi_theta) a token is above this leave the loss, mu the
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
    given_text: GivenText = NoGivenText()
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
        check_slots(self.baseline, self.scale, self.shaping)
        check_distillation(
            self.distillation, self.filter, surrogate=self.surrogate.type, ratio=self.ratio.type,
            positive_nll=self.positive_nll, off_policy_mask=self.off_policy_mask,
        )  # fmt: skip
        return self

    def weighs_behaviour(self) -> tuple[str, str] | None:
        """Key and value of the first slot that sees the engine's log-probabilities beside the learner's, if one does:
        both must then be those of one distribution."""
        if isinstance(self.surrogate, PlugIn):
            return "surrogate", repr(self.surrogate.type)
        for key, value, is_used in (
            ("ratio.against", repr(self.ratio.against), self.ratio.against == "behaviour"),
            ("correction", repr(self.correction.type), not isinstance(self.correction, NoCorrection)),
            ("off_policy_mask", self.off_policy_mask, self.off_policy_mask is not None),
            ("squared_log_ratio", self.squared_log_ratio, self.squared_log_ratio > 0),
        ):
            if is_used:
                return key, str(value)
        return None

    def smallest_group(self) -> int:
        """Fewest completions a group needs for the baseline and scale to be defined."""
        return smallest_group(self.baseline, self.scale)
