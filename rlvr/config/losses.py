"""The slots of the loss: ratio, surrogate, correction, KL and entropy. Formulas: `rlvr.learn.losses`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from rlvr.config.base import NonNegativeFloat, PlugIn, Section, slot_tag

Level = Literal["token", "sequence_mean", "sequence_product"]
"""Of a probability ratio: each token's; the geometric mean over a completion's trained tokens; their product."""
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Ratio(Section):
    """Which probability ratio the surrogate sees."""

    type: Level = "token"
    """``token``: each token's own (PPO, GRPO); ``sequence_mean``: the geometric mean over the completion, the same for
    all its tokens (GSPO); ``sequence_product``: the completion's own ratio."""
    against: Literal["behaviour", "recomputed"] = "recomputed"
    """``recomputed``: the learner's own log-probabilities before the first update on this batch, so that the first
    ratio is exactly 1; ``behaviour``: the engine's, which makes the ratio correct the engine's mismatch as well."""


# --------------------------------------------------------------------------------------------------------- surrogates


class ClipSurrogate(Section):
    """PPO's clipped surrogate with separate bounds (DAPO's clip-higher, 2503.14476); with a ratio of type
    sequence_mean it is GSPO (2507.18071), whose bounds are about 3e-4 and 4e-4."""

    type: Literal["clip"] = "clip"
    low: NonNegativeFloat = 0.2
    """The ratio is clipped below 1 - low."""
    high: NonNegativeFloat = 0.2
    """The ratio is clipped above 1 + high."""
    dual: Annotated[float, Field(gt=1.0)] | None = None
    """Bound of the ratio for negative advantages (dual clip, 1912.09729); None is off. Above 1 + high it is also
    INTELLECT-2's two-sided clip (2505.07291), TRL's ``delta``."""


class ReinforceSurrogate(Section):
    """The plain policy gradient, -advantage * log-probability."""

    type: Literal["reinforce"]


class CispoSurrogate(Section):
    """REINFORCE weighted by the clipped ratio, through which no gradient flows (MiniMax-M1, 2506.13585)."""

    type: Literal["cispo"]
    low: NonNegativeFloat | None = None
    """The weight is at least 1 - low; None, as in the paper's runs, is no lower bound."""
    high: NonNegativeFloat = 4.0
    """The weight is at most 1 + high, the paper's convention. ScaleRL's eps_max and TRL's epsilon_high are the bound
    itself: their 5.0 is 4.0 here."""


class SapoSurrogate(Section):
    """A sigmoid gate in place of the clip (SAPO, 2511.20347)."""

    type: Literal["sapo"]
    tau_positive: PositiveFloat = 1.0
    """Steepness of the gate where the advantage is positive."""
    tau_negative: PositiveFloat = 1.05
    """The same where it is not: steeper, for gradients of negative completions spread over all other tokens."""


class GmpoSurrogate(Section):
    """Geometric mean of the token ratios, each clipped by its logarithm before (GMPO, 2507.20673)."""

    type: Literal["gmpo"]
    low: PositiveFloat = 0.4
    """The log ratio is clipped below -low."""
    high: PositiveFloat = 0.4
    """The log ratio is clipped above high."""


class VespoSurrogate(Section):
    """REINFORCE weighted by phi(W) = W^k exp(lambda (1 - W)) of the completion's own ratio W (VESPO, 2602.10693)."""

    type: Literal["vespo"]
    k_positive: NonNegativeFloat = 2.0
    lambda_positive: PositiveFloat = 3.0
    k_negative: NonNegativeFloat = 3.0
    lambda_negative: PositiveFloat = 2.0


class DppoSurrogate(Section):
    """ratio * advantage, without the tokens whose PROBABILITY has moved too far in the advantage's direction (DPPO,
    2602.04879, binary total variation); prime-rl adds ``squared_log_ratio: 0.001``."""

    type: Literal["dppo"]
    low: PositiveFloat = 0.2
    """Masked where the advantage is negative and the probability has fallen by more."""
    high: PositiveFloat = 0.2
    """Masked where the advantage is positive and the probability has risen by more."""


