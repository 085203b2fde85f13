"""Recipe section ``algorithm``: the objective, one slot for each independent choice.

The slots of the loss stand here, those of the groups in `rlvr.config.groups`. What each type computes stands in
`rlvr.learn.shaping`, `rlvr.learn.advantages` and `rlvr.learn.losses`, beside its formula. A slot also takes a plug-in:
``{type: "module:name", args: {...}}``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from rlvr.config.base import NonNegativeFloat, PlugIn, Section, slot_tag
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

# -------------------------------------------------------------------------------------------------------------- loss


class Ratio(Section):
    """Which probability ratio the surrogate sees."""

    type: Literal["token"] = "token"
    against: Literal["behaviour", "recomputed"] = "recomputed"
    """``recomputed``: the learner's own log-probabilities before the first update on this batch, so that the first
    ratio is exactly 1; ``behaviour``: the engine's, which makes the ratio correct the engine's mismatch as well."""


class ClipSurrogate(Section):
    """PPO's clipped surrogate with separate bounds (DAPO's clip-higher, 2503.14476)."""

    type: Literal["clip"] = "clip"
    low: NonNegativeFloat = 0.2
    """The ratio is clipped below 1 - low."""
    high: NonNegativeFloat = 0.2
    """The ratio is clipped above 1 + high."""
    dual: Annotated[float, Field(gt=1.0)] | None = None
    """Bound of the loss for negative advantages (dual clip, 1912.09729); None is off."""


class ReinforceSurrogate(Section):
    """The plain policy gradient, -advantage * log-probability."""

    type: Literal["reinforce"]


Surrogate = Annotated[
    Annotated[ClipSurrogate, Tag("clip")]
    | Annotated[ReinforceSurrogate, Tag("reinforce")]
    | Annotated[PlugIn, Tag("plugin")],
    Discriminator(slot_tag),
]


class NoCorrection(Section):
    """The engine's mismatch is measured, not corrected."""

    type: Literal["none"] = "none"


class TruncateCorrection(Section):
    """Each token's loss times min(pi_recomputed / pi_behaviour, cap) (truncated importance sampling)."""

    type: Literal["truncate"]
    cap: PositiveFloat = 2.0


class MaskCorrection(Section):
    """Each token's loss times the ratio pi_recomputed / pi_behaviour where that lies within bounds, 0 elsewhere
    (IcePop); the denominator stays the unmasked one."""

    type: Literal["mask"]
    low: PositiveFloat = 0.5
    high: PositiveFloat = 5.0

    @model_validator(mode="after")
    def _bounds(self) -> MaskCorrection:
        if not self.low < 1.0 < self.high:
            raise ValueError(f"bounds must lie around 1, got low {self.low}, high {self.high}")
        return self


Correction = Annotated[NoCorrection | TruncateCorrection | MaskCorrection, Field(discriminator="type")]


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


class NoKL(Section):
    """No reference model."""

    type: Literal["none"] = "none"


class K3(Section):
    """coefficient * (pi_ref/pi - log(pi_ref/pi) - 1) in the loss (GRPO), against the starting policy."""

    type: Literal["k3"]
    coefficient: PositiveFloat = 0.001


KL = Annotated[NoKL | K3, Field(discriminator="type")]


class Algorithm(Section):
    """The objective: what a scored group does to the policy."""

    filter: GroupFilter = DropGroups()
    truncated: Literal["train", "mask"] = "train"
    """``mask`` takes answers that hit the token limit out of the loss (DAPO's overlong filtering); they stay in the
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
    kl: KL = NoKL()
    updates_per_batch: PositiveInt = 1
    """Optimiser steps a rollout batch, each on an equal share of its groups."""
    epochs: PositiveInt = 1
    """Passes over a rollout batch."""

    @model_validator(mode="after")
    def _orthogonal(self) -> Algorithm:
        if self.ratio.against == "behaviour" and self.correction.type != "none":
            raise ValueError(
                f"correction {self.correction.type!r} weighs pi_recomputed / pi_behaviour, but ratio.against is "
                "'behaviour', which corrects that mismatch already; use ratio.against: recomputed or correction: none"
            )
        check_slots(self.baseline, self.scale, self.shaping)
        check_distillation(self.distillation, self.filter, surrogate=self.surrogate.type, ratio=self.ratio.type)
        return self

    def smallest_group(self) -> int:
        """Fewest answers a group needs for the baseline and scale to be defined."""
        return smallest_group(self.baseline, self.scale)
