"""The same numbers as TRL's GRPO trainer (1.16), by its formulas, on random tensors.

The formulas are written here on TRL's layout, one completion a row, [N T] with a completion mask, from the reading of
`GRPOTrainer._compute_loss`; ours run on completions packed one after another. Loss and gradient agree to 1e-6 for every
type that both have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvr.config.algorithm import Algorithm
from rlvr.learn.losses import CompletionTokens
from rlvr.learn.meter import Meter
from rlvr.learn.objective import PolicyGradient, TokenBatch
from rlvr.learn.packing import token_weights
from rlvr.records import MicroBatch, TrainingSample
from tests.learn.losses.rows import micro_batch

LENGTHS = (5, 9, 1, 7)
LONGEST = max(LENGTHS)


def theirs(
    new: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor, *, loss_type: str, level: str = "token",
    low: float = 0.2, high: float = 0.2, delta: float | None = None, beta: float = 0.0, bias_correction: bool = False,
    off_policy: float | None = None, rho: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """TRL's loss of one batch."""
    log_ratio = new - old
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1))[:, None]
    w, a = torch.exp(log_ratio), advantages[:, None]
    if loss_type == "cispo":
        loss = -w.clamp(max=high).detach() * a * new
    elif loss_type == "sapo":
        tau = torch.where(a > 0, torch.tensor(1.0).double(), torch.tensor(1.05).double())
        loss = -torch.sigmoid(tau * (w - 1)) * 4 / tau * a
    elif loss_type == "vespo":
        total = ((new - old) * mask).sum(-1, keepdim=True).detach()
        k = torch.where(a >= 0, 2.0, 3.0)
        lam = torch.where(a >= 0, 3.0, 2.0)
        loss = -torch.exp(lam + k * total - lam * total.exp()) * a * new
    else:
        bounded = w.clamp(1 - low, 1 + high)
        loss = -torch.min((w if delta is None else w.clamp(max=delta)) * a, bounded * a)
    if off_policy is not None:
        distance = ((old - new.detach()) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        loss = loss * ((a >= 0) | (distance <= off_policy))
    if rho is not None:
        loss = loss * rho
    if beta:
        kl = torch.exp(ref - new) - (ref - new) - 1
        loss = loss + beta * (kl * w if bias_correction else kl)
    if loss_type in ("grpo", "sapo"):
        return ((loss * mask).sum(-1) / mask.sum(-1)).mean()
    if loss_type == "dr_grpo":
        return (loss * mask).sum() / (len(mask) * LONGEST)
    if loss_type == "luspo":
        return (loss * mask).sum(-1).mean()
    return (loss * mask).sum() / mask.sum()  # bnpo of one micro-batch, dapo, cispo, vespo


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"loss_type": "grpo"}, {"aggregation": {"type": "sequence_mean"}}),
    ({"loss_type": "dapo", "high": 0.28}, {"surrogate": {"type": "clip", "high": 0.28}}),
    ({"loss_type": "bnpo"}, {"aggregation": {"type": "token_mean"}}),
    ({"loss_type": "dr_grpo"}, {"aggregation": {"type": "sequence_sum", "length": LONGEST}}),
    ({"loss_type": "dapo", "delta": 1.5}, {"surrogate": {"type": "clip", "dual": 1.5}}),
    (
        {"loss_type": "grpo", "level": "sequence", "low": 0.03, "high": 0.04},
        {"ratio": {"type": "sequence_mean"}, "surrogate": {"type": "clip", "low": 0.03, "high": 0.04},
         "aggregation": {"type": "sequence_mean"}},
    ),
    (
        {"loss_type": "luspo", "level": "sequence"},
        {"ratio": {"type": "sequence_mean"}, "aggregation": {"type": "sequence_sum", "length": 1}},
    ),
    ({"loss_type": "cispo", "high": 1.4}, {"surrogate": {"type": "cispo", "high": 0.4}}),
    ({"loss_type": "sapo"}, {"surrogate": {"type": "sapo"}, "aggregation": {"type": "sequence_mean"}}),
    ({"loss_type": "vespo"}, {"surrogate": {"type": "vespo"}, "ratio": {"type": "sequence_product"}}),
    ({"loss_type": "dapo", "beta": 0.3}, {"kl": {"type": "k3", "coefficient": 0.3}}),
    (
        {"loss_type": "dapo", "beta": 0.3, "bias_correction": True},
        {"kl": {"type": "k3", "coefficient": 0.3, "corrected": True}},
    ),
    ({"loss_type": "dapo", "off_policy": 0.05}, {"off_policy_mask": 0.05}),
]  # fmt: skip


