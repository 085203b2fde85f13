"""The auxiliary loss on given completions (`algorithm.given_text`): which rows each step trains on, and how."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from rlvr.learn.meter import Meter
from rlvr.learn.objective import NegativeLogLikelihood, TokenBatch
from rlvr.records import TrainingSample


def rows_of(count: int, size: int, step: int, seed: int) -> list[int]:
    """The ``size`` row numbers of batch ``step`` (from 0) out of ``count`` rows: without replacement within an epoch,
    each epoch in a new order, with no state but the number of the batch."""
    chosen: list[int] = []
    while len(chosen) < size:
        epoch, start = divmod(step * size + len(chosen), count)
        chosen += _order(count, epoch, seed)[start : start + size - len(chosen)]
    return chosen


@lru_cache(maxsize=2)
def _order(count: int, epoch: int, seed: int) -> list[int]:
    """The rows of an epoch, shuffled; kept, for shuffling all rows takes longer than a small model's step."""
    order = list(range(count))
    random.Random(f"{seed}|{epoch}").shuffle(order)
    return order


class GivenTexts:
    """The rows of ``algorithm.given_text`` on rank 0; the number of an optimiser step decides which it gets."""

    def __init__(self, samples: Sequence[TrainingSample], rows: int, seed: int) -> None:
        if not samples:
            raise ValueError("algorithm.given_text: the file has no rows")
        self._samples, self._rows, self._seed = samples, rows, seed

    def of_update(self, update: int) -> list[TrainingSample]:
        """The rows of optimiser step ``update``, the first of the run being 0."""
        return [self._samples[row] for row in rows_of(len(self._samples), self._rows, update, self._seed)]

    def fingerprint(self) -> str:
        """Changes with the rows, their order, their number a step or the seed."""
        shown = repr(([sample.ids for sample in self._samples], self._rows, self._seed))
        return hashlib.blake2b(shown.encode(), digest_size=16).hexdigest()


class TextLikelihood(NegativeLogLikelihood):
    """``coefficient`` times the mean of -log pi_theta over the given tokens of an optimiser step, at temperature 1."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def loss(self, tokens: TokenBatch, meter: Meter) -> Tensor:
        """This micro-batch's part."""
        batch, logprobs = tokens.batch, tokens.logprobs
        meter.add("text_n", batch.loss_mask.sum())
        meter.add("text_nll", -(logprobs * batch.loss_mask).sum())
        return -self.coefficient * (batch.token_weight * logprobs).sum()
