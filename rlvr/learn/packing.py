"""Packing: training samples into micro-batches under a limit of positions.

A sample of T tokens has T - 1 positions: position t reads token t and predicts token t + 1.
Uses the fewest micro-batches that fit the limit, balanced to about equal size.

``bucketed``: one sample a row, padded on the right, rows of like length together. Attention is causal, so nothing that
is trained can see the padding, and no attention mask is needed. ``packed``: samples one after another in one row, no
padding; positions restart at 0 with each sample, which is how transformers knows where one ends (`Policy` proves on
the loaded model that attention does not cross).

    two samples of tokens (a b c) and (d e), packed:     ids       a b d
                                                         targets   b c e
                                                         positions 0 1 0
                                                         sequence  0 0 1

``shared``: as packed, but tokens with which all the samples of a group begin, and of which none is trained, stand once
before them; a prompt is computed once for its completions (`rlvr.learn.shared_prompts`).

    two completions (p q b c) and (p q e) of the prompt (p q):  ids       p q b q     the prompt's last token stands
                                                                targets   . b c e     before each completion: it
                                                                positions 0 1 2 1     predicts another token each time
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, assert_never

import torch
from torch import Tensor

from rlvr.config.algorithm import Aggregation, PromptMean, SequenceMean, SequenceSum, TokenMean
from rlvr.records import MicroBatch, SharedPrompts, TrainingSample

Mode = Literal["shared", "bucketed", "packed"]
_Filled = TypeVar("_Filled")


def token_weights(samples: Sequence[TrainingSample], aggregation: Aggregation) -> list[float]:
    """For each sample what one of its trained tokens weighs in the loss of the whole batch.

    With N samples in P groups, n_i trained tokens in sample i and n_p in group p: token mean 1 / sum n_i, prompt mean
    1 / (P n_p), sequence mean 1 / (N n_i), sequence sum 1 / (N length). Samples without trained tokens count in N,
    and groups without any in P: masking a completion takes its tokens out, and does not make the others louder.
    """
    lengths = [sample.trained_tokens for sample in samples]
    match aggregation:
        case TokenMean():
            denominators = [float(sum(lengths))] * len(samples)
        case PromptMean():
            tokens: dict[int, int] = {}
            for sample, length in zip(samples, lengths, strict=True):
                tokens[sample.group] = tokens.get(sample.group, 0) + length
            denominators = [float(len(tokens) * tokens[sample.group]) for sample in samples]
        case SequenceMean():
            denominators = [float(len(samples) * length) for length in lengths]
        case SequenceSum():
            denominators = [float(len(samples) * aggregation.length)] * len(samples)
        case _:
            assert_never(aggregation)
    return [1.0 / d if length else 0.0 for d, length in zip(denominators, lengths, strict=True)]


def pack(
    samples: Sequence[TrainingSample], aggregation: Aggregation, limit_tokens: int, mode: Mode
) -> list[MicroBatch]:
    """Micro-batches of at most ``limit_tokens`` positions, padding included, for one rank.

    No sample is split: one that is longer than the limit gets a micro-batch of its own. Samples without trained
    tokens are not computed. Behaviour log-probabilities and advantages must be finite, else `ValueError`.
    """
    return pack_for_ranks(samples, aggregation, limit_tokens, mode, ranks=1)[0]


def pack_for_ranks(
    samples: Sequence[TrainingSample], aggregation: Aggregation, limit_tokens: int, mode: Mode, *, ranks: int
) -> list[list[MicroBatch]]:
    """As `pack`, one list for each rank, all of one length: ranks with fewer get micro-batches of weight zero."""
    _check(samples)
    weights = token_weights(samples, aggregation)
    # Longest first to the least loaded rank; ties by index, so that the same samples always make the same batches
    trained = [index for index, sample in enumerate(samples) if sample.trained_tokens]
    trained.sort(key=lambda i: (-len(samples[i].ids), i))
    units = list(_by_group(samples, trained).values()) if mode == "shared" else [[index] for index in trained]
    shards: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for unit in units:
        rank = loads.index(min(loads))
        shards[rank] += unit
        loads[rank] += sum(len(samples[index].ids) for index in unit)
    packed = [_micro_batches(samples, weights, shard, limit_tokens, mode) for shard in shards]
    most_batches = max(len(micro_batches) for micro_batches in packed)
    return [
        micro_batches + [empty_micro_batch() for _ in range(most_batches - len(micro_batches))]
        for micro_batches in packed
    ]


def _micro_batches(
    samples: Sequence[TrainingSample], weights: list[float], shard: list[int], limit: int, mode: Mode
) -> list[MicroBatch]:
    if mode == "shared":
        units = [(indices, _shared_length(samples, indices)) for indices in _by_group(samples, shard).values()]
        groups = _levelled(lambda tokens: _shared_rows(samples, units, tokens), limit)
        return [_shared_micro_batch(samples, weights, group) for group in groups]
    rows = _levelled(lambda tokens: _rows(samples, shard, tokens, mode), limit)
    return [_micro_batch(samples, weights, row) for row in rows]


def _levelled(fill: Callable[[int], list[_Filled]], limit: int) -> list[_Filled]:
    """As few micro-batches as `limit` makes, by the smallest limit that makes so few.

    A full micro-batch and a rest need the memory of the full one, and in the rest the products have few rows, at which
    processors are slow; two halves need less and are not.
    """
    best = fill(limit)
    too_small, enough = 0, limit  # what is known to make too many, and what is known to be enough
    while len(best) > 1 and enough - too_small > 1:  # a single one is what it is
        middle = (too_small + enough) // 2
        filled = fill(middle)
        if len(filled) <= len(best):
            best, enough = filled, middle
        else:
            too_small = middle
    return best


def empty_micro_batch() -> MicroBatch:
    """A micro-batch of weight zero: one position, nothing trained."""
    return _build([[_Span(0, 0, (0,), (0,), (0.0,), (0.0,), 0.0, 0.0)]], index=())


def _check(samples: Sequence[TrainingSample]) -> None:
    """Refuse non-finite numbers here, where their sample is still known, before they poison the whole update."""
    for index, sample in enumerate(samples):
        if not math.isfinite(sample.advantage):
            raise ValueError(f"sample {index} (group {sample.group}): advantage is {sample.advantage}, must be finite")
        if not all(map(math.isfinite, sample.behaviour_logprobs)):
            place = next(t for t, lp in enumerate(sample.behaviour_logprobs) if not math.isfinite(lp))
            raise ValueError(
                f"sample {index} (group {sample.group}): behaviour log-probability of token {place} is "
                f"{sample.behaviour_logprobs[place]}, must be finite"
            )


def _rows(samples: Sequence[TrainingSample], order: list[int], limit: int, mode: Mode) -> list[list[list[int]]]:
    """Micro-batches as rows of sample indices; ``order`` goes from long to short."""
    batches: list[list[list[int]]] = []
    if mode == "bucketed":
        for index in order:
            # The first row of a micro-batch is its longest
            if batches and (len(batches[-1]) + 1) * (len(samples[batches[-1][0][0]].ids) - 1) <= limit:
                batches[-1].append([index])
            else:
                batches.append([[index]])
        return batches
    room: list[int] = []
    for index in order:
        length = len(samples[index].ids) - 1
        # First fit, longest first: at most 11/9 of the fewest rows possible
        place = next((k for k, free in enumerate(room) if length <= free), None)
        if place is None:
            batches.append([[index]])
            room.append(limit - length)
        else:
            batches[place][0].append(index)
            room[place] -= length
    return batches


def _by_group(samples: Sequence[TrainingSample], order: Sequence[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for index in order:
        groups.setdefault(samples[index].group, []).append(index)
    return groups


def _shared_length(samples: Sequence[TrainingSample], indices: Sequence[int]) -> int:
    """Positions at the start of all these samples that read the same tokens and of which none is trained; none of a
    sample alone."""
    if len(indices) == 1:
        return 0
    group = [samples[index] for index in indices]
    shortest = min(len(sample.ids) for sample in group)
    for t in range(shortest - 1):
        if any(sample.ids[t] != group[0].ids[t] or sample.loss_mask[t + 1] for sample in group):
            return t
    return shortest - 1


def _shared_rows(
    samples: Sequence[TrainingSample], units: Sequence[tuple[list[int], int]], limit: int
) -> list[dict[int, list[int]]]:
    """Micro-batches as {first sample of a group in it: its samples in it}, from groups and their common positions; a
    group may go on in the next one."""
    batches: list[dict[int, list[int]]] = []
    room = 0
    for indices, shared in units:
        head: int | None = None
        for index in indices:
            own = len(samples[index].ids) - 1 - shared
            if head is None or own > room:
                head = index
                if not batches or own + shared > room:
                    batches.append({})
                    room = limit
                room -= shared
            batches[-1].setdefault(head, []).append(index)
            room -= own
    return batches


def _shared_micro_batch(
    samples: Sequence[TrainingSample], weights: list[float], groups: dict[int, list[int]]
) -> MicroBatch:
    """All in one row: each group's common positions, then what each of its samples adds."""
    index = tuple(i for indices in groups.values() for i in indices)
    longest = max(len(samples[i].ids) - 1 for i in index)
    rows: list[list[int]] = []
    prompts: list[list[int]] = []
    spans: list[_Span] = []
    owners: list[int] = []
    blocks: list[tuple[int, int, int, int, int]] = []
    for head, indices in groups.items():
        shared = _shared_length(samples, indices)
        start, first = len(owners), len(rows)
        prompt = list(range(start, start + shared))
        if shared:
            spans.append(_span(samples[head], weights[head], first, slice(0, shared)))
            row = len(index) + len(prompts)
            owners += range(row * longest, row * longest + shared)
            prompts.append(prompt)
        for i in indices:
            count = len(samples[i].ids) - 1
            spans.append(_span(samples[i], weights[i], len(rows), slice(shared, count)))
            own = list(range(len(owners), len(owners) + count - shared))
            owners += range(len(rows) * longest + shared, len(rows) * longest + count)
            rows.append(prompt + own)
        length = max(len(row) for row in rows[first:])
        if not shared and blocks and not blocks[-1][3]:
            before = blocks.pop()
            first, length = before[0], max(length, before[4])
        blocks.append((first, len(rows), start, shared, length))
    if prompts:
        blocks.append((len(rows), len(rows) + len(prompts), 0, 0, max(map(len, prompts))))
    padded = [row + [0] * (longest - len(row)) for row in rows + prompts]
    layout = SharedPrompts(torch.tensor(padded), torch.tensor(owners), torch.tensor(blocks))
    return replace(_build([spans], index), layout=layout)


