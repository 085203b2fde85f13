"""Probability ratios w = pi_theta / pi_old at the three levels, as logarithms.

| level            | log w of token t of completion y                  | gradient                  |
|------------------|---------------------------------------------------|---------------------------|
| token            | log pi_theta(y_t) - log pi_old(y_t)               | d log pi_theta(y_t)       |
| sequence_mean    | (1/n) sum_s [log pi_theta(y_s) - log pi_old(y_s)] | d log pi_theta(y_t)       |
| sequence_product | sum_s [log pi_theta(y_s) - log pi_old(y_s)]       | sum_s d log pi_theta(y_s) |

s runs over the n trained tokens of the completion. The gradient of sequence_mean is GSPO-token's (2507.18071: its value
times pi / sg(pi)): summed over the tokens of a completion with one weight and one advantage it is that of the mean
itself, n * (1/n) sum_s d log pi_theta(y_s), and where advantages differ by token each token gets its own.
"""

from __future__ import annotations

from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr.config.losses import Level
from rlvr.learn.losses.tokens import CompletionTokens

LIMIT = 20.0
"""Ratios are computed from log ratios within +-20: the product over a long completion leaves float32 otherwise."""


def log_ratios(
    trainer_logprobs: Float[Tensor, "B L"],
    old_logprobs: Float[Tensor, "B L"],
    completions: CompletionTokens,
    level: Level,
) -> Float[Tensor, "B L"]:
    """log w of each token at a level; see the module's table."""
    per_token = trainer_logprobs - old_logprobs
    match level:
        case "token":
            return per_token
        case "sequence_mean":
            value = completions.on_tokens(completions.means(per_token), per_token.dtype)
            return value.detach() + (trainer_logprobs - trainer_logprobs.detach())
        case "sequence_product":
            return completions.on_tokens(completions.sums(per_token), per_token.dtype)
        case _:
            assert_never(level)


def ratio_of(log_ratio: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """w = exp(log w), with log w within +-`LIMIT`, beyond which it has no gradient; ``policy/ratio_limited`` counts."""
    return torch.exp(log_ratio.clamp(-LIMIT, LIMIT))
