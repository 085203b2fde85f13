"""Micro-batches for the tests of losses: float64, literal numbers, several completions in a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from rlvr.config.losses import Surrogate
from rlvr.learn.losses import CompletionTokens, TokenInputs, log_ratios, surrogate_loss
from rlvr.records import MicroBatch


def log(*values: float) -> Tensor:
    """One row of log-probabilities."""
    return torch.tensor([[math.log(value) for value in values]], dtype=torch.float64)


def row(*values: float) -> Tensor:
    return torch.tensor([list(values)], dtype=torch.float64)


def value_and_gradient(loss: Callable[[Tensor], Tensor], logprobs: Tensor) -> tuple[list[float], list[float]]:
    """Values of a loss, and the gradient of their sum."""
    logprobs = logprobs.clone().requires_grad_()
    values = loss(logprobs)
    (gradient,) = torch.autograd.grad(values.sum(), logprobs)
    return values.detach().flatten().tolist(), gradient.flatten().tolist()


def completions(*owners: int, mask: tuple[int, ...] | None = None) -> CompletionTokens:
    """One row whose tokens belong to these samples."""
    sequence = torch.tensor([owners])
    loss_mask = (sequence >= 0).double() if mask is None else row(*mask)
    return CompletionTokens(loss_mask, sequence, max(owners) + 1)


def slot(**settings: Any) -> Surrogate:
    return TypeAdapter(Surrogate).validate_python(settings)


def loss_of(
    config: Surrogate, new: Tensor, old: Tensor, advantages: Tensor, who: CompletionTokens, level: str = "token",
    chosen: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The surrogate of each token."""
    return surrogate_loss(inputs(new, old, advantages, who, level, chosen), config)


def inputs(
    new: Tensor,
    old: Tensor,
    advantages: Tensor,
    who: CompletionTokens,
    level: str = "token",
    chosen: Tensor | None = None,
) -> TokenInputs:
    return TokenInputs(
        trainer_logprobs=new, old_logprobs=old, behaviour_logprobs=old, advantages=advantages, completions=who,
        log_ratio=log_ratios(new, old, who, level), entropy=torch.zeros_like(new), chosen=chosen,  # type: ignore[arg-type]  # a level
    )  # fmt: skip


def micro_batch(
    behaviour: Tensor, advantages: Tensor, who: CompletionTokens, *, weight: float = 1.0,
    positions: Tensor | None = None, **fields: Any,
) -> MicroBatch:  # fmt: skip
    """A micro-batch as packing makes it, all tokens of one weight; ids and targets do not matter to a loss."""
    zeros = torch.zeros_like(who.sequence)
    return MicroBatch(
        ids=zeros, targets=zeros, positions=zeros if positions is None else positions, sequence=who.sequence,
        loss_mask=who.loss_mask, advantages=advantages * who.loss_mask, behaviour_logprobs=behaviour * who.loss_mask,
        token_weight=weight * who.loss_mask, index=tuple(range(who.count)), **fields,
    )  # fmt: skip
