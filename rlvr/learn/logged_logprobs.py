"""The learner's log-probabilities of selected samples, logged so that people can compare them with the engine's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from rlvr.records import MicroBatch

LoggedLogprobs = dict[int, list[float]]
"""By the sample's index: the log-probability of each of its trained tokens, in order, in nats."""


def logged_logprobs(batch: MicroBatch, logprobs: Float[Tensor, "B L"], wanted: Mapping[int, int]) -> LoggedLogprobs:
    """Those of the samples of a micro-batch whose index is a key of `wanted`, under the index it maps to."""
    trained = batch.loss_mask > 0
    return {
        wanted[index]: logprobs[(batch.sequence == place) & trained].tolist()
        for place, index in enumerate(batch.index)
        if index in wanted
    }


def gather_logged_logprobs(own: LoggedLogprobs) -> LoggedLogprobs:
    """Gather them from all ranks on rank 0; empty on the others. Collective."""
    if not dist.is_initialized():
        return own
    everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(own, everyone)
    return {index: values for of_rank in everyone or () for index, values in of_rank.items()}
