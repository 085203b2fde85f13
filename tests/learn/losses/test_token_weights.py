"""Sums over the completions of a micro-batch, by hand."""

from __future__ import annotations

import torch

from rlvr.learn.losses import CompletionTokens
from rlvr.learn.packing import empty_micro_batch
from tests.learn.losses.rows import completions, row


def test_sums_means_and_the_way_back() -> None:
    """Completions (1, 2), (4) and one whose only token is not trained; padding behind."""
    who = completions(0, 0, 1, 2, -1, mask=(1, 1, 1, 0, 0))
    values = row(1, 2, 4, 8, 16)
    assert who.sums(values).tolist() == [3, 4, 0]
    assert who.means(values).tolist() == [1.5, 4, 0]  # 0 where there is nothing to average
    assert who.on_tokens(who.means(values), torch.float64).tolist() == [[1.5, 1.5, 4, 0, 1.5]]


def test_a_micro_batch_that_only_pads_a_rank_has_one_sample_of_nothing() -> None:
    who = CompletionTokens.of(empty_micro_batch())
    assert who.count == 1
    assert who.sums(torch.ones(1, 1)).tolist() == [0]
