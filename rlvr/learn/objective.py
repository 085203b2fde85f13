"""Objectives: from a micro-batch's log-probabilities to its share of the step's loss, and metrics of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr.config.algorithm import Algorithm, TokenMean
from rlvr.config.groups import TeacherDistillation
from rlvr.config.losses import (
    AdaptiveEntropyBonus,
    ClipCovSurrogate,
    Entropy,
    FixedEntropyBonus,
    KlCovSurrogate,
    KLPenalty,
    MaskCorrection,
    NoEntropyBonus,
    RejectCorrection,
    TruncateCorrection,
)
from rlvr.learn.losses import (
    LIMIT,
    CompletionTokens,
    TokenInputs,
    bounded,
    correction_weights,
    covariant,
    k3,
    kl_estimate,
    kl_to_go,
    log_ratios,
    off_policy_keep,
    ratio_of,
    reinforce_surrogate,
    step_statistics,
    surrogate_loss,
    top_entropy_keep,
)
from rlvr.learn.meter import Meter
from rlvr.learn.packing import Mode, pack_for_ranks
from rlvr.records import MicroBatch, StepStatistics, TrainingSample


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """A micro-batch and what the policy under training said of its tokens: all that a loss sees."""

    batch: MicroBatch
    logprobs: Float[Tensor, "B L"]
    """Log-probability of each target, in nats, with its graph; 0 where nothing is trained."""
    entropy: Float[Tensor, "B L"]
    """Entropy of each prediction, in nats; 0 where nothing is trained."""
    is_first: bool
    """True until the first optimiser step on this batch of rollouts."""


class Objective(Protocol):
    """The objective that `rlvr.learn.update.Learner` minimises."""

    temperature: float
    updates: int
    """Optimiser steps a batch and epoch."""
    epochs: int
    needs_old: bool
    """True where log-probabilities from before the first update must be computed beforehand."""
    needs_ref: bool
    needs_teacher: bool

    def pack(
        self, samples: Sequence[TrainingSample], limit_tokens: int, mode: Mode, *, ranks: int
    ) -> list[list[MicroBatch]]:
        """The micro-batches of an optimiser step for each rank, with the weights that the loss gives to tokens."""

    def statistics(self, batches: Sequence[MicroBatch], update: int) -> StepStatistics | None:
        """Numbers that the loss needs over all tokens of an optimiser step, this rank's micro-batches and those of all
        others, or None if it needs none; ``update`` is the number of that step."""

    def loss(self, tokens: TokenBatch, meter: Meter) -> Tensor:
        """This micro-batch's part of the step's loss; what is measured goes to ``meter``."""


class PolicyGradient:
    """The recipe's section ``algorithm`` as an objective."""

    def __init__(self, algorithm: Algorithm, temperature: float) -> None:
        self.algorithm, self.temperature = algorithm, temperature
        self.updates, self.epochs = algorithm.updates_per_batch, algorithm.epochs
        self.kl = algorithm.kl if isinstance(algorithm.kl, KLPenalty) else None
        self.needs_ref = self.kl is not None
        teacher = algorithm.distillation
        self.teacher = teacher if isinstance(teacher, TeacherDistillation) else None
        self.needs_teacher = self.teacher is not None
        chooses = isinstance(algorithm.surrogate, ClipCovSurrogate | KlCovSurrogate)
        from_before = chooses or algorithm.top_entropy < 1.0
        self._needs_statistics = from_before or algorithm.positive_nll > 0.0
        # With one update a batch the policy before it is the policy under training, at a ratio of exactly 1
        uses_before = algorithm.ratio.against == "recomputed" or (self.kl is not None and self.kl.place == "reward")
        uses_before = uses_before or self.needs_teacher
        self.needs_old = from_before or (uses_before and self.updates * self.epochs > 1)
        self.bonus = EntropyBonus(algorithm.entropy)

    def pack(
        self, samples: Sequence[TrainingSample], limit_tokens: int, mode: Mode, *, ranks: int
    ) -> list[list[MicroBatch]]:
        """By the recipe's aggregation."""
        return pack_for_ranks(samples, self.algorithm.aggregation, limit_tokens, mode, ranks=ranks)

    def statistics(self, batches: Sequence[MicroBatch], update: int) -> StepStatistics | None:
        """Quantiles, covariances and counts of an optimiser step; all ranks call it."""
        return step_statistics(batches, self.algorithm, update) if self._needs_statistics else None

    def observe(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Learn from a rollout batch's metrics, after it; what the bonus was is a metric."""
        return self.bonus.observe(metrics)

    def state_dict(self) -> dict[str, Any]:
        """The state of the adaptive entropy bonus."""
        return self.bonus.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.bonus.load_state_dict(state)

    def loss(self, tokens: TokenBatch, meter: Meter) -> Tensor:
        """Sum of token_weight * (weights * surrogate + KL term + squared log ratio - bonus * entropy), and the mean
        negative log-likelihood of positive tokens; ``weights`` are correction times masks."""
        algorithm, batch = self.algorithm, tokens.batch
        logprobs, entropy = tokens.logprobs, tokens.entropy
        before = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        batch = self._distilled(batch, before, meter)
        inputs = self._inputs(batch, logprobs, entropy, before, meter)
        completions = inputs.completions
        weights = correction_weights(before, batch.behaviour_logprobs, completions, algorithm.correction)
        if algorithm.off_policy_mask is not None:
            keep = off_policy_keep(
                logprobs, batch.behaviour_logprobs, batch.advantages, completions, algorithm.off_policy_mask
            )
            meter.add("off_policy_masked", ((1.0 - keep) * batch.loss_mask).sum())
            weights = weights * keep
        if algorithm.top_entropy < 1.0:
            keep = top_entropy_keep(batch)
            meter.add("top_entropy", keep.sum())
            weights = weights * keep
        per_token = weights * surrogate_loss(inputs, algorithm.surrogate)
        if self.kl is not None and self.kl.place == "loss":
            per_token = per_token + self.kl.coefficient * self._kl(inputs, batch.ref_logprobs)
        if algorithm.squared_log_ratio:
            per_token = per_token + algorithm.squared_log_ratio * (logprobs - batch.behaviour_logprobs).square()
        if self.bonus.coefficient:
            per_token = per_token - self.bonus.coefficient * entropy
        loss = (batch.token_weight * per_token).sum()
        if algorithm.positive_nll:
            loss = loss + algorithm.positive_nll * self._positive_nll(batch, logprobs, meter)
        self._measure(inputs, batch, meter)
        if tokens.is_first:
            measure_mismatch(before, batch, algorithm, meter)
        return loss

    def _inputs(
        self, batch: MicroBatch, logprobs: Tensor, entropy: Tensor, before: Tensor, meter: Meter
    ) -> TokenInputs:
        """The inputs of the surrogate: ratios at the recipe's level, and advantages, including a KL penalty in the
        reward."""
        algorithm, completions = self.algorithm, CompletionTokens.of(batch)
        old = batch.behaviour_logprobs if algorithm.ratio.against == "behaviour" else before
        advantages = batch.advantages
        if self.kl is not None and self.kl.place == "reward":
            cost = kl_estimate(self.kl.type, before, _needed(batch.ref_logprobs))
            cost = self.kl.coefficient * kl_to_go(cost, completions)
            meter.add("kl_in_reward", cost.sum())
            advantages = advantages - cost
        surrogate, chosen = algorithm.surrogate, None
        if isinstance(surrogate, ClipCovSurrogate | KlCovSurrogate):
            chosen = covariant(batch, surrogate)
            meter.add("covariant", chosen.sum())
        return TokenInputs(
            trainer_logprobs=logprobs,
            old_logprobs=old,
            behaviour_logprobs=batch.behaviour_logprobs,
            log_ratio=log_ratios(logprobs, old, completions, algorithm.ratio.type),
            advantages=advantages,
            completions=completions,
            entropy=entropy,
            chosen=chosen,
            statistics=batch.statistics,
        )

    def _kl(self, inputs: TokenInputs, ref_logprobs: Tensor | None) -> Tensor:
        """The estimate for each token, weighted by the token's own ratio if the recipe says so."""
        assert self.kl is not None
        estimate = kl_estimate(self.kl.type, inputs.trainer_logprobs, _needed(ref_logprobs))
        return ratio_of(inputs.trainer_logprobs - inputs.old_logprobs) * estimate if self.kl.corrected else estimate

    def _positive_nll(self, batch: MicroBatch, logprobs: Tensor, meter: Meter) -> Tensor:
        """This micro-batch's part of the mean of -log pi_theta over the step's tokens with a positive advantage (VAPO,
        2504.05118, 4.3): a mean of its own, which other tokens do not dilute."""
        assert batch.statistics is not None
        positive = (batch.advantages > 0).to(logprobs.dtype) * batch.loss_mask
        sum_of = -(logprobs * positive).sum()
        meter.add("positive", positive.sum())
        meter.add("positive_nll", sum_of)
        return sum_of / max(1.0, batch.statistics.positive_tokens)

    def _distilled(self, batch: MicroBatch, before: Float[Tensor, "B L"], meter: Meter) -> MicroBatch:
        """The micro-batch with a teacher's coefficient * (log pi_teacher - log pi_before) added to its advantages, or
        in their place."""
        if self.teacher is None:
            return batch
        gap = (_needed(batch.teacher_logprobs, "distillation", "teacher") - before) * batch.loss_mask
        meter.add("teacher_kl", -gap.sum())
        own = self.teacher.coefficient * gap
        return dataclasses.replace(
            batch, advantages=own if self.teacher.rewards == "ignore" else batch.advantages + own
        )

    @torch.no_grad()
    def _measure(self, inputs: TokenInputs, batch: MicroBatch, meter: Meter) -> None:
        """Sums over trained tokens: entropy, ratio, bounds, KL."""
        mask, ratio = batch.loss_mask, ratio_of(inputs.log_ratio)
        meter.add("n", mask.sum())
        meter.add("entropy", (inputs.entropy * mask).sum())
        meter.maximum("ratio", (ratio * mask).max())
        meter.add("ratio_limited", ((inputs.log_ratio.abs() > LIMIT) * mask).sum())
        below, above = bounded(inputs, self.algorithm.surrogate)
        meter.add("clip_low", (below * mask).sum())
        meter.add("clip_high", (above * mask).sum())
        if batch.ref_logprobs is not None:
            meter.add("kl", (k3(inputs.trainer_logprobs, batch.ref_logprobs) * mask).sum())


class EntropyBonus:
    """The coefficient of the entropy in the loss; an adaptive one is state."""

    def __init__(self, config: Entropy) -> None:
        self.config = config
        self._level = config.initial if isinstance(config, AdaptiveEntropyBonus) else 0.0
        self._is_low = False
        """True if the entropy of the last rollout batch was at or below the target."""

    @property
    def coefficient(self) -> float:
        """The entropy coefficient in this rollout batch."""
        match self.config:
            case NoEntropyBonus():
                return 0.0
            case FixedEntropyBonus():
                return self.config.coefficient
            case AdaptiveEntropyBonus():
                return self._level if self._is_low else 0.0
            case _:
                assert_never(self.config)

    def observe(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Move an adaptive coefficient by the batch's ``policy/entropy`` (Skywork-OR1, 2505.22312); the metric is what
        the coefficient was in this batch. A batch in which nothing was trained moves nothing."""
        if isinstance(self.config, NoEntropyBonus):
            return {}
        used = {"policy/entropy_coefficient": self.coefficient}
        if isinstance(self.config, AdaptiveEntropyBonus) and "policy/entropy" in metrics:
            config, entropy = self.config, metrics["policy/entropy"]
            step = config.delta if entropy < config.target else -config.delta
            self._level = min(config.maximum, max(0.0, self._level + step))
            self._is_low = entropy <= config.target
        return used

    def state_dict(self) -> dict[str, Any]:
        return {"level": self._level, "is_low": self._is_low}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._level, self._is_low = state["level"], state["is_low"]


def _needed(logprobs: Tensor | None, slot: str = "kl", model: str = "reference") -> Tensor:
    if logprobs is None:
        raise ValueError(f"algorithm.{slot} needs the {model}'s log-probabilities, and the micro-batch has none")
    return logprobs


class NegativeLogLikelihood:
    """Supervised fine-tuning: the plain policy gradient with every advantage 1, at temperature 1."""

    temperature = 1.0
    updates = epochs = 1
    needs_old = needs_ref = needs_teacher = False

    def pack(
        self, samples: Sequence[TrainingSample], limit_tokens: int, mode: Mode, *, ranks: int
    ) -> list[list[MicroBatch]]:
        """All trained tokens weigh the same."""
        return pack_for_ranks(samples, TokenMean(), limit_tokens, mode, ranks=ranks)

    def statistics(self, batches: Sequence[MicroBatch], update: int) -> None:
        """It needs none."""

    def loss(self, tokens: TokenBatch, meter: Meter) -> Tensor:
        """-sum of token_weight * log-probability."""
        batch, logprobs = tokens.batch, tokens.logprobs
        meter.add("n", batch.loss_mask.sum())
        meter.add("entropy", (tokens.entropy * batch.loss_mask).sum())
        return (batch.token_weight * reinforce_surrogate(logprobs, torch.ones_like(logprobs))).sum()


@torch.no_grad()
def measure_mismatch(old_logprobs: Float[Tensor, "B L"], batch: MicroBatch, algorithm: Algorithm, meter: Meter) -> None:
    """Measures the mismatch between the engine's and the learner's log-probabilities on the sampled tokens.

    With d = log pi_old - log mu over the trained tokens: mean |d|, k3 = exp(d) - d - 1 whose mean is KL(mu || pi_old),
    the largest rho = exp(d), the effective sample size (sum rho)^2 / (N sum rho^2), and what a correction did.
    """
    mask = batch.loss_mask
    delta = (old_logprobs - batch.behaviour_logprobs) * mask
    rho = torch.exp(delta)
    meter.add("mismatch_n", mask.sum())
    meter.add("mismatch_abs", delta.abs().sum())
    meter.add("mismatch_k3", (k3(batch.behaviour_logprobs, old_logprobs) * mask).sum())
    meter.maximum("mismatch_rho", (rho * mask).max())
    meter.add("mismatch_sum", (rho * mask).sum())
    meter.add("mismatch_squares", (rho.square() * mask).sum())
    weights = correction_weights(
        old_logprobs, batch.behaviour_logprobs, CompletionTokens.of(batch), algorithm.correction
    )
    correction = algorithm.correction
    if isinstance(correction, TruncateCorrection):
        meter.add("mismatch_truncated", ((weights >= correction.cap) * mask).sum())
    if isinstance(correction, MaskCorrection | RejectCorrection):
        meter.add("mismatch_masked", ((weights == 0) * mask).sum())
