"""The arithmetic of an update, counted by hand."""

from __future__ import annotations

import pytest
import torch

from rlvr.learn.flops import peak_flops, update_flops
from tests.learn.conftest import tiny_llama

# per layer: q 32*32, k and v 16*32 each, o 32*32, three of 48*32, two norms; then the last norm
BODY = 2 * (32 * 32 * 2 + 16 * 32 * 2 + 3 * 48 * 32 + 2 * 32) + 32
HEAD = 97 * 32


def test_operations_by_hand(tied: bool) -> None:
    """6 a weight and position in the layers, 6 a weight of the head and trained token, none for looking up."""
    assert update_flops(tiny_llama(tied=tied), 100.0, 60.0) == 6 * (BODY * 100 + HEAD * 60)


def test_frozen_weights_need_no_gradient_of_their_own(tied: bool) -> None:
    """2 forward and 2 for the gradient that passes through."""
    model = tiny_llama(tied=tied).requires_grad_(False)
    assert update_flops(model, 100.0, 60.0) == 4 * (BODY * 100 + HEAD * 60)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_measured_where_no_table_knows_the_device(dtype: torch.dtype) -> None:
    assert 1e7 < peak_flops(torch.device("cpu"), dtype) < 1e15
