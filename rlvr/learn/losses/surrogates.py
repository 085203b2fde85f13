"""Surrogate losses: each token's loss from its ratio w (`rlvr.learn.losses.ratio`) and its advantage A."""

from __future__ import annotations

from typing import assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlvr.config.base import PlugIn
from rlvr.config.losses import (
    CispoSurrogate,
    ClipCovSurrogate,
    ClipSurrogate,
    DppoSurrogate,
    GmpoSurrogate,
    KlCovSurrogate,
    ReinforceSurrogate,
    SapoSurrogate,
    SquaredSurrogate,
    Surrogate,
    VespoSurrogate,
)
from rlvr.learn.losses.ratio import ratio_of
from rlvr.learn.losses.tokens import CompletionTokens, TokenInputs
from rlvr.plugins import load_plugin

Values = Float[Tensor, "B L"]
Where = Bool[Tensor, "B L"]


def clip_surrogate(ratio: Values, advantages: Values, *, low: float, high: float, dual: float | None = None) -> Values:
    """-min(w A, clip(w, 1 - low, 1 + high) A) (PPO, 1707.06347 eq. 7; DAPO, 2503.14476 eq. 8; with the geometric mean
    of a completion's ratios GSPO, 2507.18071 eq. 5); with ``dual``, where A < 0, at most -dual A (dual clip, 1912.09729
    eq. 5)."""
    objective = torch.minimum(ratio * advantages, ratio.clamp(1.0 - low, 1.0 + high) * advantages)
    if dual is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual * advantages), objective)
    return -objective


def reinforce_surrogate(trainer_logprobs: Values, advantages: Values) -> Values:
    """-A log pi_theta: the plain policy gradient (Williams 1992); with A = 1 the negative log-likelihood."""
    return -advantages * trainer_logprobs


def cispo_surrogate(
    trainer_logprobs: Values, ratio: Values, advantages: Values, *, low: float | None, high: float
) -> Values:
    """-sg(clip(w, 1 - low, 1 + high)) A log pi_theta: no token loses its gradient (MiniMax-M1, 2506.13585 eq. 4)."""
    return -ratio.detach().clamp(None if low is None else 1.0 - low, 1.0 + high) * advantages * trainer_logprobs


def sapo_surrogate(ratio: Values, advantages: Values, *, tau_positive: float, tau_negative: float) -> Values:
    """-A (4 / tau) sigmoid(tau (w - 1)), tau by the sign of A; at w = 1 its gradient is -w A's (SAPO, 2511.20347)."""
    tau = _choose(advantages > 0, tau_positive, tau_negative, ratio)
    return -advantages * 4.0 / tau * torch.sigmoid(tau * (ratio - 1.0))


def gmpo_surrogate(
    log_ratio: Values, advantages: Values, completions: CompletionTokens, *, low: float, high: float
) -> Values:
    """-A exp((1/n) sum_t m_t), m_t = s min(s log w_t, s clip(log w_t, -low, high)), s = sgn A (GMPO, 2507.20673)."""
    sign = torch.sign(advantages)
    bound = sign * torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-low, high))
    return -advantages * ratio_of(completions.on_tokens(completions.means(bound), log_ratio.dtype))


def vespo_surrogate(
    trainer_logprobs: Values, log_ratio: Values, advantages: Values,
    *, k_positive: float, lambda_positive: float, k_negative: float, lambda_negative: float,
) -> Values:  # fmt: skip
    """-sg(phi(W)) A log pi_theta, phi(W) = W^k exp(lambda (1 - W)), both by the sign of A (VESPO, 2602.10693)."""
    log_weight, positive = log_ratio.detach(), advantages >= 0
    k = _choose(positive, k_positive, k_negative, log_ratio)
    scale = _choose(positive, lambda_positive, lambda_negative, log_ratio)
    phi = torch.exp(k * log_weight + scale * (1.0 - ratio_of(log_weight)))
    return -phi * advantages * trainer_logprobs


def dppo_surrogate(ratio: Values, advantages: Values, outside: Where) -> Values:
    """-A w where the token is not `outside` its trust region, else 0 (DPPO, 2602.04879)."""
    return torch.where(outside, torch.zeros_like(ratio), -advantages * ratio)


def outside_trust_region(
    trainer_logprobs: Values, old_logprobs: Values, advantages: Values, *, low: float, high: float
) -> tuple[Where, Where]:
    """A < 0 and pi_theta - pi_old < -low; A > 0 and pi_theta - pi_old > high (DPPO's binary total variation)."""
    moved = torch.exp(trainer_logprobs.detach()) - torch.exp(old_logprobs)
    return (advantages < 0) & (moved < -low), (advantages > 0) & (moved > high)


