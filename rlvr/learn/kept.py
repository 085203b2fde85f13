"""The learner's log-probabilities of chosen samples, kept for people to look at beside the engine's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from rlvr.records import MicroBatch

Kept = dict[int, list[float]]
"""By the sample's index: the log-probability of each of its trained tokens, in order, in nats."""


def kept_of(batch: MicroBatch, logprobs: Float[Tensor, "B L"], wanted: Mapping[int, int]) -> Kept:
    """What a micro-batch says of the samples whose index in it is a key of `wanted`, under the index it maps to."""
    trained = batch.loss_mask > 0
    return {
        wanted[index]: logprobs[(batch.sequence == place) & trained].tolist()
        for place, index in enumerate(batch.index)
        if index in wanted
    }


def gather_kept(own: Kept) -> Kept:
    """On rank 0 what all ranks have kept, nothing on the others; all ranks call it."""
    if not dist.is_initialized():
        return own
    everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(own, everyone)
    return {index: values for of_rank in everyone or () for index, values in of_rank.items()}
