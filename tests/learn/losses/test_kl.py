"""KL estimates: literal values, gradients, and the theorems about their means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvr.learn.losses import CompletionTokens, k1, k2, k3, kl_estimate, kl_to_go
from rlvr.learn.losses.kl import Kind
from tests.learn import oracle
from tests.learn.losses.rows import completions, log, row, value_and_gradient

NEW, REF = log(0.2, 0.2, 0.2), log(0.4, 0.2, 0.1)  # pi_ref / pi = 2, 1, 1/2


def test_k1_k2_k3_by_hand() -> None:
    """-log r with slope 1; (log r)^2 / 2 with slope -log r; r - log r - 1 with slope 1 - r."""
    two = math.log(2)
    values, gradient = value_and_gradient(lambda lp: k1(lp, REF), NEW)
    assert (values, gradient) == (pytest.approx([-two, 0.0, two], abs=1e-15), [1.0, 1.0, 1.0])
    values, gradient = value_and_gradient(lambda lp: k2(lp, REF), NEW)
    assert values == pytest.approx([two**2 / 2, 0.0, two**2 / 2], abs=1e-15)
    assert gradient == pytest.approx([-two, 0.0, two], abs=1e-15)
    values, gradient = value_and_gradient(lambda lp: k3(lp, REF), NEW)
    assert values == pytest.approx([1 - two, 0.0, two - 0.5], abs=1e-15)
    assert gradient == pytest.approx([-1.0, 0.0, 0.5], abs=1e-15)


def test_k3_equals_the_oracle() -> None:
    rng = np.random.default_rng(1)
    new, ref = rng.normal(-2, 1, (2, 30)), rng.normal(-2, 1, (2, 30))
    values, gradient = value_and_gradient(lambda lp: k3(lp, torch.tensor(ref)), torch.tensor(new))
    np.testing.assert_allclose(values, oracle.k3(new, ref)[0].ravel(), atol=1e-13)
    np.testing.assert_allclose(gradient, oracle.k3(new, ref)[1].ravel(), atol=1e-13)
    assert min(values) >= 0.0


def expected_gradient(kind: Kind, corrected: bool, logits: Tensor, old: Tensor, ref: Tensor) -> Tensor:
    """Gradient by the logits of the estimate's mean over tokens drawn from `old`, which itself does not move."""
    logits = logits.clone().requires_grad_()
    logprobs = torch.log_softmax(logits, 0)
    estimate = kl_estimate(kind, logprobs[None], ref[None])[0]
    if corrected:
        estimate = torch.exp(logprobs - old) * estimate
    return torch.autograd.grad((old.exp() * estimate).sum(), logits)[0]


def test_which_estimate_has_the_gradient_of_which_divergence() -> None:
    """The table of `rlvr.learn.losses.kl`, on a distribution over five tokens: on policy the mean gradient of k1 is 0,
    of k2 that of KL(pi || pi_ref), of k3 that of KL(pi_ref || pi); weighted by pi / pi_old, k1 and k3 have that of
    KL(pi || pi_ref) on tokens from any pi_old."""
    generator = torch.Generator().manual_seed(0)
    logits, other, reference = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(3))
    ref, on, off = (torch.log_softmax(values, 0) for values in (reference, logits, other))
    moving = logits.clone().requires_grad_()
    pi = torch.log_softmax(moving, 0)
    (reverse,) = torch.autograd.grad((pi.exp() * (pi - ref)).sum(), moving, retain_graph=True)
    (forward,) = torch.autograd.grad((ref.exp() * (ref - pi)).sum(), moving)
    close = {"rtol": 0, "atol": 1e-13}
    torch.testing.assert_close(expected_gradient("k1", False, logits, on, ref), torch.zeros(5).double(), **close)
    torch.testing.assert_close(expected_gradient("k2", False, logits, on, ref), reverse, **close)
    torch.testing.assert_close(expected_gradient("k3", False, logits, on, ref), forward, **close)
    for kind in ("k1", "k3"):
        for old in (on, off):
            torch.testing.assert_close(expected_gradient(kind, True, logits, old, ref), reverse, **close)


def test_kl_to_go_sums_over_the_rest_of_the_completion() -> None:
    """Two completions in the first row (a masked token in the first), one in the second, padding at both ends."""
    who = CompletionTokens(
        torch.tensor([[1, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]], dtype=torch.float64),
        torch.tensor([[0, 0, 0, 1, 1, -1], [2, 2, 2, 2, -1, -1]]), 3,
    )  # fmt: skip
    kl = torch.tensor([[1.0, 100, 2, -4, 8, 100], [100, 16, 32, 64, 100, 100]], dtype=torch.float64)
    assert kl_to_go(kl, who).tolist() == [[3, 0, 2, 4, 8, 0], [0, 112, 96, 64, 0, 0]]


def test_kl_to_go_when_a_prompt_stands_once_before_two_completions() -> None:
    """The prompt's positions belong to the first sample and are not trained."""
    who = completions(0, 0, 0, 0, 1, 1, mask=(0, 0, 1, 1, 1, 1))
    assert kl_to_go(row(9, 9, 1, 2, 4, 8), who).tolist() == [[0, 0, 3, 2, 12, 8]]
