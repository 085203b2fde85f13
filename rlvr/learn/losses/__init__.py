"""Losses per token, each a function that reads like its formula.

Notation: ``trainer_logprobs`` log pi_theta (the only one with a gradient), ``old_logprobs`` log pi_old, what the ratio
w = pi_theta / pi_old is against, ``behaviour_logprobs`` log mu, what the engine sampled from, ``ref_logprobs``
log pi_ref. All are [B L], aligned to the predicted token. A step's loss is the plain sum of
``token_weight * per-token loss``, with weights over the global batch (`rlvr.learn.packing.token_weights`), so that
neither micro-batches nor ranks can change it. What a loss needs of a whole completion it sums itself: no completion is
split over micro-batches. What it needs of a whole optimiser step is computed before (`statistics`).

A plug-in surrogate is ``f(tokens: TokenInputs, **args) -> Tensor[B L]``; masked tokens may hold anything, their weight
is 0, but must be finite.
"""

from rlvr.learn.losses.correction import correction_weights, off_policy_keep
from rlvr.learn.losses.kl import k1, k2, k3, kl_estimate, kl_to_go
from rlvr.learn.losses.ratio import LIMIT, log_ratios, ratio_of
from rlvr.learn.losses.statistics import covariant, step_statistics, top_entropy_keep
from rlvr.learn.losses.surrogates import bounded, reinforce_surrogate, surrogate_loss
from rlvr.learn.losses.tokens import CompletionTokens, TokenInputs

__all__ = [
    "LIMIT",
    "CompletionTokens",
    "TokenInputs",
    "bounded",
    "correction_weights",
    "covariant",
    "k1",
    "k2",
    "k3",
    "kl_estimate",
    "kl_to_go",
    "log_ratios",
    "off_policy_keep",
    "ratio_of",
    "reinforce_surrogate",
    "step_statistics",
    "surrogate_loss",
    "top_entropy_keep",
]
