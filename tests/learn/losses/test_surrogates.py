"""Surrogates: literal numbers on every branch in float64, and each against its paper's formula in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvr.config.losses import ClipSurrogate
from rlvr.learn.losses import CompletionTokens, TokenInputs, bounded, surrogate_loss
from rlvr.learn.losses.surrogates import clip_surrogate, outside_trust_region
from tests.learn import oracle
from tests.learn.losses.rows import completions, inputs, log, loss_of, row, slot, value_and_gradient

# pi_theta / pi_old of the six tokens: 1, 1.25, 1.5, 1, 0.75, 0.5
NEW, OLD = log(0.2, 0.25, 0.3, 0.2, 0.15, 0.1), log(*[0.2] * 6)
EACH = completions(0, 1, 2, 3, 4, 5)
POSITIVE, NEGATIVE = row(*[2.0] * 6), row(*[-2.0] * 6)


def both(advantages: Tensor, **settings: Any) -> tuple[list[float], list[float]]:
    """Losses and gradients of the six tokens."""
    return value_and_gradient(lambda lp: loss_of(slot(**settings), lp, OLD, advantages, EACH), NEW)


def test_clip_with_a_positive_advantage() -> None:
    """-min(w A, clip(w, 0.8, 1.28) A), A = 2: only ratios above 1.28 are bounded, ratios below 0.8 are not."""
    values, gradient = both(POSITIVE, type="clip", low=0.2, high=0.28)
    assert values == pytest.approx([-2.0, -2.5, -2.56, -2.0, -1.5, -1.0], abs=1e-14)
    assert gradient == pytest.approx([-2.0, -2.5, 0.0, -2.0, -1.5, -1.0], abs=1e-14)


def test_clip_with_a_negative_advantage() -> None:
    """A = -2: only ratios below 0.8 are bounded, ratios above 1.28 are not."""
    values, gradient = both(NEGATIVE, type="clip", low=0.2, high=0.28)
    assert values == pytest.approx([2.0, 2.5, 3.0, 2.0, 1.6, 1.6], abs=1e-14)
    assert gradient == pytest.approx([2.0, 2.5, 3.0, 2.0, 0.0, 0.0], abs=1e-14)


def test_dual_clip_bounds_the_loss_of_a_negative_advantage_only() -> None:
    """With dual 1.4 a ratio of 1.5 and A = -2 costs 2.8 instead of 3, without gradient; A = 2 is as before."""
    values, gradient = both(NEGATIVE, type="clip", low=0.2, high=0.28, dual=1.4)
    assert values == pytest.approx([2.0, 2.5, 2.8, 2.0, 1.6, 1.6], abs=1e-14)
    assert gradient == pytest.approx([2.0, 2.5, 0.0, 2.0, 0.0, 0.0], abs=1e-14)
    values, _ = both(POSITIVE, type="clip", low=0.2, high=0.28, dual=1.4)
    assert values == pytest.approx([-2.0, -2.5, -2.56, -2.0, -1.5, -1.0], abs=1e-14)


def test_the_two_sided_clip_is_the_dual_one() -> None:
    """INTELLECT-2: -min(min(w, delta) A, clip(w) A). For delta >= 1 + high it is dual clip with bound delta, in value
    and gradient."""
    rng = np.random.default_rng(5)
    new, old, a = (torch.tensor(rng.normal(-2, 1, (1, 300))) for _ in range(3))
    a = a + 2

    def two_sided(lp: Tensor) -> Tensor:
        w = torch.exp(lp - old)
        return -torch.minimum(w.clamp(max=1.5) * a, w.clamp(0.8, 1.28) * a)

    ours = value_and_gradient(lambda lp: clip_surrogate(torch.exp(lp - old), a, low=0.2, high=0.28, dual=1.5), new)
    theirs = value_and_gradient(two_sided, new)
    np.testing.assert_allclose(ours, theirs, atol=1e-13)


def test_at_a_ratio_of_one_the_gradient_is_that_of_reinforce() -> None:
    """For every surrogate that is a policy gradient: -A at w = 1 (min's tie must add up to the whole); gmpo's and
    squared's completions have one token here, vespo's phi(1) is 1."""
    old, who, advantages = log(0.2, 0.3, 0.4), completions(0, 1, 2), row(2.0, -3.0, 0.0)
    plain: list[dict[str, Any]] = [
        {"type": "reinforce"}, {"type": "clip"}, {"type": "clip", "dual": 3.0}, {"type": "cispo"}, {"type": "sapo"},
        {"type": "gmpo"}, {"type": "vespo"}, {"type": "dppo"}, {"type": "squared", "tau": 0.01},
    ]  # fmt: skip
    for settings in plain:
        level = "sequence_product" if settings["type"] in ("vespo", "squared") else "token"
        config = slot(**settings)
        _, gradient = value_and_gradient(lambda lp: loss_of(config, lp, old, advantages, who, level), old)  # noqa: B023
        assert gradient == pytest.approx([-2.0, 3.0, 0.0], abs=1e-14), settings


def test_reinforce() -> None:
    values, gradient = value_and_gradient(
        lambda lp: loss_of(slot(type="reinforce"), lp, lp.detach(), row(2.0, -3.0), completions(0, 1)), log(0.5, 0.25)
    )
    assert values == pytest.approx([2.0 * math.log(2), -3.0 * math.log(4)], abs=1e-15)
    assert gradient == [-2.0, 3.0]


def test_cispo_bounds_the_weight_and_keeps_the_gradient() -> None:
    """-sg(clip(w, none, 1 + 0.25)) A log pi: weights 1, 1.25, 1.25, 1, 0.75, 0.5; with low 0.2 the last two are 0.8."""
    values, gradient = both(POSITIVE, type="cispo", high=0.25)
    assert gradient == pytest.approx([-2.0, -2.5, -2.5, -2.0, -1.5, -1.0], abs=1e-14)
    assert values[2] == pytest.approx(-2.5 * math.log(0.3), abs=1e-14)
    _, gradient = both(NEGATIVE, type="cispo", low=0.2, high=0.25)
    assert gradient == pytest.approx([2.0, 2.5, 2.5, 2.0, 1.6, 1.6], abs=1e-14)


def test_sapo() -> None:
    """-A (4 / tau) sigmoid(tau (w - 1)): w = 1.5, A = 2, tau 1: -8 / (1 + e^-0.5), slope w * dl/dw."""
    values, gradient = both(POSITIVE, type="sapo")
    gate = 1 / (1 + math.exp(-0.5))
    assert (values[0], values[2]) == pytest.approx((-4.0, -8 * gate), abs=1e-14)
    assert (gradient[0], gradient[2]) == pytest.approx((-2.0, -8 * gate * (1 - gate) * 1.5), abs=1e-14)
    values, gradient = both(NEGATIVE, type="sapo", tau_negative=2.0)  # w = 0.5: sigmoid(-1)
    gate = 1 / (1 + math.e)
    assert (values[5], gradient[5]) == pytest.approx((4 * gate, 2 * 4 / 2 * 2 * gate * (1 - gate) * 0.5), abs=1e-14)


def test_gmpo_clips_by_logarithm_and_takes_the_geometric_mean() -> None:
    """Ratios e^0.5, e^-0.5, e^0.1, bounds +-0.4. A = 2: m = 0.4, -0.5, 0.1: the loss is -2 on each token, and only the
    last two have a gradient; A = -2: m = 0.5, -0.4, 0.1, loss 2 e^(0.2/3), the first and last have one."""
    old, who = log(0.2, 0.2, 0.2), completions(0, 0, 0)
    new = old + row(0.5, -0.5, 0.1)
    config = slot(type="gmpo")
    values, gradient = value_and_gradient(lambda lp: loss_of(config, lp, old, row(2.0, 2.0, 2.0), who) / 3, new)
    assert values == pytest.approx([-2 / 3] * 3, abs=1e-14)
    assert gradient == pytest.approx([0.0, -2 / 3, -2 / 3], abs=1e-14)
    values, gradient = value_and_gradient(lambda lp: loss_of(config, lp, old, row(-2.0, -2.0, -2.0), who) / 3, new)
    loss = 2 * math.exp(0.2 / 3)
    assert values == pytest.approx([loss / 3] * 3, abs=1e-14)
    assert gradient == pytest.approx([loss / 3, 0.0, loss / 3], abs=1e-14)


def test_vespo() -> None:
    """W = 2 * 1/4 = 1/2 for the completion: phi = W^2 e^(3 (1 - W)) for A = 1, W^3 e^(2 (1 - W)) for A = -1."""
    old, who = log(0.2, 0.4), completions(0, 0)
    new, config = log(0.4, 0.1), slot(type="vespo")
    _, gradient = value_and_gradient(lambda lp: loss_of(config, lp, old, row(1.0, 1.0), who, "sequence_product"), new)
    assert gradient == pytest.approx([-0.25 * math.exp(1.5)] * 2, abs=1e-14)
    _, gradient = value_and_gradient(lambda lp: loss_of(config, lp, old, row(-1.0, -1.0), who, "sequence_product"), new)
    assert gradient == pytest.approx([0.125 * math.e] * 2, abs=1e-14)
    far = old + 50.0  # a completion e^100 times as likely has no weight, and is finite
    values, _ = value_and_gradient(lambda lp: loss_of(config, lp, old, row(1.0, 1.0), who, "sequence_product"), far)
    assert values == [0.0, 0.0]


def test_dppo_masks_by_the_change_of_probability() -> None:
    """pi_theta - pi_old = 0.25, 0.1, -0.25, 0.25, -0.25 with bounds of 0.2: A > 0 loses the first, A < 0 the last."""
    new, old, who = log(0.5, 0.2, 0.25, 0.5, 0.25), log(0.25, 0.1, 0.5, 0.25, 0.5), completions(0, 1, 2, 3, 4)
    advantages = row(1.0, 1.0, 1.0, -1.0, -1.0)
    values, gradient = value_and_gradient(lambda lp: loss_of(slot(type="dppo"), lp, old, advantages, who), new)
    assert values == pytest.approx([0.0, -2.0, -0.5, 2.0, 0.0], abs=1e-14)
    assert gradient == pytest.approx([0.0, -2.0, -0.5, 2.0, 0.0], abs=1e-14)


def test_squared_regression_has_kimis_gradient() -> None:
    """tau 0.5, W = 2 * 2 = 4, A = 1: (0.5 log 4 - 1)^2 / 1 a completion; gradient (tau log W - A) on each token, which
    is
    -[A - tau/2 * 2 log W]."""
    old, new, who = log(0.2, 0.2), log(0.4, 0.4), completions(0, 0)
    config = slot(type="squared", tau=0.5)
    values, gradient = value_and_gradient(
        lambda lp: loss_of(config, lp, old, row(1.0, 1.0), who, "sequence_product") / 2, new
    )
    slope = 0.5 * math.log(4) - 1
    assert sum(values) == pytest.approx(slope**2, abs=1e-14)
    assert gradient == pytest.approx([slope] * 2, abs=1e-14)


def test_the_covariant_tokens_lose_their_gradient_or_get_a_penalty() -> None:
    """clip_cov leaves the chosen tokens out; kl_cov adds 0.5 |log w| to them: slope 0.5 above w = 1, -0.5 below."""
    chosen = row(0, 1, 0, 0, 0, 1)
    values, gradient = value_and_gradient(
        lambda lp: loss_of(slot(type="clip_cov", high=0.28), lp, OLD, POSITIVE, EACH, chosen=chosen), NEW
    )
    assert values == pytest.approx([-2.0, 0.0, -2.56, -2.0, -1.5, 0.0], abs=1e-14)
    assert gradient == pytest.approx([-2.0, 0.0, 0.0, -2.0, -1.5, 0.0], abs=1e-14)
    values, gradient = value_and_gradient(
        lambda lp: loss_of(slot(type="kl_cov", coefficient=0.5), lp, OLD, POSITIVE, EACH, chosen=chosen), NEW
    )
    assert values[1] == pytest.approx(-2.5 + 0.5 * math.log(1.25), abs=1e-14)
    assert gradient == pytest.approx([-2.0, -2.0, -3.0, -2.0, -1.5, -1.5], abs=1e-14)
    with pytest.raises(ValueError, match="needs the covariances"):
        loss_of(slot(type="kl_cov"), NEW, OLD, POSITIVE, EACH)


# --------------------------------------------------------------------------------------------------- against the papers

WHO = CompletionTokens(
    torch.tensor([[1, 0, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 0, 0]], dtype=torch.float64),
    torch.tensor([[0, 0, 0, 1, 1, 1, -1], [2, 2, 2, 2, 2, -1, -1]]), 3,
)  # fmt: skip
PAIRS: list[tuple[dict[str, Any], str]] = [
    *(({"type": "clip", "low": 0.2, "high": 0.28, "dual": 1.6}, level) for level in oracle.LEVELS),
    *(({"type": "sapo"}, level) for level in oracle.LEVELS),
    *(({"type": "cispo", "low": 0.3, "high": 0.4}, level) for level in oracle.LEVELS),
    ({"type": "gmpo", "low": 0.4, "high": 0.3}, "token"),
    ({"type": "vespo"}, "sequence_product"),
    ({"type": "dppo", "low": 0.05, "high": 0.05}, "token"),
    ({"type": "squared", "tau": 0.3}, "sequence_product"),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("settings", "level"), PAIRS, ids=lambda value: value if isinstance(value, str) else value["type"]
)
def test_a_surrogate_averaged_over_completions_is_the_papers_loss(
    settings: dict[str, Any], level: str, seed: int
) -> None:
    """For completions packed in rows with holes: sum_t loss_t / (N n) and its gradient equal (1/N) sum_i of the loss of
    completion i written as in its paper, one completion at a time, differentiated numerically."""
    rng = np.random.default_rng(seed)
    new, old = rng.normal(-1.5, 0.4, (2, 7)), rng.normal(-1.5, 0.4, (2, 7))
    advantage = rng.normal(0, 1, 3)
    spread = torch.tensor(advantage)[WHO.sequence.clamp(min=0)]
    lengths = WHO.on_tokens(WHO.sums(torch.ones_like(WHO.loss_mask)), torch.float64)

    def ours(lp: Tensor) -> Tensor:
        return loss_of(slot(**settings), lp, torch.tensor(old), spread, WHO, level) * WHO.loss_mask / (3 * lengths)

    values, gradient = value_and_gradient(ours, torch.tensor(new))
    slopes, total = np.zeros_like(new), 0.0
    for i in range(3):
        mine = (WHO.sequence.numpy() == i) & (WHO.loss_mask.numpy() == 1)
        loss, slope = oracle.completion_loss(new[mine], old[mine], float(advantage[i]), level, **settings)
        total += loss / 3
        slopes[mine] = slope / 3
    assert sum(values) == pytest.approx(total, abs=1e-12)
    np.testing.assert_allclose(np.array(gradient).reshape(2, 7), slopes, atol=2e-8)


# ----------------------------------------------------------------------------------------------------- bounds, plug-ins


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "clip", "low": 0.2, "high": 0.28}, {"type": "clip", "low": 0.2, "high": 0.28, "dual": 1.4},
        {"type": "dppo", "low": 0.02, "high": 0.03}, {"type": "gmpo"}, {"type": "sapo"}, {"type": "reinforce"},
    ],
    ids=str,
)  # fmt: skip
def test_bounded_says_where_a_surrogate_has_no_gradient(settings: dict[str, Any]) -> None:
    """On random tokens: bounded exactly where autograd gives 0 for an advantage that is not 0."""
    generator = torch.Generator().manual_seed(1)
    new, old = (torch.randn(1, 500, generator=generator, dtype=torch.float64) * 0.4 - 2 for _ in range(2))
    advantages = torch.randn(1, 500, generator=generator, dtype=torch.float64)
    who, config = completions(*range(500)), slot(**settings)
    _, gradient = value_and_gradient(lambda lp: loss_of(config, lp, old, advantages, who), new)
    below, above = bounded(inputs(new, old, advantages, who), config)
    assert (below | above).flatten().tolist() == [value == 0.0 for value in gradient]
    assert not (below & above).any()
    if settings["type"] not in ("sapo", "reinforce"):
        assert min(int(below.sum()), int(above.sum())) > 5


def test_cispos_bounds_are_counted() -> None:
    below, above = bounded(inputs(NEW, OLD, POSITIVE, EACH), slot(type="cispo", low=0.4, high=0.3))
    assert below.flatten().tolist() == [False, False, False, False, False, True]
    assert above.flatten().tolist() == [False, False, True, False, False, False]
    below, _ = bounded(inputs(NEW, OLD, POSITIVE, EACH), slot(type="cispo"))
    assert not below.any()


@pytest.mark.parametrize(
    ("low", "high", "dual"), [(0.2, 0.2, None), (0.2, 0.28, None), (0.1, 0.5, 1.2), (10.0, 10.0, None)]
)
def test_clip_equals_the_oracle(low: float, high: float, dual: float | None) -> None:
    rng = np.random.default_rng(0)
    new, old, advantages = rng.normal(-2, 0.5, (3, 40)), rng.normal(-2, 0.5, (3, 40)), rng.normal(0, 1, (3, 40))
    loss, slope = oracle.clip(new, old, advantages, low, high, dual)
    config, who = (
        ClipSurrogate(low=low, high=high, dual=dual),
        CompletionTokens(torch.ones(3, 40), torch.zeros(3, 40).long(), 1),
    )
    values, gradient = value_and_gradient(
        lambda lp: loss_of(config, lp, torch.tensor(old), torch.tensor(advantages), who), torch.tensor(new)
    )
    np.testing.assert_allclose(values, loss.ravel(), atol=1e-13)
    np.testing.assert_allclose(gradient, slope.ravel(), atol=1e-13)


def squared(tokens: TokenInputs, *, factor: float) -> Tensor:
    return factor * tokens.log_ratio.square()


def summed(tokens: TokenInputs) -> Tensor:
    return tokens.trainer_logprobs.sum()


def test_a_plug_in_surrogate_sees_all_tokens_and_returns_one_loss_for_each() -> None:
    tokens = inputs(row(1.0, 2.0), row(0.5, 0.0), row(0, 0), completions(0, 0))
    config = slot(type="tests.learn.losses.test_surrogates:squared", args={"factor": 3.0})
    assert surrogate_loss(tokens, config).flatten().tolist() == [0.75, 12.0]
    assert not any(where.any() for where in bounded(tokens, config))
    with pytest.raises(ValueError, match=r"must return one loss a token, shape \(1, 2\), got \(\)"):
        surrogate_loss(tokens, slot(type="tests.learn.losses.test_surrogates:summed"))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_change_of_probability_at_the_bound_of_dppo_is_inside(advantage: float) -> None:
    """1/2 -> 1 with a high of 1/2, and 1 -> 1/2 with a low of 1/2."""
    old, new = (log(0.5), row(0.0)) if advantage > 0 else (row(0.0), log(0.5))
    below, above = outside_trust_region(new, old, row(advantage), low=0.5, high=0.5)
    assert (below.tolist(), above.tolist()) == ([[False]], [[False]])
    below, above = outside_trust_region(new, old, row(advantage), low=0.49, high=0.49)
    assert (below.tolist(), above.tolist()) == ([[advantage < 0]], [[advantage > 0]])


@pytest.mark.parametrize(
    "settings",
    [{"type": "clip", "dual": 2.0}, {"type": "clip_cov"}, {"type": "gmpo", "low": 0.4, "high": 0.4}, {"type": "dppo"}],
    ids=lambda one: one["type"],
)
def test_no_bound_is_at_work_where_the_advantage_is_zero(settings: dict[str, Any]) -> None:
    """Far below and far above: nothing is taken from a token that has no gradient."""
    who = completions(0, 1)
    below, above = bounded(inputs(log(0.1, 0.9), log(0.9, 0.1), row(0, 0), who), slot(**settings))
    assert (below.tolist(), above.tolist()) == ([[False, False]], [[False, False]])


def test_a_log_ratio_at_the_bounds_of_gmpo_is_inside() -> None:
    who, config = completions(0, 1), slot(type="gmpo", low=0.5, high=0.25)
    below, above = bounded(inputs(row(-1.5, -0.75), row(-1, -1), row(-1, 1), who), config)
    assert (below.tolist(), above.tolist()) == ([[False, False]], [[False, False]])
    below, above = bounded(inputs(row(-1.75, -0.5), row(-1, -1), row(-1, 1), who), config)
    assert (below.tolist(), above.tolist()) == ([[True, False]], [[False, True]])
