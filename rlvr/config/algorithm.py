"""Recipe section ``algorithm``: the objective, one slot for each independent choice.

What each type computes stands in `rlvr.learn.shaping`, `rlvr.learn.advantages` and `rlvr.learn.losses`, beside its
formula. A slot also takes a plug-in: ``{type: "module:name", args: {...}}``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from rlvr.config.base import NonNegativeFloat, NonNegativeInt, PlugIn, Section


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
    Discriminator(_tag),
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
        return self

    def smallest_group(self) -> int:
        """Fewest answers a group needs for the baseline and scale to be defined."""
        return 1 if self.baseline.type == "none" and self.scale.type != "group_std" else 2
