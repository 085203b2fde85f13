"""Ratios at three levels: literal values and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from rlvr.learn.losses import log_ratios, ratio_of
from tests.learn.losses.rows import completions, log, row, value_and_gradient

# Two completions in one row, ratios 2, 1/2, 4 and 3; the masked token in the first one must not count
NEW, OLD = log(0.4, 0.9, 0.1, 0.4, 0.3, 0.5), log(0.2, 0.1, 0.2, 0.1, 0.1, 0.5)
WHO = completions(0, 0, 0, 0, 1, -1, mask=(1, 0, 1, 1, 1, 0))


def test_token_ratios() -> None:
    values, gradient = value_and_gradient(lambda lp: log_ratios(lp, OLD, WHO, "token"), NEW)
    assert [math.exp(values[i]) for i in (0, 2, 3, 4)] == pytest.approx([2.0, 0.5, 4.0, 3.0], abs=1e-14)
    assert gradient == [1.0] * 6


def test_the_geometric_mean_over_trained_tokens_and_its_gradient() -> None:
    """(2 * 1/2 * 4)^(1/3) = 4^(1/3) on each token of the first completion, 3 on the second's; each token's gradient is
    1, so that the three together have 3 * (1/3) d(sum)."""
    values, gradient = value_and_gradient(lambda lp: log_ratios(lp, OLD, WHO, "sequence_mean"), NEW)
    assert [math.exp(values[i]) for i in (0, 2, 3, 4)] == pytest.approx([4 ** (1 / 3)] * 3 + [3.0], abs=1e-14)
    assert [gradient[i] for i in (0, 2, 3, 4)] == [1.0] * 4


def test_the_product_over_trained_tokens_and_its_gradient() -> None:
    """2 * 1/2 * 4 = 4 and 3; every token of the completion moves every token's value: summed over the 4 positions of
    the first completion, the masked one included, the gradient is 4 for a trained token and 0 for the masked one."""
    values, gradient = value_and_gradient(lambda lp: log_ratios(lp, OLD, WHO, "sequence_product"), NEW)
    assert [math.exp(values[i]) for i in (0, 2, 3, 4)] == pytest.approx([4.0] * 3 + [3.0], abs=1e-13)
    trained, masked = [gradient[i] for i in (0, 2, 3)], [gradient[1], gradient[5]]
    assert masked == [0.0, 0.0]
    assert trained == [trained[0]] * 3
    weighted = value_and_gradient(lambda lp: log_ratios(lp, OLD, WHO, "sequence_product") * WHO.loss_mask / 3, NEW)
    assert [weighted[1][i] for i in (0, 2, 3)] == pytest.approx([1.0] * 3, abs=1e-15)


def test_equal_policies_have_a_ratio_of_exactly_one_at_every_level() -> None:
    new = NEW.float()
    for level in ("token", "sequence_mean", "sequence_product"):
        assert torch.equal(ratio_of(log_ratios(new, new.clone(), WHO, level)), torch.ones_like(new))


def test_gspos_gradient_is_that_of_the_mean_itself() -> None:
    """With one weight and one advantage a completion, the gradient of sum_t f(s) through GSPO-token's ratio equals that
    of n f(s) with s differentiated as the geometric mean."""
    who = completions(0, 0, 0)
    new, old = log(0.3, 0.5, 0.2), log(0.2, 0.6, 0.25)
    ours = value_and_gradient(lambda lp: ratio_of(log_ratios(lp, old, who, "sequence_mean")).square(), new)[1]
    direct = value_and_gradient(lambda lp: 3 * torch.exp((lp - old).mean()).square()[None], new)[1]
    assert ours == pytest.approx(direct, abs=1e-14)


def test_a_ratio_ends_at_a_log_ratio_of_twenty_and_has_no_gradient_there() -> None:
    values, gradient = value_and_gradient(ratio_of, row(25.0, -25.0, 1.0))
    assert values == pytest.approx([math.exp(20), math.exp(-20), math.e], rel=1e-14)
    assert gradient == pytest.approx([0.0, 0.0, math.e], rel=1e-14)
