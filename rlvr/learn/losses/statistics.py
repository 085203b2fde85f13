"""Statistics over all tokens of an optimiser step, against which a loss decides which tokens to select.

Quantiles and covariances of a micro-batch would change with the packing. Here they are taken once, over all
micro-batches and ranks of an optimiser step, under the policy before the first update on the batch; tokens are
compared with thresholds, so only a few numbers are communicated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from rlvr.config.algorithm import Algorithm
from rlvr.config.losses import ClipCovSurrogate, KlCovSurrogate
from rlvr.records import MicroBatch, StepStatistics


@torch.no_grad()
def step_statistics(batches: Sequence[MicroBatch], algorithm: Algorithm, update: int) -> StepStatistics:
    """The numbers that the recipe's slots need, over all ranks; every rank calls it, with its micro-batches of one
    optimiser step, ``update`` being the number of that step.

    Covariance of a token (2505.22617): (log pi_old - mean log pi_old) (A - mean A), means over the step's N
    trained tokens. Chosen are the max(1, share N) of the highest covariance (kl_cov), or as many of those within its
    bounds, by a draw that depends on the update, the sample and the position alone (clip_cov); kept by `top_entropy`
    the ceil(share N) of the highest entropy. Ties are all chosen.
    """
    advantages = _trained(batches, [batch.advantages for batch in batches]).double()
    count = advantages.numel()
    statistics = StepStatistics(positive_tokens=float((advantages > 0).sum()))
    if algorithm.top_entropy < 1.0 and count:
        entropy = _trained(batches, [_there(batch.old_entropy) for batch in batches])
        statistics = replace(statistics, entropy_threshold=_greatest(entropy, math.ceil(algorithm.top_entropy * count)))
    surrogate = algorithm.surrogate
    if not isinstance(surrogate, ClipCovSurrogate | KlCovSurrogate) or not count:
        return statistics
    logprobs = _trained(batches, [_there(batch.old_logprobs) for batch in batches]).double()
    statistics = replace(statistics, mean_logprob=float(logprobs.mean()), mean_advantage=float(advantages.mean()))
    covariance = (logprobs - logprobs.mean()) * (advantages - advantages.mean())
    size = max(1, int(surrogate.share * count))
    if isinstance(surrogate, KlCovSurrogate):
        return replace(statistics, covariance_threshold=_greatest(covariance, size))
    draws = _trained(batches, [_draws(batch, update) for batch in batches])
    draws = draws[(covariance > surrogate.cov_low) & (covariance < surrogate.cov_high)]
    last = int(draws.sort().values[:size][-1]) if draws.numel() else -1
    return replace(statistics, draw=update, draw_threshold=last)


def covariant(batch: MicroBatch, config: ClipCovSurrogate | KlCovSurrogate) -> Float[Tensor, "B L"]:
    """1.0 on the tokens that the surrogate treats apart, by the step's statistics."""
    numbers = batch.statistics
    if numbers is None:
        raise ValueError(
            "algorithm.surrogate needs the covariances of its optimiser step, and the micro-batch has none"
        )
    logprobs, advantages = _there(batch.old_logprobs).double(), batch.advantages.double()
    covariance = (logprobs - numbers.mean_logprob) * (advantages - numbers.mean_advantage)
    chosen: Bool[Tensor, "B L"]
    if isinstance(config, KlCovSurrogate):
        chosen = covariance >= numbers.covariance_threshold
    else:
        inside = (covariance > config.cov_low) & (covariance < config.cov_high)
        chosen = inside & (_draws(batch, numbers.draw) <= numbers.draw_threshold)
    return chosen.to(batch.loss_mask.dtype) * batch.loss_mask


def top_entropy_keep(batch: MicroBatch) -> Float[Tensor, "B L"]:
    """1.0 on the tokens among the step's highest entropies (2506.01939; TRL's top_entropy_quantile), 0.0 elsewhere."""
    if batch.statistics is None:
        raise ValueError(
            "algorithm.top_entropy needs the entropies of its optimiser step, and the micro-batch has none"
        )
    keep = _there(batch.old_entropy) >= batch.statistics.entropy_threshold
    return keep.to(batch.loss_mask.dtype) * batch.loss_mask


def _there(values: Tensor | None) -> Tensor:
    if values is None:
        raise ValueError("the micro-batch lacks what the policy said before the first update")
    return values


def _greatest(values: Float[Tensor, " N"], size: int) -> float:
    """The least of the `size` greatest."""
    return float(values.topk(min(size, values.numel())).values[-1])


def _trained(batches: Sequence[MicroBatch], values: Sequence[Tensor]) -> Num[Tensor, " N"]:
    """The values of all trained tokens, of all ranks, in one row."""
    own = torch.cat([value[batch.loss_mask.bool()] for batch, value in zip(batches, values, strict=True)])
    if not dist.is_initialized():
        return own
    parts: list[Tensor | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own.cpu())
    return torch.cat([part for part in parts if part is not None]).to(own.device)


def _draws(batch: MicroBatch, update: int) -> Int[Tensor, "B L"]:
    """A number below 2^31 for each token, a hash of the update, the sample's place in the step and the position: the
    same in any packing, without a random state."""
    index = torch.tensor(batch.index or (0,), device=batch.positions.device)[batch.sequence.clamp(min=0)]
    return _mix(_mix(_mix(torch.full_like(index, update)) ^ index) ^ batch.positions)


def _mix(values: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """A bijection of the numbers below 2^31 that scatters neighbours (two rounds of xor-shift and multiply)."""
    for factor in (739982445, 1274126177):
        values = ((values ^ (values >> 15)) * factor + 12345) & 0x7FFFFFFF
    return values ^ (values >> 13)
