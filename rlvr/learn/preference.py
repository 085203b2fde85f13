"""Direct preference optimisation: pairs of a chosen and a rejected completion, trained by the same learner.

A pair is two training samples of one group: the chosen one has advantage 1, the rejected one -1, and their
behaviour log-probabilities are the reference's. Both are in one micro-batch, because the loss of a pair is not a sum
over tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rlvr.config.algorithm import SequenceSum
from rlvr.learn.meter import Meter
from rlvr.learn.objective import NegativeLogLikelihood, TokenBatch
from rlvr.learn.packing import Mode, empty_micro_batch, pack
from rlvr.records import MicroBatch, TrainingSample


def dpo_loss(margins: Float[Tensor, " pairs"], label_smoothing: float) -> Float[Tensor, " pairs"]:
    """-(1 - s) log sigmoid(m) - s log sigmoid(-m) for each pair's margin
    m = beta ((log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)), log-probabilities summed over the
    completion (DPO, 2305.18290 eq. 7; with label smoothing s, the chance that a label is wrong, conservative DPO)."""
    kept = functional.logsigmoid(margins)
    return -(1.0 - label_smoothing) * kept - label_smoothing * functional.logsigmoid(-margins)


class DirectPreference(NegativeLogLikelihood):
    """DPO as an objective over given texts; its samples are those of `pack_pairs_for_ranks`."""

    def __init__(self, beta: float, label_smoothing: float) -> None:
        self.beta, self.label_smoothing = beta, label_smoothing

    def pack(
        self, samples: Sequence[TrainingSample], limit_tokens: int, mode: Mode, *, ranks: int
    ) -> list[list[MicroBatch]]:
        """Both completions of a pair in one micro-batch."""
        return pack_pairs_for_ranks(samples, limit_tokens, mode, ranks=ranks)

    def loss(self, tokens: TokenBatch, meter: Meter) -> Tensor:
        """Sum over the pairs of this micro-batch of `dpo_loss` / pairs of the step."""
        batch, logprobs = tokens.batch, tokens.logprobs
        trained = batch.loss_mask > 0
        rewards = self.beta * (logprobs - batch.behaviour_logprobs)[trained]
        completions = torch.zeros(len(batch.index), dtype=logprobs.dtype, device=logprobs.device)
        completions = completions.index_add(0, batch.sequence[trained], rewards)
        # samples of even place are chosen, of odd place rejected; a micro-batch holds both of a pair, in any order
        row = {index: place for place, index in enumerate(batch.index)}
        chosen = completions[[row[index] for index in sorted(row) if index % 2 == 0]]
        rejected = completions[[row[index] for index in sorted(row) if index % 2 == 1]]
        margins = chosen - rejected
        meter.add("n", trained.sum())
        meter.add("entropy", (tokens.entropy * batch.loss_mask).sum())
        meter.add("pairs", float(margins.numel()))
        meter.add("dpo/margin", margins.sum())
        meter.add("dpo/accuracy", (margins > 0).sum())
        meter.add("dpo/chosen", chosen.sum())
        meter.add("dpo/rejected", rejected.sum())
        return batch.token_weight.max() * dpo_loss(margins, self.label_smoothing).sum()


def pack_pairs_for_ranks(
    samples: Sequence[TrainingSample], limit_tokens: int, mode: Mode, *, ranks: int
) -> list[list[MicroBatch]]:
    """As `rlvr.learn.packing.pack_for_ranks` for pairs, samples 2i and 2i + 1, that stay together; each trained token
    weighs 1 / pairs. A pair longer than the limit gets a micro-batch of its own.

    Raises `ValueError` for samples that are no pairs, or of which one has no trained token.
    """
    if len(samples) % 2 or any(samples[i].group != samples[i + 1].group for i in range(0, len(samples), 2)):
        raise ValueError("samples of preferences come in pairs of one group, the chosen one first")
    if not all(sample.trained_tokens for sample in samples):
        raise ValueError("each completion of a pair needs at least one trained token")
    shards: list[list[list[int]]] = [[] for _ in range(ranks)]
    loads = [0] * ranks

    def positions(chunk: Sequence[int]) -> int:
        lengths = [len(samples[index].ids) - 1 for index in chunk]
        return len(lengths) * max(lengths) if mode == "bucketed" else sum(lengths)

    pairs = [[index, index + 1] for index in range(0, len(samples), 2)]
    for pair in sorted(pairs, key=lambda pair: (-positions(pair), pair[0])):
        rank = loads.index(min(loads))
        loads[rank] += positions(pair)
        place = next((chunk for chunk in shards[rank] if positions([*chunk, *pair]) <= limit_tokens), None)
        if place is None:
            shards[rank].append(list(pair))
        else:
            place += pair

    def micro_batch(chunk: list[int]) -> MicroBatch:
        # the limit is where it is for this chunk, so that it becomes one micro-batch under every mode
        (batch,) = pack([samples[i] for i in chunk], SequenceSum(type="sequence_sum", length=1), positions(chunk), mode)
        index = tuple(chunk[place] for place in batch.index)
        return dataclasses.replace(batch, token_weight=batch.loss_mask / len(pairs), index=index)

    packed = [[micro_batch(chunk) for chunk in shard] for shard in shards]
    longest = max(len(batches) for batches in packed)
    return [batches + [empty_micro_batch() for _ in range(longest - len(batches))] for batches in packed]
