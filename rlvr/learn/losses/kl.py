"""Estimates of KL(pi || pi_ref) from the sampled tokens (Schulman, "Approximating KL divergence", 2020).

With r = pi_ref / pi at a token sampled from pi. The mean of k1 and of k3 is KL(pi || pi_ref), that of k2 only to second
order. As losses they differ:

| estimate           | value           | d / d log pi      | mean of the gradient                       |
|--------------------|-----------------|-------------------|--------------------------------------------|
| k1                 | -log r          | 1                 | 0: no penalty (refused in the recipe)      |
| k2                 | (log r)^2 / 2   | -log r            | that of KL(pi || pi_ref)                   |
| k3                 | r - log r - 1   | 1 - r             | that of KL(pi_ref || pi)                   |
| w k1, w = pi/pi_old| -w log r        | w (1 - log r)     | that of KL(pi || pi_ref), also off policy  |
| w k3               | w (r - log r -1)| -w log r          | that of KL(pi || pi_ref), also off policy  |
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr.learn.losses.tokens import CompletionTokens

Kind = Literal["k1", "k2", "k3"]


def k1(trainer_logprobs: Float[Tensor, "B L"], ref_logprobs: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """log pi - log pi_ref."""
    return trainer_logprobs - ref_logprobs


def k2(trainer_logprobs: Float[Tensor, "B L"], ref_logprobs: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """(log pi - log pi_ref)^2 / 2 >= 0."""
    return (trainer_logprobs - ref_logprobs).square() / 2.0


def k3(trainer_logprobs: Float[Tensor, "B L"], ref_logprobs: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """pi_ref/pi - log(pi_ref/pi) - 1 >= 0, its mean over samples of pi is KL(pi || pi_ref) (GRPO, 2402.03300 eq. 4)."""
    log_ratio = ref_logprobs - trainer_logprobs
    return torch.exp(log_ratio) - log_ratio - 1.0


def kl_estimate(
    kind: Kind, trainer_logprobs: Float[Tensor, "B L"], ref_logprobs: Float[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """The estimate of that name."""
    match kind:
        case "k1":
            return k1(trainer_logprobs, ref_logprobs)
        case "k2":
            return k2(trainer_logprobs, ref_logprobs)
        case "k3":
            return k3(trainer_logprobs, ref_logprobs)
        case _:
            assert_never(kind)


def kl_to_go(kl: Float[Tensor, "B L"], completions: CompletionTokens) -> Float[Tensor, "B L"]:
    """For each trained token the sum of `kl` over it and the trained tokens after it in its completion: the
    undiscounted return of a reward of -kl a token, without its sign (REINFORCE++, 2501.03262; PPO for language,
    1909.08593).

    The trained positions of a sample stand in order and apart from those of others in the flattened micro-batch.
    """
    values = (kl * completions.loss_mask).double().flatten()
    before = values.cumsum(0) - values
    owner, place = completions.sequence.flatten(), torch.arange(values.numel(), device=kl.device)
    first = torch.full((completions.count,), values.numel() - 1, device=kl.device)
    first = first.scatter_reduce(0, owner.clamp(min=0), place.where(owner >= 0, values.numel() - 1), "amin")
    passed = before - before[first][owner.clamp(min=0)]
    whole = completions.on_tokens(completions.sums(kl), torch.float64)
    return ((whole - passed.view_as(whole)) * completions.loss_mask).to(kl.dtype)