def packed(rows: Tensor) -> Tensor:
    """The completions one after another in one row."""
    return torch.cat([rows[i, :n] for i, n in enumerate(LENGTHS)])[None]


def ours(algorithm: Algorithm, new: Tensor, old: Tensor, ref: Tensor, behaviour: Tensor, advantages: Tensor) -> Tensor:
    """The objective on packed completions."""
    sequence = torch.tensor([[i for i, n in enumerate(LENGTHS) for _ in range(n)]])
    samples = [
        TrainingSample(ids=(0,) * (n + 1), loss_mask=(0,) + (1,) * n, behaviour_logprobs=(0.0,) * (n + 1),
                       advantage=0.0, group=0) for n in LENGTHS
    ]  # fmt: skip
    weights = torch.tensor(token_weights(samples, algorithm.aggregation), dtype=torch.float64)
    who = CompletionTokens(torch.ones_like(sequence).double(), sequence, len(LENGTHS))
    batch: MicroBatch = micro_batch(
        packed(behaviour), advantages[sequence], who, old_logprobs=packed(old), ref_logprobs=packed(ref)
    )
    object.__setattr__(batch, "token_weight", weights[sequence])
    flat = packed(new)
    tokens = TokenBatch(batch=batch, logprobs=flat, entropy=torch.zeros_like(flat), is_first=True)
    return PolicyGradient(algorithm, 1.0).loss(tokens, Meter(torch.device("cpu")))


def random_rows(seed: int) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(seed)
    new, old, ref, behaviour = (torch.tensor(rng.normal(-2, 0.25, (len(LENGTHS), LONGEST))) for _ in range(4))
    mask = torch.tensor([[float(t < n) for t in range(LONGEST)] for n in LENGTHS], dtype=torch.float64)
    return new, old, ref, behaviour, torch.tensor(rng.normal(0, 1, len(LENGTHS))), mask


def assert_equal(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor], new: Tensor) -> None:
    """Value and gradient."""
    results = []
    for loss in (first, second):
        moving = new.clone().requires_grad_()
        value = loss(moving)
        results.append((value.detach(), torch.autograd.grad(value, moving)[0]))
    assert float(results[0][1].abs().max()) > 1e-3
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("trl", "settings"), CASES, ids=lambda case: str(case.get("loss_type", "")))
def test_loss_and_gradient_are_trls(trl: dict[str, Any], settings: dict[str, Any], seed: int) -> None:
    """See the file's head. The off-policy mask is against the engine's policy on both sides."""
    new, old, ref, behaviour, advantages, mask = random_rows(seed)
    algorithm = Algorithm.model_validate({"updates_per_batch": 2, **settings})
    if "off_policy" in trl:  # TRL then compares with the sampler, and so do we: let it be the old policy here
        behaviour = old
    assert_equal(
        lambda lp: ours(algorithm, lp, old, ref, behaviour, advantages),
        lambda lp: theirs(lp, old, ref, advantages, mask, **trl),
        new,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("mode", "correction"),
    [("token_truncate", {"type": "truncate", "cap": 1.2}), ("token_mask", {"type": "mask", "low": 0.0, "high": 1.2}),
     ("sequence_truncate", {"type": "truncate", "cap": 1.2, "level": "sequence_product"}),
     ("sequence_mask", {"type": "mask", "low": 0.0, "high": 1.2, "level": "sequence_product"})],
)  # fmt: skip
def test_the_engines_importance_weights_are_trls(mode: str, correction: dict[str, Any], seed: int) -> None:
    """vllm_importance_sampling_mode with clip_max 1.2 and no clip_min: rho of the token or the product over the
    completion, truncated or masked; the denominator stays."""
    new, old, ref, behaviour, advantages, mask = random_rows(seed)
    log_rho = (old - behaviour) * mask
    rho = torch.exp(log_rho.sum(-1, keepdim=True) if mode.startswith("sequence") else log_rho)
    rho = rho.clamp(max=1.2) if mode.endswith("truncate") else rho * (rho <= 1.2)
    algorithm = Algorithm.model_validate({"updates_per_batch": 2, "correction": correction})
    assert_equal(
        lambda lp: ours(algorithm, lp, old, ref, behaviour, advantages),
        lambda lp: theirs(lp, old, ref, advantages, mask, loss_type="dapo", rho=rho),
        new,
    )