class ClipCovSurrogate(Section):
    """The clipped surrogate without a few tokens of high covariance between log-probability and advantage, chosen at
    random, which would cost the most entropy (Clip-Cov, 2505.22617)."""

    type: Literal["clip_cov"]
    share: Share = 2e-4
    """Tokens left out / trained tokens of an optimiser step; at least one, if one has such a covariance."""
    cov_low: float = 1.0
    """Tokens are chosen whose covariance is above this."""
    cov_high: float = 5.0
    """... and below this."""
    low: NonNegativeFloat = 0.2
    high: NonNegativeFloat = 0.2

    @model_validator(mode="after")
    def _bounds(self) -> ClipCovSurrogate:
        if self.cov_low >= self.cov_high:
            raise ValueError(f"cov_low must be below cov_high = {self.cov_high}, got {self.cov_low}")
        return self


class KlCovSurrogate(Section):
    """ratio * advantage, with a penalty on |log ratio| for the tokens of the highest covariance between
    log-probability and advantage (KL-Cov, 2505.22617)."""

    type: Literal["kl_cov"]
    share: Share = 2e-4
    """Tokens with the penalty / trained tokens of an optimiser step; at least one."""
    coefficient: PositiveFloat = 1.0


class SquaredSurrogate(Section):
    """Regression of tau times the completion's log ratio on its advantage, divided by 2 tau, so that its gradient has
    the size of a policy gradient: Kimi k1.5's mirror descent (2501.12599, eq. 3, ratio.against: recomputed) and OAPL
    (2602.19362, against: behaviour)."""

    type: Literal["squared"]
    tau: PositiveFloat
    """OAPL's beta_2, 1e-3 in its runs; Kimi k1.5 does not tell its own."""


Surrogate = Annotated[
    Annotated[ClipSurrogate, Tag("clip")]
    | Annotated[ReinforceSurrogate, Tag("reinforce")]
    | Annotated[CispoSurrogate, Tag("cispo")]
    | Annotated[SapoSurrogate, Tag("sapo")]
    | Annotated[GmpoSurrogate, Tag("gmpo")]
    | Annotated[VespoSurrogate, Tag("vespo")]
    | Annotated[DppoSurrogate, Tag("dppo")]
    | Annotated[ClipCovSurrogate, Tag("clip_cov")]
    | Annotated[KlCovSurrogate, Tag("kl_cov")]
    | Annotated[SquaredSurrogate, Tag("squared")]
    | Annotated[PlugIn, Tag("plugin")],
    Discriminator(slot_tag),
]


# --------------------------------------------------------------------------------------------------------- correction


class NoCorrection(Section):
    """The engine's mismatch is measured, not corrected."""

    type: Literal["none"] = "none"


class TruncateCorrection(Section):
    """Each token's loss times min(rho, cap), rho = pi_recomputed / pi_behaviour (truncated importance sampling)."""

    type: Literal["truncate"]
    level: Level = "token"
    """Whether rho is the token's own, or the geometric mean or the product over its completion."""
    cap: PositiveFloat = 2.0


class MaskCorrection(Section):
    """Each token's loss times rho = pi_recomputed / pi_behaviour where that lies within bounds, 0 elsewhere (IcePop;
    masked importance sampling); the denominator stays the unmasked one."""

    type: Literal["mask"]
    level: Level = "token"
    """Whether rho is the token's own, or the geometric mean or the product over its completion."""
    low: NonNegativeFloat = 0.5
    high: PositiveFloat = 5.0

    @model_validator(mode="after")
    def _bounds(self) -> MaskCorrection:
        if not self.low < 1.0 < self.high:
            raise ValueError(f"bounds must lie around 1, got low {self.low}, high {self.high}")
        return self


class RejectCorrection(Section):
    """Completions are left out whose mean k3(pi_behaviour, pi_recomputed) a token is above a bound, the others are
    taken as they are (rejection sampling); the denominator stays that of all."""

    type: Literal["reject"]
    max_k3: PositiveFloat = 0.01


Correction = Annotated[
    NoCorrection | TruncateCorrection | MaskCorrection | RejectCorrection, Field(discriminator="type")
]


# ----------------------------------------------------------------------------------------------------- KL and entropy


