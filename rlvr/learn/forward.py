"""The policy's forward pass, over a micro-batch and over plain sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr.config.algorithm import TokenMean
from rlvr.config.recipe import LearnerConfig
from rlvr.learn.packing import pack
from rlvr.records import MicroBatch, TrainingSample


def forward(module: Any, batch: MicroBatch, temperature: float) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Log-probabilities and entropies of a micro-batch; ``module`` is a `Policy`, or one as its backend wraps it."""
    result: tuple[Tensor, Tensor] = module(
        batch.ids, batch.positions, batch.targets, batch.loss_mask, temperature, batch.layout
    )
    return result


@torch.no_grad()
def sequence_logprobs(
    module: Any, sequences: Sequence[Sequence[int]], config: LearnerConfig, device: torch.device
) -> list[list[float]]:
    """Log-probability of each token given those before it, temperature 1; the first of a sequence is 0.0.

    Collective where parameters are sharded: every rank passes the same sequences.
    """
    samples = [
        TrainingSample(
            ids=tuple(ids), loss_mask=(0, *[1] * len(ids))[: len(ids)], behaviour_logprobs=(0.0,) * len(ids),
            advantage=0.0, group=index,
        )
        for index, ids in enumerate(sequences)
    ]  # fmt: skip
    logprobs = [[0.0] * len(ids) for ids in sequences]
    for batch in pack(samples, TokenMean(), config.micro_batch_tokens, config.packing):
        there = batch.to(device)
        packed, _ = forward(module, there, 1.0)
        for place, index in enumerate(batch.index):
            logprobs[index][1:] = packed[there.sequence == place].tolist()
    return logprobs
