"""The objective puts the slots together: literal numbers in float64, one completion or two, all by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from rlvr.config.algorithm import Algorithm
from rlvr.learn.losses import k1
from rlvr.learn.meter import Meter
from rlvr.learn.objective import PolicyGradient, TokenBatch
from rlvr.records import MicroBatch, StepStatistics
from tests.learn.losses.rows import completions, log, micro_batch, row


def objective(**settings: Any) -> PolicyGradient:
    return PolicyGradient(Algorithm.model_validate(settings), 1.0)


def run(
    one: PolicyGradient, batch: MicroBatch, new: Tensor, entropy: Tensor | None = None
) -> tuple[float, list[float], dict[str, float]]:
    """Loss, gradient by the log-probabilities, and sums that were measured."""
    new = new.clone().requires_grad_()
    meter = Meter(torch.device("cpu"))
    entropies = torch.zeros_like(new) if entropy is None else entropy
    loss = one.loss(TokenBatch(batch=batch, logprobs=new, entropy=entropies, is_first=True), meter)
    (gradient,) = torch.autograd.grad(loss, new, retain_graph=entropy is not None)
    return loss.item(), gradient.flatten().tolist(), meter.totals()


ONE = completions(0)
TWO_STEPS = {"updates_per_batch": 2}


def test_correction_surrogate_and_kl_together() -> None:
    """w = 1.5 clipped to 1.2 by A = 1; rho = 2 capped at 1.5; k3 of ratio 2 with coefficient 0.1."""
    one = objective(correction={"type": "truncate", "cap": 1.5}, kl={"type": "k3", "coefficient": 0.1}, **TWO_STEPS)
    batch = micro_batch(log(0.1), row(1.0), ONE, old_logprobs=log(0.2), ref_logprobs=log(0.6))
    loss, gradient, totals = run(one, batch, log(0.3))
    assert loss == pytest.approx(1.5 * -1.2 + 0.1 * (2 - math.log(2) - 1), abs=1e-14)
    assert gradient == pytest.approx([0.1 * (1 - 2)], abs=1e-14)
    assert (totals["clip_high"], totals["clip_low"], totals["mismatch_truncated"]) == (1, 0, 1)
    assert totals["kl"] == pytest.approx(1 - math.log(2), abs=1e-14)


def test_the_kl_term_is_not_corrected_and_not_masked() -> None:
    """A token that the correction masks keeps its KL term: coefficient * (1 - log 2) for a ratio of 2."""
    one = objective(correction={"type": "mask"}, kl={"type": "k3", "coefficient": 0.1}, **TWO_STEPS)
    batch = micro_batch(log(0.1), row(1.0), ONE, old_logprobs=log(0.9), ref_logprobs=log(0.6))
    loss, _, totals = run(one, batch, log(0.3))
    assert loss == pytest.approx(0.1 * (1 - math.log(2)), abs=1e-14)
    assert totals["mismatch_masked"] == 1


@pytest.mark.parametrize(
    ("kl", "loss", "slope"),
    [
        # pi = 0.3, pi_old = 0.2, pi_ref = 0.6: r = 2, w = 1.5
        ({"type": "k2"}, math.log(2) ** 2 / 2, -math.log(2)),
        ({"type": "k3"}, 1 - math.log(2), -1.0),
        ({"type": "k1", "corrected": True}, -1.5 * math.log(2), 1.5 * (1 - math.log(2))),
        ({"type": "k3", "corrected": True}, 1.5 * (1 - math.log(2)), -1.5 * math.log(2)),
    ],
)
def test_kl_in_the_loss(kl: dict[str, Any], loss: float, slope: float) -> None:
    """Without an advantage the KL term alone is left, times its coefficient; corrected, w is differentiated too."""
    one = objective(kl={"coefficient": 0.5, **kl}, **TWO_STEPS)
    batch = micro_batch(log(0.2), row(0.0), ONE, old_logprobs=log(0.2), ref_logprobs=log(0.6))
    found, gradient, _ = run(one, batch, log(0.3))
    assert (found, gradient) == (pytest.approx(0.5 * loss, abs=1e-14), pytest.approx([0.5 * slope], abs=1e-14))


def test_kl_in_the_reward_is_taken_from_the_advantages_of_what_led_to_it() -> None:
    """Three tokens with pi_old / pi_ref = 2, 1, 4, the second one masked: k1 = log 2, log 4. With coefficient 0.5 the
    first token's advantage is 1 - 0.5 (log 2 + log 4), the last one's 1 - 0.5 log 4; REINFORCE's gradient is minus
    these, whatever pi has become since."""
    who = completions(0, 0, 0, mask=(1, 0, 1))
    one = objective(kl={"type": "k1", "place": "reward", "coefficient": 0.5}, surrogate={"type": "reinforce"}, epochs=2)
    assert one.needs_old
    batch = micro_batch(
        log(0.4, 1, 0.4), row(1, 1, 1), who, old_logprobs=log(0.4, 1.0, 0.4), ref_logprobs=log(0.2, 1.0, 0.1)
    )
    _, gradient, totals = run(one, batch, log(0.9, 1.0, 0.1))
    expected = [1 - 0.5 * math.log(8), 0.0, 1 - 0.5 * math.log(4)]
    assert gradient == pytest.approx([-a for a in expected], abs=1e-14)
    assert totals["kl_in_reward"] == pytest.approx(0.5 * (math.log(8) + math.log(4)), abs=1e-14)


def test_a_kl_term_without_reference_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs the reference's log-probabilities"):
        run(objective(kl={"type": "k3"}), micro_batch(log(0.3), row(1.0), ONE), log(0.3))


def test_the_squared_log_ratio_pulls_towards_the_engines_policy() -> None:
    """0.1 (log pi / mu)^2 = 0.1 (log 3)^2 with slope 0.2 log 3."""
    batch = micro_batch(log(0.1), row(0.0), ONE)
    loss, gradient, _ = run(objective(squared_log_ratio=0.1), batch, log(0.3))
    assert loss == pytest.approx(0.1 * math.log(3) ** 2, abs=1e-14)
    assert gradient == pytest.approx([0.2 * math.log(3)], abs=1e-14)


def test_the_off_policy_mask_takes_a_completion_out_and_keeps_the_denominator() -> None:
    """Two completions with A = -1, the first one e times less likely than when it was sampled."""
    batch = micro_batch(log(0.2 * math.e, 0.2), row(-1, -1), completions(0, 1), weight=0.5)
    loss, gradient, totals = run(objective(off_policy_mask=0.5), batch, log(0.2, 0.2))
    assert (loss, gradient) == (0.5, [0.0, 0.5])
    assert totals["off_policy_masked"] == 1


def test_top_entropy_takes_the_surrogate_but_not_the_kl_from_other_tokens() -> None:
    numbers = StepStatistics(positive_tokens=2.0, entropy_threshold=0.5)
    fields = {"old_logprobs": log(0.2, 0.2), "ref_logprobs": log(0.2, 0.4), "old_entropy": row(0.5, 0.4)}
    batch = micro_batch(log(0.2, 0.2), row(2, 2), completions(0, 0), statistics=numbers, **fields)
    one = objective(top_entropy=0.5, kl={"type": "k3", "coefficient": 1.0})
    assert one.needs_old
    loss, gradient, totals = run(one, batch, log(0.2, 0.2))
    assert loss == pytest.approx(-2.0 + 1 - math.log(2), abs=1e-14)
    assert gradient == pytest.approx([-2.0, -1.0], abs=1e-14)
    assert totals["top_entropy"] == 1


def test_the_nll_of_positive_tokens_is_a_mean_of_its_own() -> None:
    """Two of three tokens here have A > 0, four in the whole step: 0.1 * sum(-log p) / 4, whatever the weights."""
    numbers = StepStatistics(positive_tokens=4.0)
    batch = micro_batch(log(0.5, 0.5, 0.5), row(1, -1, 1), completions(0, 1, 2), weight=0.0, statistics=numbers)
    loss, gradient, totals = run(objective(positive_nll=0.1), batch, log(0.5, 0.25, 0.25))
    assert loss == pytest.approx(0.1 * math.log(8) / 4, abs=1e-15)
    assert gradient == pytest.approx([-0.025, 0.0, -0.025], abs=1e-15)
    assert (totals["positive"], totals["positive_nll"]) == (2, pytest.approx(math.log(8)))


def test_the_entropy_bonus_is_in_the_loss_with_its_gradient() -> None:
    """-0.5 * (0.3 + 0.7) * weight 0.5; its gradient by the entropies is -0.25."""
    entropy = row(0.3, 0.7).requires_grad_()
    one, batch = (
        objective(entropy={"type": "fixed", "coefficient": 0.5}),
        micro_batch(log(1, 1), row(0, 0), completions(0, 0)),
    )
    batch = micro_batch(log(1, 1), row(0, 0), completions(0, 0), weight=0.5)
    meter = Meter(torch.device("cpu"))
    tokens = TokenBatch(batch=batch, logprobs=log(1, 1).requires_grad_(), entropy=entropy, is_first=True)
    loss = one.loss(tokens, meter)
    assert loss.item() == pytest.approx(-0.25, abs=1e-15)
    assert torch.autograd.grad(loss, entropy)[0].tolist() == [[-0.25, -0.25]]
    assert one.observe({"policy/entropy": 0.5}) == {"policy/entropy_coefficient": 0.5}


def test_the_adaptive_bonus_follows_the_entropy_and_is_state() -> None:
    """Target 0.5, delta 0.25, at most 0.5. Entropies 0.4, 0.3, 0.2, 0.5, 0.6, none, 0.1: the level goes 0.25, 0.5, 0.5,
    0.25, 0, 0, 0.25; a bonus is given where the entropy before was at or below the target."""
    settings = {"type": "adaptive", "target": 0.5, "delta": 0.25, "maximum": 0.5}
    one = objective(entropy=settings)
    used = []
    for place, entropy in enumerate([0.4, 0.3, 0.2, 0.5, 0.6, None, 0.1]):
        if place == 3:  # a checkpoint in between changes nothing
            other = objective(entropy=settings)
            other.load_state_dict(one.state_dict())
            one = other
        metrics = {} if entropy is None else {"policy/entropy": entropy}
        used.append(one.observe(metrics)["policy/entropy_coefficient"])
    assert used == [0.0, 0.25, 0.5, 0.5, 0.25, 0.0, 0.0]
    assert one.bonus.coefficient == 0.25
    assert objective().observe({"policy/entropy": 0.1}) == {}


def test_ratios_beyond_the_limit_are_counted() -> None:
    who = completions(0, 0, 1)
    one = objective(ratio={"type": "sequence_product"}, aggregation={"type": "sequence_mean"}, **TWO_STEPS)
    batch = micro_batch(row(-9, -9, -9), row(-1, -1, 1), who, old_logprobs=row(-15, -15, -1))
    loss, gradient, totals = run(one, batch, row(-1, -1, -1))
    assert totals["ratio_limited"] == 2
    assert math.isfinite(loss)
    assert gradient == pytest.approx([0.0, 0.0, -1.0])


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({}, False), ({"epochs": 2}, True), ({"epochs": 2, "ratio": {"against": "behaviour"}}, False),
        ({"surrogate": {"type": "clip_cov"}}, True), ({"top_entropy": 0.5}, True), ({"positive_nll": 0.1}, False),
        ({"epochs": 2, "ratio": {"against": "behaviour"}, "kl": {"type": "k3", "place": "reward"}}, True),
    ],
)  # fmt: skip
def test_the_policy_before_is_computed_only_where_it_is_needed(settings: dict[str, Any], needs: bool) -> None:
    assert objective(**settings).needs_old is needs


def test_shapes_are_checked_while_tests_run() -> None:
    """`tests/conftest.py` has every annotated shape of the losses checked: another number of columns is refused."""
    with pytest.raises(TypeCheckError, match="trainer_logprobs"):
        k1(torch.zeros(1, 2), torch.zeros(1, 3))


def test_the_mismatch_of_engine_and_learner_by_hand() -> None:
    """pi_old 0.2 and 0.1 against mu 0.1 and 0.2, a masked token between: d = log 2 and -log 2, rho 2 and 1/2, and
    k3 = rho - log rho - 1, whose mean is KL(mu || pi_old): 1 - log 2 and log 2 - 1/2."""
    batch = micro_batch(
        log(0.1, 0.1, 0.2), row(0, 0, 0), completions(0, 0, 1, mask=(1, 0, 1)), old_logprobs=log(0.2, 0.9, 0.1)
    )
    _, _, totals = run(objective(**TWO_STEPS), batch, log(0.3, 0.3, 0.3))
    found = {name: totals[f"mismatch_{name}"] for name in ("n", "abs", "k3", "rho", "sum", "squares")}
    expected = {"n": 2, "abs": 2 * math.log(2), "k3": 0.5, "rho": 2, "sum": 2.5, "squares": 4.25}
    assert found == pytest.approx(expected, abs=1e-14)


def test_the_mismatch_leans_to_the_side_of_the_engine() -> None:
    """One token, pi_old = 4 mu: k3 is 4 - log 4 - 1, not 1/4 + log 4 - 1, and the largest rho 4, not 1/4."""
    batch = micro_batch(log(0.1), row(0), ONE, old_logprobs=log(0.4))
    _, _, totals = run(objective(**TWO_STEPS), batch, log(0.3))
    assert totals["mismatch_k3"] == pytest.approx(3 - math.log(4), abs=1e-14)
    assert totals["mismatch_rho"] == pytest.approx(4, abs=1e-14)