class FixedReference(Section):
    """The reference stays the starting policy."""

    type: Literal["fixed"] = "fixed"


class CopiedReference(Section):
    """The reference becomes a copy of the policy every so many optimiser steps (DeepSeek-R1: 400)."""

    type: Literal["copy"]
    every: PositiveInt
    """Optimiser steps; it happens after the rollout batch in which their number is reached."""


class AveragedReference(Section):
    """The reference moves by alpha towards the policy every so many optimiser steps (TR-DPO, 2404.09656; TRL's
    sync_ref_model). The average is kept in the type of the weights."""

    type: Literal["average"]
    every: PositiveInt
    """Optimiser steps; it happens after the rollout batch in which their number is reached."""
    alpha: Share = 0.6
    """reference = (1 - alpha) * reference + alpha * policy."""


Reference = Annotated[FixedReference | CopiedReference | AveragedReference, Field(discriminator="type")]


class NoKL(Section):
    """No reference model."""

    type: Literal["none"] = "none"


class KLPenalty(Section):
    """coefficient * an estimate of KL(pi || pi_ref) for each token."""

    type: Literal["k1", "k2", "k3"]
    """With r = pi_ref / pi: ``k1`` is -log r, ``k2`` (log r)^2 / 2, ``k3`` r - log r - 1 (GRPO)."""
    coefficient: PositiveFloat = 0.001
    place: Literal["loss", "reward"] = "loss"
    """``loss`` adds it to the token's loss. ``reward`` takes it from the rewards of the tokens: each token's advantage
    loses coefficient * the sum over itself and the trained tokens after it (REINFORCE++, PPO without discount), under
    the policy before the first update on the batch; neither baseline nor scale see it."""
    corrected: bool = False
    """Multiply by pi / pi_old, through which gradient flows (DeepSeek-V3.2): with k1 and k3 the gradient is then that
    of the KL divergence, even off policy."""
    reference: Reference = FixedReference()

    @model_validator(mode="after")
    def _sound(self) -> KLPenalty:
        if self.type == "k1" and self.place == "loss" and not self.corrected:
            raise ValueError(
                "k1 with place: loss needs corrected: true: the gradient of log pi - log pi_ref alone is that of log "
                "pi, whose mean is 0, so that it would add noise and no penalty; or use k2, k3 or place: reward"
            )
        if self.place == "reward" and self.corrected:
            raise ValueError("corrected must be false with place: reward, which the surrogate's ratio corrects already")
        return self


KL = Annotated[NoKL | KLPenalty, Field(discriminator="type")]


class NoEntropyBonus(Section):
    """The entropy is measured, not rewarded."""

    type: Literal["none"] = "none"


class FixedEntropyBonus(Section):
    """-coefficient * entropy of the prediction in each token's loss."""

    type: Literal["fixed"]
    coefficient: PositiveFloat


class AdaptiveEntropyBonus(Section):
    """The bonus with a coefficient that grows while the entropy is below a target (Skywork-OR1, 2505.22312).

    After each rollout batch the coefficient rises by `delta` if the batch's mean entropy was below `target`, else it
    falls by it; the next batch gets the bonus only if this one's entropy was at or below the target.
    """

    type: Literal["adaptive"]
    target: PositiveFloat
    """Nats a token; choose it near, not far below, the starting policy's ``policy/entropy``."""
    delta: PositiveFloat = 0.005
    initial: NonNegativeFloat = 0.0
    maximum: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _range(self) -> AdaptiveEntropyBonus:
        if self.initial > self.maximum:
            raise ValueError(f"initial must be at most maximum = {self.maximum}, got {self.initial}")
        return self


Entropy = Annotated[NoEntropyBonus | FixedEntropyBonus | AdaptiveEntropyBonus, Field(discriminator="type")]


# ------------------------------------------------------------------------------------------------- what fits together

_LEVELS: dict[str, tuple[Level, str]] = {
    "reinforce": ("token", "it uses no ratio"),
    "gmpo": ("token", "it takes the geometric mean of clipped token ratios itself"),
    "dppo": ("token", "its bounds are for the probability of one token"),
    "clip_cov": ("token", "it chooses single tokens"),
    "kl_cov": ("token", "it chooses single tokens"),
    "vespo": ("sequence_product", "its weight is a function of the completion's own ratio"),
    "squared": ("sequence_product", "it is a regression on the completion's log ratio"),
}


