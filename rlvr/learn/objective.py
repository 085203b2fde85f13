"""Objectives: from a micro-batch's log-probabilities to its part of the step's loss, and what is measured then."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr.config.algorithm import K3, Aggregation, Algorithm, ClipSurrogate, TokenMean
from rlvr.config.groups import TeacherDistillation
from rlvr.learn.losses import TokenInputs, correction_weights, is_clipped, k3, reinforce_surrogate, token_loss
from rlvr.learn.meter import Meter
from rlvr.records import MicroBatch


class Objective(Protocol):
    """What `rlvr.learn.update.Learner` minimises."""

    temperature: float
    aggregation: Aggregation
    updates: int
    """Optimiser steps a batch and epoch."""
    epochs: int
    needs_old: bool
    """True where log-probabilities from before the first update must be computed beforehand."""
    needs_ref: bool
    needs_teacher: bool

    def loss(
        self,
        batch: MicroBatch,
        logprobs: Float[Tensor, "B L"],
        entropy: Float[Tensor, "B L"],
        meter: Meter,
        first: bool,
    ) -> Tensor:
        """This micro-batch's part of the loss; ``first`` until the first optimiser step on this batch of rollouts."""


class PolicyGradient:
    """The recipe's section ``algorithm`` as an objective."""

    def __init__(self, algorithm: Algorithm, temperature: float) -> None:
        self.algorithm, self.temperature = algorithm, temperature
        self.aggregation = algorithm.aggregation
        self.updates, self.epochs = algorithm.updates_per_batch, algorithm.epochs
        self.kl = algorithm.kl if isinstance(algorithm.kl, K3) else None
        self.needs_ref = self.kl is not None
        teacher = algorithm.distillation
        self.teacher = teacher if isinstance(teacher, TeacherDistillation) else None
        self.needs_teacher = self.teacher is not None
        # With one update a batch the policy before it is the policy under training, at a ratio of exactly 1
        uses_before = algorithm.ratio.against == "recomputed" or self.needs_teacher
        self.needs_old = uses_before and self.updates * self.epochs > 1

    def loss(
        self,
        batch: MicroBatch,
        logprobs: Float[Tensor, "B L"],
        entropy: Float[Tensor, "B L"],
        meter: Meter,
        first: bool,
    ) -> Tensor:
        """Sum of token_weight * (correction * surrogate + coefficient * k3)."""
        before = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        old = batch.behaviour_logprobs if self.algorithm.ratio.against == "behaviour" else before
        tokens = TokenInputs(
            trainer_logprobs=logprobs,
            old_logprobs=old,
            behaviour_logprobs=batch.behaviour_logprobs,
            advantages=self._distilled(batch, before, meter),
            loss_mask=batch.loss_mask,
            sequence=batch.sequence,
            entropy=entropy,
        )
        per_token = token_loss(
            tokens,
            batch.ref_logprobs,
            surrogate=self.algorithm.surrogate,
            correction=self.algorithm.correction,
            kl=self.kl,
        )
        self._measure(tokens, batch, meter)
        if first:
            measure_mismatch(before, batch, self.algorithm, meter)
        return (batch.token_weight * per_token).sum()

    def _distilled(self, batch: MicroBatch, before: Float[Tensor, "B L"], meter: Meter) -> Float[Tensor, "B L"]:
        """The advantages, with a teacher's coefficient * (log pi_teacher - log pi_before) added or in their place."""
        if self.teacher is None:
            return batch.advantages
        if batch.teacher_logprobs is None:
            raise ValueError("algorithm.distillation needs the teacher's log-probabilities, the micro-batch has none")
        gap = (batch.teacher_logprobs - before) * batch.loss_mask
        meter.add("teacher_kl", -gap.sum())
        own = self.teacher.coefficient * gap
        return own if self.teacher.rewards == "ignore" else batch.advantages + own

    @torch.no_grad()
    def _measure(self, tokens: TokenInputs, batch: MicroBatch, meter: Meter) -> None:
        """Sums over trained tokens: entropy, ratio, clipping, KL."""
        mask = tokens.loss_mask
        ratio = torch.exp(tokens.trainer_logprobs - tokens.old_logprobs)
        meter.add("n", mask.sum())
        meter.add("entropy", (tokens.entropy * mask).sum())
        meter.maximum("ratio", (ratio * mask).max())
        surrogate = self.algorithm.surrogate
        if isinstance(surrogate, ClipSurrogate):
            low, high, dual = surrogate.low, surrogate.high, surrogate.dual
            meter.add("clipped", (is_clipped(ratio, tokens.advantages, low=low, high=high, dual=dual) * mask).sum())
        if batch.ref_logprobs is not None:
            meter.add("kl", (k3(tokens.trainer_logprobs, batch.ref_logprobs) * mask).sum())


class NegativeLogLikelihood:
    """Supervised fine-tuning: the plain policy gradient with every advantage 1, at temperature 1."""

    temperature = 1.0
    aggregation: Aggregation = TokenMean()
    updates = epochs = 1
    needs_old = needs_ref = needs_teacher = False

    def loss(
        self,
        batch: MicroBatch,
        logprobs: Float[Tensor, "B L"],
        entropy: Float[Tensor, "B L"],
        meter: Meter,
        first: bool,
    ) -> Tensor:
        """-sum of token_weight * log-probability."""
        meter.add("n", batch.loss_mask.sum())
        meter.add("entropy", (entropy * batch.loss_mask).sum())
        return (batch.token_weight * reinforce_surrogate(logprobs, torch.ones_like(logprobs))).sum()


@torch.no_grad()
def measure_mismatch(old_logprobs: Float[Tensor, "B L"], batch: MicroBatch, algorithm: Algorithm, meter: Meter) -> None:
    """How far the engine's log-probabilities are from the learner's on the tokens that the engine sampled.

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
    weights = correction_weights(old_logprobs, batch.behaviour_logprobs, algorithm.correction)
    if algorithm.correction.type == "truncate":
        meter.add("mismatch_truncated", ((weights < rho) * mask).sum())
    if algorithm.correction.type == "mask":
        meter.add("mismatch_masked", ((weights == 0) * mask).sum())