def kl_cov_surrogate(ratio: Values, log_ratio: Values, advantages: Values, chosen: Values, factor: float) -> Values:
    """-w A + factor |log w| on the chosen tokens, -w A on the others (KL-Cov, 2505.22617)."""
    return -ratio * advantages + factor * chosen * log_ratio.abs()


def squared_surrogate(log_ratio: Values, advantages: Values, *, tau: float) -> Values:
    """(tau log W - A)^2 / (2 tau), W the completion's ratio; its gradient is -[A d log pi - (tau / 2) d (log W)^2],
    Kimi k1.5's (2501.12599 eq. 3), and that of OAPL's loss (2602.19362) divided by 2 tau."""
    return (tau * log_ratio - advantages).square() / (2.0 * tau)


def surrogate_loss(tokens: TokenInputs, config: Surrogate) -> Values:
    """The recipe's surrogate for each token, to be minimised."""
    advantages, logprobs, log_ratio = tokens.advantages, tokens.trainer_logprobs, tokens.log_ratio
    ratio = ratio_of(log_ratio)
    match config:
        case ClipSurrogate():
            return clip_surrogate(ratio, advantages, low=config.low, high=config.high, dual=config.dual)
        case ReinforceSurrogate():
            return reinforce_surrogate(logprobs, advantages)
        case CispoSurrogate():
            return cispo_surrogate(logprobs, ratio, advantages, low=config.low, high=config.high)
        case SapoSurrogate() | VespoSurrogate():
            settings = config.model_dump(exclude={"type"})
            if isinstance(config, SapoSurrogate):
                return sapo_surrogate(ratio, advantages, **settings)
            return vespo_surrogate(logprobs, log_ratio, advantages, **settings)
        case GmpoSurrogate():
            return gmpo_surrogate(log_ratio, advantages, tokens.completions, low=config.low, high=config.high)
        case DppoSurrogate():
            below, above = bounded(tokens, config)
            return dppo_surrogate(ratio, advantages, below | above)
        case ClipCovSurrogate():
            loss = clip_surrogate(ratio, advantages, low=config.low, high=config.high)
            return loss * (1.0 - _chosen(tokens))
        case KlCovSurrogate():
            return kl_cov_surrogate(ratio, log_ratio, advantages, _chosen(tokens), config.coefficient)
        case SquaredSurrogate():
            return squared_surrogate(log_ratio, advantages, tau=config.tau)
        case PlugIn():
            return _plug_in(tokens, config)
        case _:
            assert_never(config)


@torch.no_grad()
def bounded(tokens: TokenInputs, config: Surrogate) -> tuple[Where, Where]:
    """Where a lower and where an upper bound of the surrogate is at work: for cispo the weight is bounded, for the
    others the token (with gmpo its part in the completion's gradient) has no gradient."""
    advantages, log_ratio = tokens.advantages, tokens.log_ratio
    ratio = ratio_of(log_ratio)
    nowhere = torch.zeros_like(ratio, dtype=torch.bool)
    match config:
        case ClipSurrogate() | ClipCovSurrogate():
            above = (advantages > 0) & (ratio > 1.0 + config.high)
            if isinstance(config, ClipSurrogate) and config.dual is not None:
                above |= (advantages < 0) & (ratio > config.dual)
            return (advantages < 0) & (ratio < 1.0 - config.low), above
        case CispoSurrogate():
            return nowhere if config.low is None else ratio < 1.0 - config.low, ratio > 1.0 + config.high
        case GmpoSurrogate():
            return (advantages < 0) & (log_ratio < -config.low), (advantages > 0) & (log_ratio > config.high)
        case DppoSurrogate():
            return outside_trust_region(
                tokens.trainer_logprobs, tokens.old_logprobs, advantages, low=config.low, high=config.high
            )
        case _:
            return nowhere, nowhere


def _choose(where: Where, yes: float, no: float, like: Values) -> Values:
    """One of two numbers for each token, in the type of `like`: torch.where alone would make them float32."""
    return torch.where(where, torch.full_like(like, yes), torch.full_like(like, no))


def _chosen(tokens: TokenInputs) -> Values:
    if tokens.chosen is None:
        raise ValueError(
            "algorithm.surrogate needs the covariances of its optimiser step, and the micro-batch has none"
        )
    return tokens.chosen


def _plug_in(tokens: TokenInputs, config: PlugIn) -> Values:
    loss: Tensor = load_plugin(config.type, config.args, positional=1)(tokens)
    if loss.shape != tokens.trainer_logprobs.shape:
        raise ValueError(
            f"surrogate {config.type!r} must return one loss a token, shape {tuple(tokens.trainer_logprobs.shape)}, "
            f"got {tuple(loss.shape)}"
        )
    return loss