def check_loss(
    *, ratio: Ratio, surrogate: Surrogate, correction: Correction, aggregation: str, kl: KL, top_entropy: float,
    steps_per_batch: int,
) -> None:  # fmt: skip
    """Raise `ValueError` for slots that make no sense together, with keys, values, the rule and the fix."""
    if ratio.against == "behaviour" and correction.type != "none":
        raise ValueError(
            f"correction {correction.type!r} weighs pi_recomputed / pi_behaviour, but ratio.against is 'behaviour', "
            "which corrects that mismatch already; use ratio.against: recomputed or correction: none"
        )
    _check_levels(ratio, surrogate)
    if surrogate.type == "kl_cov" and ratio.against == "recomputed" and steps_per_batch == 1:
        raise ValueError(
            "surrogate 'kl_cov' penalises |log ratio|, which is 0 and without gradient with one optimiser step a batch "
            "against the recomputed policy; raise updates_per_batch or epochs, or set ratio.against: behaviour"
        )
    per_completion = surrogate.type in ("gmpo", "squared") or (
        surrogate.type in ("clip", "sapo") and ratio.type == "sequence_product"
    )
    if per_completion or (surrogate.type in ("clip", "sapo") and ratio.type == "sequence_mean"):
        _check_completions(surrogate.type, ratio.type, aggregation)
    if per_completion:
        _check_whole(surrogate.type, ratio.type, correction, kl, top_entropy)
    every = steps_per_batch
    if isinstance(kl, KLPenalty) and not isinstance(kl.reference, FixedReference):
        every = kl.reference.every
    if every < steps_per_batch:
        raise ValueError(
            f"kl.reference.every must be at least the {steps_per_batch} optimiser steps of a rollout batch "
            f"(updates_per_batch * epochs), got {every}: the reference changes between batches only"
        )


def _check_levels(ratio: Ratio, surrogate: Surrogate) -> None:
    level, reason = _LEVELS.get(surrogate.type, (ratio.type, ""))
    if ratio.type != level:
        raise ValueError(
            f"surrogate {surrogate.type!r} needs ratio.type: {level}, got {ratio.type!r}: {reason}; "
            f"write ratio: {{type: {level}, against: {ratio.against}}}"
        )
    if surrogate.type == "reinforce" and ratio.against != "recomputed":
        raise ValueError(
            f"surrogate 'reinforce' uses no ratio, and ratio.against: {ratio.against} would have no effect; leave it "
            "out, or use surrogate cispo, which weighs the same loss by the ratio"
        )


def _check_completions(surrogate: str, ratio: Level, aggregation: str) -> None:
    """A loss of whole completions must be averaged over completions."""
    if aggregation not in ("sequence_mean", "sequence_sum"):
        raise ValueError(
            f"surrogate {surrogate!r} with ratio.type {ratio!r} is a loss of whole completions, which aggregation "
            f"{aggregation!r} would weigh by their lengths; use aggregation: {{type: sequence_mean}}, or "
            "{type: sequence_sum, length: 1} to weigh by length on purpose (LUSPO)"
        )


def _check_whole(surrogate: str, ratio: Level, correction: Correction, kl: KL, top_entropy: float) -> None:
    """A loss that has one value for a completion cannot treat its tokens differently."""
    whole = f"surrogate {surrogate!r} with ratio.type {ratio!r} has one loss for the whole completion"
    if isinstance(correction, TruncateCorrection | MaskCorrection) and correction.level == "token":
        raise ValueError(
            f"{whole}, which correction.level 'token' cannot weigh token by token; "
            "use level: sequence_mean or sequence_product"
        )
    if isinstance(kl, KLPenalty) and kl.place == "reward":
        raise ValueError(f"{whole}: kl.place 'reward' changes advantages token by token; use place: loss")
    if top_entropy < 1.0:
        raise ValueError(f"{whole}, from which top_entropy {top_entropy} cannot take tokens out; use top_entropy: 1.0")
