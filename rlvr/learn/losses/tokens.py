"""What a loss is given, and sums over the completions of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlvr.records import MicroBatch, StepStatistics


@dataclass(frozen=True, slots=True)
class CompletionTokens:
    """Which tokens of a micro-batch belong to which of its S samples, and which of them are trained."""

    loss_mask: Float[Tensor, "B L"]
    sequence: Int[Tensor, "B L"]
    """Index of the token's sample, -1 on padding."""
    count: int
    """S."""

    @classmethod
    def of(cls, batch: MicroBatch) -> CompletionTokens:
        """The samples of a micro-batch; one that only pads a rank has one sample of no trained token."""
        return cls(batch.loss_mask, batch.sequence, max(1, len(batch.index)))

    def sums(self, values: Float[Tensor, "B L"]) -> Float[Tensor, " S"]:
        """Sum over each sample's trained tokens, in float64, where the order of summing does not show."""
        sums = torch.zeros(self.count, dtype=torch.float64, device=values.device)
        return sums.index_add(0, self.sequence.clamp(min=0).flatten(), (values * self.loss_mask).double().flatten())

    def means(self, values: Float[Tensor, "B L"]) -> Float[Tensor, " S"]:
        """Mean over each sample's trained tokens; 0 where there are none."""
        return self.sums(values) / self.sums(torch.ones_like(self.loss_mask)).clamp(min=1.0)

    def on_tokens(self, values: Float[Tensor, " S"], dtype: torch.dtype) -> Float[Tensor, "B L"]:
        """Each sample's value at each of its tokens."""
        return values[self.sequence.clamp(min=0)].to(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInputs:
    """The inputs of a loss, per predicted token."""

    trainer_logprobs: Float[Tensor, "B L"]
    old_logprobs: Float[Tensor, "B L"]
    behaviour_logprobs: Float[Tensor, "B L"]
    log_ratio: Float[Tensor, "B L"]
    """log w at the recipe's level, with gradient (`rlvr.learn.losses.ratio`)."""
    advantages: Float[Tensor, "B L"]
    completions: CompletionTokens
    """The loss mask, and which token belongs to which sample."""
    entropy: Float[Tensor, "B L"]
    """Entropy of the prediction in nats, with gradient."""
    chosen: Float[Tensor, "B L"] | None = None
    """1.0 on the tokens that clip_cov or kl_cov treat apart."""
    statistics: StepStatistics | None = None
