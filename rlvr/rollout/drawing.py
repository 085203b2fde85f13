"""How a token is drawn, in the same way by both engines that run on a CPU: one random number for each token."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def next_number(noise: torch.Generator) -> Float[Tensor, ""]:
    """The number of [0, 1) that a request's next token falls on: a function of its seed and of how many came before."""
    return torch.rand((), dtype=torch.float64, generator=noise)


def draw(logprobs: Float[Tensor, "B V"], numbers: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token that each number falls on when probabilities are laid end to end; never one of probability 0.

    Sums are in float64: in float32 they would move the borders of rare tokens by more than their width.
    """
    reached = logprobs.exp().cumsum(-1, dtype=torch.float64)
    total = reached[:, -1:]
    below = torch.minimum(numbers[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(reached, below, right=True).squeeze(1).clamp_(max=logprobs.shape[1] - 1)
