"""Samples a token from one random number, identically in both engines that run on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 256
"""Tokens whose probabilities are summed in float32: about the root of a vocabulary, so that both searches are short."""


def next_number(noise: torch.Generator) -> Float[Tensor, ""]:
    """The number of [0, 1) that a request's next token falls on: a function of its seed and of how many came before."""
    return torch.rand((), dtype=torch.float64, generator=noise)


def draw(logprobs: Float[Tensor, "B V"], numbers: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The token that each number falls on when probabilities are laid end to end; never one of probability 0.

    First the block of tokens that it falls on, then the token within it, as if the block began at 0 and ended at 1:
    the error of a block's sum in float32 changes the chances of its tokens by a part of 10^-7 each, those of rare ones
    no more than the others. (One sum over the vocabulary must be in float64, or the borders of rare tokens move by more
    than their width, and takes ten times as long.)
    """
    p = logprobs.exp()
    vocabulary = p.shape[1]
    whole = vocabulary - vocabulary % _BLOCK
    sums = torch.cat([p[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1), p[:, whole:].sum(-1, keepdim=True)], 1)
    block, within = _place(sums, numbers)
    tokens = (block * _BLOCK)[:, None] + torch.arange(_BLOCK, device=p.device)
    token, _ = _place(p.gather(1, tokens.clamp(max=vocabulary - 1)).where(tokens < vocabulary, 0.0), within)
    return (block * _BLOCK + token).clamp_(max=vocabulary - 1)


def _place(
    weights: Float[Tensor, "B N"], numbers: Float[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The one of N shares that each number of [0, 1) falls on, never an empty one, and where in it, from 0 to 1."""
    reached = weights.cumsum(-1, dtype=torch.float64)
    total = reached[:, -1:]
    below = torch.minimum(numbers[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(reached, below, right=True).clamp_(max=weights.shape[1] - 1)
    remaining = (reached.gather(1, place) - below) / weights.gather(1, place)
    return place.squeeze(1), (1 - remaining).squeeze(1).clamp_(0, 1)
