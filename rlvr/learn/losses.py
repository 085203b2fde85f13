"""Losses per token, each a function that reads like its formula.

Notation: ``trainer_logprobs`` log pi_theta (the only one with a gradient), ``old_logprobs`` log pi_old, the policy
before the first update on this batch, ``behaviour_logprobs`` log mu, what the engine sampled from, ``ref_logprobs``
log pi_ref. All are [B L], aligned to the predicted token. A step's loss is the plain sum of
``token_weight * per-token loss``, with weights over the global batch (`rlvr.learn.packing.token_weights`), so that
neither micro-batches nor ranks can change it.

A plug-in surrogate is ``f(tokens: TokenInputs, **args) -> Tensor[B L]``; masked tokens may hold anything, their weight
is 0, but must be finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlvr.config.algorithm import (
    K3,
    ClipSurrogate,
    Correction,
    MaskCorrection,
    NoCorrection,
    ReinforceSurrogate,
    Surrogate,
    TruncateCorrection,
)
from rlvr.config.base import PlugIn
from rlvr.plugins import load_plugin


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInputs:
    """What a loss may look at, per predicted token."""

    trainer_logprobs: Float[Tensor, "B L"]
    old_logprobs: Float[Tensor, "B L"]
    behaviour_logprobs: Float[Tensor, "B L"]
    advantages: Float[Tensor, "B L"]
    loss_mask: Float[Tensor, "B L"]
    sequence: Int[Tensor, "B L"]
    """Index of the token's sample within the micro-batch, -1 on padding."""
    entropy: Float[Tensor, "B L"]
    """Entropy of the prediction in nats, without gradient."""


# --------------------------------------------------------------------------------------------------------- surrogates


def clip_surrogate(
    trainer_logprobs: Float[Tensor, "B L"],
    old_logprobs: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B L"],
    *,
    low: float,
    high: float,
    dual: float | None = None,
) -> Float[Tensor, "B L"]:
    """-min(w A, clip(w, 1 - low, 1 + high) A), w = pi_theta / pi_old (PPO, 1707.06347 eq. 7; DAPO, 2503.14476 eq. 8);
    with ``dual``, where A < 0, at most -dual A (dual clip, 1912.09729 eq. 5)."""
    ratio = torch.exp(trainer_logprobs - old_logprobs)
    objective = torch.minimum(ratio * advantages, ratio.clamp(1.0 - low, 1.0 + high) * advantages)
    if dual is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual * advantages), objective)
    return -objective


def is_clipped(
    ratio: Float[Tensor, "B L"],
    advantages: Float[Tensor, "B L"],
    *,
    low: float,
    high: float,
    dual: float | None = None,
) -> Bool[Tensor, "B L"]:
    """True where `clip_surrogate` has no gradient because a bound is at work."""
    clipped = ((advantages > 0) & (ratio > 1.0 + high)) | ((advantages < 0) & (ratio < 1.0 - low))
    if dual is not None:
        clipped |= (advantages < 0) & (ratio > dual)
    return clipped


def reinforce_surrogate(
    trainer_logprobs: Float[Tensor, "B L"], advantages: Float[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """-A log pi_theta: the plain policy gradient (Williams 1992); with A = 1 the negative log-likelihood."""
    return -advantages * trainer_logprobs


def surrogate_loss(tokens: TokenInputs, config: Surrogate) -> Float[Tensor, "B L"]:
    """The recipe's surrogate for each token, to be minimised."""
    match config:
        case ClipSurrogate():
            return clip_surrogate(
                tokens.trainer_logprobs,
                tokens.old_logprobs,
                tokens.advantages,
                low=config.low,
                high=config.high,
                dual=config.dual,
            )
        case ReinforceSurrogate():
            return reinforce_surrogate(tokens.trainer_logprobs, tokens.advantages)
        case PlugIn():
            loss = load_plugin(config.type, config.args, positional=1)(tokens)
            if loss.shape != tokens.trainer_logprobs.shape:
                raise ValueError(
                    f"surrogate {config.type!r} must return one loss a token, shape "
                    f"{tuple(tokens.trainer_logprobs.shape)}, got {tuple(loss.shape)}"
                )
            return loss
        case _:
            assert_never(config)


# --------------------------------------------------------------------------------------------------------- correction


def correction_weights(
    old_logprobs: Float[Tensor, "B L"], behaviour_logprobs: Float[Tensor, "B L"], config: Correction
) -> Float[Tensor, "B L"]:
    """What multiplies each token's loss because the engine sampled from mu, not pi_old; rho = pi_old / mu.

    ``truncate``: min(rho, cap) (truncated importance sampling); ``mask``: rho where low <= rho <= high, else 0
    (IcePop). No gradient flows through it, and the denominator of the loss stays that of all tokens.
    """
    rho = torch.exp(old_logprobs.detach() - behaviour_logprobs)
    match config:
        case NoCorrection():
            return torch.ones_like(rho)
        case TruncateCorrection():
            return rho.clamp(max=config.cap)
        case MaskCorrection():
            return torch.where((rho >= config.low) & (rho <= config.high), rho, torch.zeros_like(rho))
        case _:
            assert_never(config)


# ----------------------------------------------------------------------------------------------------------------- KL


def k3(trainer_logprobs: Float[Tensor, "B L"], ref_logprobs: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """pi_ref/pi - log(pi_ref/pi) - 1 >= 0, its mean over samples of pi is KL(pi || pi_ref) (GRPO, 2402.03300 eq. 4)."""
    log_ratio = ref_logprobs - trainer_logprobs
    return torch.exp(log_ratio) - log_ratio - 1.0


def token_loss(
    tokens: TokenInputs,
    ref_logprobs: Float[Tensor, "B L"] | None,
    *,
    surrogate: Surrogate,
    correction: Correction,
    kl: K3 | None,
) -> Float[Tensor, "B L"]:
    """correction * surrogate + coefficient * k3 for each token."""
    weights = correction_weights(tokens.old_logprobs, tokens.behaviour_logprobs, correction)
    loss = weights * surrogate_loss(tokens, surrogate)
    if kl is not None:
        if ref_logprobs is None:
            raise ValueError("algorithm.kl needs the reference's log-probabilities, and the micro-batch has none")
        loss = loss + kl.coefficient * k3(tokens.trainer_logprobs, ref_logprobs)
    return loss