@dataclass(frozen=True, slots=True)
class _Span:
    """One sample's positions within a row, or some of them: values are aligned to the predicted token."""

    sequence: int
    first: int
    """The first position."""
    ids: Sequence[int]
    targets: Sequence[int]
    loss_mask: Sequence[float]
    behaviour_logprobs: Sequence[float]
    advantage: float
    token_weight: float


def _micro_batch(samples: Sequence[TrainingSample], weights: list[float], rows: list[list[int]]) -> MicroBatch:
    """The tensors of one micro-batch; ``rows`` holds sample indices."""
    index = tuple(i for row in rows for i in row)
    sequence = {i: place for place, i in enumerate(index)}
    whole = slice(0, None)
    spans = [[_span(samples[i], weights[i], sequence[i], whole) for i in row] for row in rows]
    return _build(spans, index)


def _span(sample: TrainingSample, weight: float, sequence: int, positions: slice) -> _Span:
    """Some positions of a sample; position t reads token t and predicts token t + 1."""
    mask = sample.loss_mask[1:][positions]
    targets = [t if m else 0 for t, m in zip(sample.ids[1:][positions], mask, strict=True)]
    behaviour = sample.behaviour_logprobs[1:][positions]
    ids = sample.ids[:-1][positions]
    return _Span(sequence, positions.start, ids, targets, mask, behaviour, sample.advantage, weight)


