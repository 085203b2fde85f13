"""Losses: literal numbers on every branch in float64, and gradients against the NumPy oracle."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from rlvr.config.algorithm import K3, ClipSurrogate, Correction, MaskCorrection, NoCorrection, Surrogate
from rlvr.learn.losses import (
    TokenInputs,
    clip_surrogate,
    correction_weights,
    is_clipped,
    k3,
    reinforce_surrogate,
    surrogate_loss,
    token_loss,
)
from tests.learn import oracle


def log(*values: float) -> Tensor:
    """One row of log-probabilities."""
    return torch.tensor([[math.log(value) for value in values]], dtype=torch.float64)


def row(*values: float) -> Tensor:
    return torch.tensor([list(values)], dtype=torch.float64)


def value_and_gradient(loss: Callable[[Tensor], Tensor], logprobs: Tensor) -> tuple[list[float], list[float]]:
    logprobs = logprobs.clone().requires_grad_()
    values = loss(logprobs)
    (gradient,) = torch.autograd.grad(values.sum(), logprobs)
    return values.detach().flatten().tolist(), gradient.flatten().tolist()


# pi_theta / pi_old of the six tokens: 1, 1.25, 1.5, 1, 0.75, 0.5 with low 0.2, high 0.28
NEW, OLD = log(0.2, 0.25, 0.3, 0.2, 0.15, 0.1), log(*[0.2] * 6)


def test_clip_with_a_positive_advantage() -> None:
    """-min(w A, clip(w, 0.8, 1.28) A), A = 2: only ratios above 1.28 are bounded, ratios below 0.8 are not."""
    values, gradient = value_and_gradient(lambda lp: clip_surrogate(lp, OLD, row(*[2.0] * 6), low=0.2, high=0.28), NEW)
    assert values == pytest.approx([-2.0, -2.5, -2.56, -2.0, -1.5, -1.0], abs=1e-14)
    assert gradient == pytest.approx([-2.0, -2.5, 0.0, -2.0, -1.5, -1.0], abs=1e-14)


def test_clip_with_a_negative_advantage() -> None:
    """A = -2: only ratios below 0.8 are bounded, ratios above 1.28 are not."""
    values, gradient = value_and_gradient(lambda lp: clip_surrogate(lp, OLD, row(*[-2.0] * 6), low=0.2, high=0.28), NEW)
    assert values == pytest.approx([2.0, 2.5, 3.0, 2.0, 1.6, 1.6], abs=1e-14)
    assert gradient == pytest.approx([2.0, 2.5, 3.0, 2.0, 0.0, 0.0], abs=1e-14)


def test_dual_clip_bounds_the_loss_of_a_negative_advantage_only() -> None:
    """With dual 1.4 a ratio of 1.5 and A = -2 costs 2.8 instead of 3, without gradient; A = 2 is as before."""
    negative = value_and_gradient(
        lambda lp: clip_surrogate(lp, OLD, row(*[-2.0] * 6), low=0.2, high=0.28, dual=1.4), NEW
    )
    assert negative[0] == pytest.approx([2.0, 2.5, 2.8, 2.0, 1.6, 1.6], abs=1e-14)
    assert negative[1] == pytest.approx([2.0, 2.5, 0.0, 2.0, 0.0, 0.0], abs=1e-14)
    positive = value_and_gradient(
        lambda lp: clip_surrogate(lp, OLD, row(*[2.0] * 6), low=0.2, high=0.28, dual=1.4), NEW
    )
    assert positive[0] == pytest.approx([-2.0, -2.5, -2.56, -2.0, -1.5, -1.0], abs=1e-14)


def test_at_a_ratio_of_one_the_gradient_is_that_of_reinforce() -> None:
    """min has a tie there, whose two halves must add up to the whole."""
    advantages = row(2.0, -3.0, 0.0)
    old = log(0.2, 0.3, 0.4)
    clipped = value_and_gradient(lambda lp: clip_surrogate(lp, old, advantages, low=0.2, high=0.2), old)[1]
    plain = value_and_gradient(lambda lp: reinforce_surrogate(lp, advantages), old)[1]
    assert clipped == pytest.approx(plain, abs=1e-15)
    assert plain == [-2.0, 3.0, 0.0]


def test_reinforce() -> None:
    values, gradient = value_and_gradient(lambda lp: reinforce_surrogate(lp, row(2.0, -3.0)), log(0.5, 0.25))
    assert values == pytest.approx([2.0 * math.log(2), -3.0 * math.log(4)], abs=1e-15)
    assert gradient == [-2.0, 3.0]


@pytest.mark.parametrize("dual", [None, 1.4])
def test_is_clipped_says_where_the_surrogate_has_no_gradient(dual: float | None) -> None:
    """On random tokens: clipped exactly where autograd gives 0 for an advantage that is not 0."""
    generator = torch.Generator().manual_seed(1)
    new, old = (torch.randn(1, 500, generator=generator, dtype=torch.float64) * 0.4 - 2 for _ in range(2))
    advantages = torch.randn(1, 500, generator=generator, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda lp: clip_surrogate(lp, old, advantages, low=0.2, high=0.28, dual=dual), new)
    clipped = is_clipped(torch.exp(new - old), advantages, low=0.2, high=0.28, dual=dual)
    assert clipped.flatten().tolist() == [value == 0.0 for value in gradient]
    assert 50 < int(clipped.sum()) < 450


@pytest.mark.parametrize(
    ("low", "high", "dual"), [(0.2, 0.2, None), (0.2, 0.28, None), (0.1, 0.5, 1.2), (10.0, 10.0, None)]
)
def test_clip_equals_the_oracle(low: float, high: float, dual: float | None) -> None:
    rng = np.random.default_rng(0)
    new, old, advantages = rng.normal(-2, 0.5, (3, 40)), rng.normal(-2, 0.5, (3, 40)), rng.normal(0, 1, (3, 40))
    loss, slope = oracle.clip(new, old, advantages, low, high, dual)
    values, gradient = value_and_gradient(
        lambda lp: clip_surrogate(lp, torch.tensor(old), torch.tensor(advantages), low=low, high=high, dual=dual),
        torch.tensor(new),
    )
    np.testing.assert_allclose(values, loss.ravel(), atol=1e-13)
    np.testing.assert_allclose(gradient, slope.ravel(), atol=1e-13)


def test_k3_by_hand_and_against_the_oracle() -> None:
    """pi_ref / pi = 2: 2 - log 2 - 1 with slope 1 - 2; = 1: 0 with slope 0; = 1/2: log 2 - 1/2 with slope 1/2."""
    values, gradient = value_and_gradient(lambda lp: k3(lp, log(0.4, 0.2, 0.1)), log(0.2, 0.2, 0.2))
    assert values == pytest.approx([1 - math.log(2), 0.0, math.log(2) - 0.5], abs=1e-15)
    assert gradient == pytest.approx([-1.0, 0.0, 0.5], abs=1e-15)
    rng = np.random.default_rng(1)
    new, ref = rng.normal(-2, 1, (2, 30)), rng.normal(-2, 1, (2, 30))
    values, gradient = value_and_gradient(lambda lp: k3(lp, torch.tensor(ref)), torch.tensor(new))
    np.testing.assert_allclose(values, oracle.k3(new, ref)[0].ravel(), atol=1e-13)
    np.testing.assert_allclose(gradient, oracle.k3(new, ref)[1].ravel(), atol=1e-13)
    assert min(values) >= 0.0


def correction(**settings: object) -> Correction:
    return TypeAdapter(Correction).validate_python(settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "none"}, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ({"type": "truncate", "cap": 2.0}, [0.25, 0.5, 1.0, 2.0, 2.0]),
        ({"type": "mask", "low": 0.5, "high": 5.0}, [0.0, 0.5, 1.0, 4.0, 0.0]),
    ],
)
def test_corrections(settings: dict[str, object], expected: list[float]) -> None:
    """rho = 1/4, 1/2, 1, 4, 8."""
    old, behaviour = row(0, 0, 0, 0, 0), -torch.log(row(0.25, 0.5, 1.0, 4.0, 8.0))
    old.requires_grad_()
    # exp(log 0.5) may fall a rounding below 0.5: the bound of the mask must not decide on that
    weights = correction_weights(old, behaviour + torch.tensor([[0, -1e-12, 0, 0, 0]]), correction(**settings))
    assert weights.flatten().tolist() == pytest.approx(expected, abs=1e-9)
    assert not weights.requires_grad


def tokens(new: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor) -> TokenInputs:
    blank = torch.zeros_like(new)
    return TokenInputs(
        trainer_logprobs=new, old_logprobs=old, behaviour_logprobs=behaviour, advantages=advantages,
        loss_mask=torch.ones_like(new), sequence=blank.long(), entropy=blank,
    )  # fmt: skip


KL = K3(type="k3", coefficient=0.1)


def test_token_loss_puts_correction_surrogate_and_kl_together() -> None:
    """w = 1.5 clipped to 1.2 by A = 1; rho = 2 capped at 1.5; k3 of ratio 2 with coefficient 0.1."""
    inputs = tokens(log(0.3), log(0.2), log(0.1), row(1.0))
    loss = token_loss(
        inputs, log(0.6), surrogate=ClipSurrogate(), correction=correction(type="truncate", cap=1.5), kl=KL
    )
    assert loss.item() == pytest.approx(1.5 * -1.2 + 0.1 * (2 - math.log(2) - 1), abs=1e-14)


def test_the_kl_term_is_not_corrected_and_not_masked() -> None:
    """A token that the correction masks keeps its KL term: coefficient * (1 - log 2) for a ratio of 2."""
    inputs = tokens(log(0.3), log(0.9), log(0.1), row(1.0))
    loss = token_loss(inputs, log(0.6), surrogate=ClipSurrogate(), correction=MaskCorrection(type="mask"), kl=KL)
    assert loss.item() == pytest.approx(0.1 * (1 - math.log(2)), abs=1e-14)


def test_a_kl_term_without_reference_is_an_error() -> None:
    inputs = tokens(log(0.3), log(0.3), log(0.3), row(1.0))
    with pytest.raises(ValueError, match="needs the reference's log-probabilities"):
        token_loss(inputs, None, surrogate=ClipSurrogate(), correction=NoCorrection(), kl=K3(type="k3"))


def squared(inputs: TokenInputs, *, factor: float) -> Tensor:
    return factor * (inputs.trainer_logprobs - inputs.behaviour_logprobs).square()


def summed(inputs: TokenInputs) -> Tensor:
    return inputs.trainer_logprobs.sum()


def test_a_plug_in_surrogate_sees_all_tokens_and_returns_one_loss_for_each() -> None:
    def surrogate(**settings: object) -> Surrogate:
        return TypeAdapter(Surrogate).validate_python(settings)

    inputs = tokens(row(1.0, 2.0), row(0, 0), row(0.5, 0.0), row(0, 0))
    config = surrogate(type="tests.learn.test_losses:squared", args={"factor": 3.0})
    assert surrogate_loss(inputs, config).flatten().tolist() == [0.75, 12.0]
    with pytest.raises(ValueError, match=r"must return one loss a token, shape \(1, 2\), got \(\)"):
        surrogate_loss(inputs, surrogate(type="tests.learn.test_losses:summed"))
