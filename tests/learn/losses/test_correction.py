"""Corrections and masks: literal numbers at each level."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter

from rlvr.config.losses import Correction
from rlvr.learn.losses import correction_weights, k3, off_policy_keep
from tests.learn.losses.rows import completions, row


def correction(**settings: object) -> Correction:
    return TypeAdapter(Correction).validate_python(settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "none"}, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ({"type": "truncate", "cap": 2.0}, [0.25, 0.5, 1.0, 2.0, 2.0]),
        ({"type": "mask", "low": 0.5, "high": 5.0}, [0.0, 0.5, 1.0, 4.0, 0.0]),
        # completions (1/4, 1/2), (1, 4), (8): products 1/8, 4, 8; geometric means 8^-0.5, 2, 8
        ({"type": "truncate", "cap": 3.0, "level": "sequence_product"}, [0.125, 0.125, 3.0, 3.0, 3.0]),
        ({"type": "mask", "low": 0.1, "high": 5.0, "level": "sequence_product"}, [0.125, 0.125, 4.0, 4.0, 0.0]),
        ({"type": "truncate", "cap": 3.0, "level": "sequence_mean"}, [8**-0.5, 8**-0.5, 2.0, 2.0, 3.0]),
        ({"type": "mask", "low": 0.5, "high": 5.0, "level": "sequence_mean"}, [0.0, 0.0, 2.0, 2.0, 0.0]),
        # k3 = rho - log rho - 1: 0.636, 0.193 (mean 0.415); 0, 1.614 (0.807); 4.921
        ({"type": "reject", "max_k3": 0.5}, [1.0, 1.0, 0.0, 0.0, 0.0]),
        ({"type": "reject", "max_k3": 0.9}, [1.0, 1.0, 1.0, 1.0, 0.0]),
    ],
    ids=str,
)
def test_corrections(settings: dict[str, object], expected: list[float]) -> None:
    """rho = 1/4, 1/2, 1, 4, 8, and a masked token between that must not count."""
    who = completions(0, 0, 0, 1, 1, 2, mask=(1, 1, 0, 1, 1, 1))
    behaviour = -torch.log(row(0.25, 0.5, 1e9, 1.0, 4.0, 8.0))
    # exp(log 0.5) may fall a rounding below 0.5: the bound of the mask must not decide on that
    behaviour = behaviour + row(0, -1e-12, 0, 0, 0, 0)
    old = torch.zeros_like(behaviour).requires_grad_()
    weights = correction_weights(old, behaviour, who, correction(**settings))
    assert weights.flatten()[[0, 1, 3, 4, 5]].tolist() == pytest.approx(expected, abs=1e-9)
    assert not weights.requires_grad


def test_the_off_policy_mask_leaves_out_far_completions_with_a_negative_advantage() -> None:
    """Mean log(mu / pi_theta) = log 2 for the first and second completion, 0 for the third, -log 2 for the last, delta
    0.5: only the far one with A < 0 goes, masked tokens do not count, and nothing has a gradient."""
    who = completions(0, 0, 0, 1, 2, 3, mask=(1, 0, 1, 1, 1, 1))
    new = torch.log(row(0.1, 0.9, 0.2, 0.1, 0.2, 0.4)).requires_grad_()
    behaviour = torch.log(row(0.1, 1e-9, 0.8, 0.2, 0.2, 0.2))
    advantages = row(-1, -1, -1, 1, -1, -1)
    keep = off_policy_keep(new, behaviour, advantages, who, 0.5)
    assert keep.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert not keep.requires_grad
    assert off_policy_keep(new, behaviour, advantages, who, math.log(2) + 1e-9).tolist() == [[1] * 6]


def test_a_bound_itself_is_inside() -> None:
    """rho at the mask's low and at its high keeps its weight, a mean k3 at the bound keeps the completion, a distance
    at delta keeps its tokens, and so does any distance with an advantage of 0."""
    who, behaviour = completions(0, 1), row(-1.0, -3.0)
    old = row(-1.5, -2.0)
    low, high = torch.exp(old - behaviour)[0].tolist()
    mask = correction(type="mask", low=low, high=high)
    assert correction_weights(old, behaviour, who, mask).tolist() == [[low, high]]
    largest = float(k3(behaviour, old).max())
    assert correction_weights(old, behaviour, who, correction(type="reject", max_k3=largest)).tolist() == [[1, 1]]
    new = row(-1.5, -3.5)  # both half a nat below what was sampled
    assert off_policy_keep(new, behaviour, row(-1, -1), who, 0.5).tolist() == [[1, 1]]
    assert off_policy_keep(new, behaviour, row(0, -1), who, 0.4).tolist() == [[1, 0]]
