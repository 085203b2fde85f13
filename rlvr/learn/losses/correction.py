"""Off-policy correction: importance weights and masks for tokens that the engine sampled from mu. No gradient.

Masked tokens still count in the denominator: leaving some out does not increase the weight of the others.
"""

from __future__ import annotations

from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr.config.losses import Correction, MaskCorrection, NoCorrection, RejectCorrection, TruncateCorrection
from rlvr.learn.losses.kl import k3
from rlvr.learn.losses.ratio import log_ratios, ratio_of
from rlvr.learn.losses.tokens import CompletionTokens


@torch.no_grad()
def correction_weights(
    old_logprobs: Float[Tensor, "B L"],
    behaviour_logprobs: Float[Tensor, "B L"],
    completions: CompletionTokens,
    config: Correction,
) -> Float[Tensor, "B L"]:
    """What multiplies each token's loss because the engine sampled from mu, not pi_old; rho = pi_old / mu at the
    correction's level.

    ``truncate``: min(rho, cap) (truncated importance sampling, "Your efficient RL framework secretly brings you
    off-policy RL training", 2025); ``mask``: rho where low <= rho <= high, else 0 (IcePop); ``reject``: 1 where the
    completion's mean k3(mu, pi_old) <= max_k3, else 0. Decoupled PPO (2110.00641) is ``truncate`` with a high cap
    beside ``ratio.against: recomputed``.
    """
    match config:
        case NoCorrection():
            return torch.ones_like(old_logprobs)
        case TruncateCorrection():
            rho = ratio_of(log_ratios(old_logprobs, behaviour_logprobs, completions, config.level))
            return rho.clamp(max=config.cap)
        case MaskCorrection():
            rho = ratio_of(log_ratios(old_logprobs, behaviour_logprobs, completions, config.level))
            return torch.where((rho >= config.low) & (rho <= config.high), rho, torch.zeros_like(rho))
        case RejectCorrection():
            estimate = k3(behaviour_logprobs, old_logprobs)
            mean = completions.on_tokens(completions.means(estimate), estimate.dtype)
            return (mean <= config.max_k3).to(old_logprobs.dtype)
        case _:
            assert_never(config)


@torch.no_grad()
def off_policy_keep(
    trainer_logprobs: Float[Tensor, "B L"],
    behaviour_logprobs: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B L"],
    completions: CompletionTokens,
    delta: float,
) -> Float[Tensor, "B L"]:
    """0 on the tokens of completions with A < 0 and (1/n) sum_t log(mu / pi_theta) > delta, else 1 (off-policy sequence
    masking, DeepSeek-V3.2, 2512.02556): what has become unlikely is not pushed further down."""
    distance = completions.means(behaviour_logprobs - trainer_logprobs)
    far = completions.on_tokens(distance, trainer_logprobs.dtype) > delta
    return (~((advantages < 0) & far)).to(trainer_logprobs.dtype)