def _build(rows: list[list[_Span]], index: tuple[int, ...]) -> MicroBatch:
    """Spans into padded tensors."""
    columns = max(sum(len(span.ids) for span in row) for row in rows)
    shape = (len(rows), columns)
    ids, targets = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    sequence = torch.full(shape, -1, dtype=torch.long)
    # Padding counts on from the sample, or a model would take it for a sample of its own
    positions = torch.arange(columns).repeat(len(rows), 1)
    mask, advantages, behaviour, weight = (torch.zeros(shape) for _ in range(4))

    def put(into: Tensor, row: int, piece: slice, values: Sequence[float]) -> None:
        into[row, piece] = torch.tensor(values, dtype=into.dtype)

    for row, spans in enumerate(rows):
        start = 0
        for span in spans:
            piece = slice(start, start + len(span.ids))
            put(ids, row, piece, span.ids)
            put(targets, row, piece, span.targets)
            put(mask, row, piece, span.loss_mask)
            put(behaviour, row, piece, span.behaviour_logprobs)
            sequence[row, piece] = span.sequence
            positions[row, start:] = span.first + torch.arange(columns - start)
            advantages[row, piece] = span.advantage
            weight[row, piece] = span.token_weight
            start = piece.stop
    return MicroBatch(
        ids=ids, positions=positions, sequence=sequence, targets=targets, loss_mask=mask,
        advantages=advantages * mask, behaviour_logprobs=behaviour * mask, token_weight=weight * mask, index=index,
    )  # fmt: skip
