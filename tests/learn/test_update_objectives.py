"""The learner with each objective: micro-batches change nothing, zero advantages change nothing, references follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr.learn.update import Learner
from tests.learn.conftest import random_samples, samples_of_groups
from tests.learn.test_update import assert_same, make, weights

Folder = Callable[..., str]
MEAN: dict[str, Any] = {"aggregation": {"type": "sequence_mean"}}
PRODUCT: dict[str, Any] = {"ratio": {"type": "sequence_product"}}
SURROGATES: dict[str, dict[str, Any]] = {
    "clip": {},
    "gspo": {"ratio": {"type": "sequence_mean"}, "surrogate": {"type": "clip", "low": 3e-3, "high": 4e-3}, **MEAN},
    "product": {**PRODUCT, **MEAN},
    "reinforce": {"surrogate": {"type": "reinforce"}},
    "cispo": {"surrogate": {"type": "cispo"}},
    "sapo": {"surrogate": {"type": "sapo"}},
    "gmpo": {"surrogate": {"type": "gmpo"}, **MEAN},
    "vespo": {"surrogate": {"type": "vespo"}, **PRODUCT},
    "dppo": {"surrogate": {"type": "dppo"}},
    "squared": {"surrogate": {"type": "squared", "tau": 0.1}, **PRODUCT, **MEAN},
    "clip_cov": {"surrogate": {"type": "clip_cov", "share": 0.1, "cov_low": -9.0, "cov_high": 9.0}},
}
KL_COV: dict[str, Any] = {"surrogate": {"type": "kl_cov", "share": 0.1}}
EXTRAS: dict[str, Any] = {
    "kl": {"type": "k2", "coefficient": 0.1, "place": "reward"}, "off_policy_mask": 0.01, "squared_log_ratio": 0.01,
    "entropy": {"type": "fixed", "coefficient": 0.02}, "top_entropy": 0.6, "positive_nll": 0.1,
    "correction": {"type": "mask", "low": 0.01, "high": 20.0, "level": "sequence_product"},
}  # fmt: skip
SIZES = ("tokens/computed", "tokens/padding_share", "update/micro_batches", "update/over_limit", "update/flops")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SURROGATES, "kl_cov", "extras"])
def test_any_micro_batches_make_the_same_weights(model_folder: Folder, name: str) -> None:
    """One padded micro-batch = several packed ones with shared prompts, after two updates of two optimiser steps, to
    float32 rounding: sums over completions, covariances and quantiles are those of the step. So are the metrics."""
    algorithm = {**SURROGATES, "kl_cov": KL_COV, "extras": EXTRAS}[name] | {"updates_per_batch": 2}
    folder, results = model_folder(tied=True), []
    for settings in ({"packing": "bucketed", "micro_batch_tokens": 10**5}, {"micro_batch_tokens": 60}):
        learner = make(folder, algorithm, temperature=0.8, **settings)
        metrics = [learner.update(samples_of_groups(10, seed=seed)) for seed in range(2)]
        results.append((weights(learner), metrics))
    assert results[1][1][0]["update/micro_batches"] > results[0][1][0]["update/micro_batches"]
    assert_same(results[0][0], results[1][0], atol=2e-5)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        for key in one.keys() - set(SIZES):
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize("name", SURROGATES)
def test_an_all_zero_advantage_leaves_the_weights_bitwise_unchanged(model_folder: Folder, name: str) -> None:
    """Whatever the surrogate: zero gradient, and AdamW without decay does not move."""
    learner = make(model_folder(tied=False), SURROGATES[name])
    before = weights(learner)
    metrics = learner.update([dataclasses.replace(sample, advantage=0.0) for sample in random_samples(6)])
    assert metrics["update/grad_norm"] == 0.0
    assert all(torch.equal(before[name], value) for name, value in weights(learner).items())


@pytest.mark.slow
def test_the_entropy_bonus_raises_the_entropy(model_folder: Folder) -> None:
    """Alone, without advantages."""
    learner = make(model_folder(tied=True, scale=2.0), {"entropy": {"type": "fixed", "coefficient": 1.0}}, lr=1e-2)
    samples = [dataclasses.replace(sample, advantage=0.0) for sample in random_samples(6)]
    entropies = [learner.update(samples)["policy/entropy"] for _ in range(4)]
    assert entropies == sorted(entropies)
    assert entropies[-1] > entropies[0] + 0.1


def reference(learner: Learner) -> dict[str, Tensor]:
    assert learner.reference is not None
    return {name: p.clone() for name, p in learner.reference.module.model.named_parameters()}


def policy(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.policy.model.named_parameters()}


@pytest.mark.slow
def test_a_copied_reference_follows_every_so_many_steps(model_folder: Folder) -> None:
    """R1's refresh: every 3 optimiser steps with 2 a batch: after the batches that reach 3 and 6, not after 2."""
    kl = {"type": "k3", "coefficient": 0.01, "reference": {"type": "copy", "every": 3}}
    learner = make(model_folder(tied=True), {"kl": kl, "updates_per_batch": 2}, lr=1e-2)
    start, moved = policy(learner), []
    for seed in range(3):
        moved.append(learner.update(random_samples(8, seed=seed))["update/reference_moved"])
        expected = start if seed == 0 else policy(learner)
        assert_same(reference(learner), expected, atol=0.0)
    assert moved == [0.0, 1.0, 1.0]


@pytest.mark.slow
def test_an_averaged_reference_is_the_average(model_folder: Folder) -> None:
    """0.75 of the start and 0.25 of the policy, then 0.75 of that and 0.25 of the next."""
    kl = {"type": "k3", "coefficient": 0.01, "reference": {"type": "average", "every": 1, "alpha": 0.25}}
    learner = make(model_folder(tied=True), {"kl": kl}, lr=1e-2)
    expected = policy(learner)
    for seed in range(2):
        learner.update(random_samples(6, seed=seed))
        expected = {name: 0.75 * expected[name] + 0.25 * new for name, new in policy(learner).items()}
        assert_same(reference(learner), expected, atol=1e-6)


STATEFUL: dict[str, Any] = {
    "kl": {"type": "k3", "coefficient": 0.1, "reference": {"type": "average", "every": 1, "alpha": 0.5}},
    "entropy": {"type": "adaptive", "target": 9.0, "delta": 0.01},
    "surrogate": {"type": "clip_cov", "share": 0.1, "cov_low": -9.0, "cov_high": 9.0},
}


@pytest.mark.slow
def test_reference_and_adaptive_bonus_go_on_bit_by_bit(model_folder: Folder, tmp_path: Path) -> None:
    """4 updates = 2, a checkpoint through files into a new learner, and 2 more."""
    folder = model_folder(tied=True)
    whole, first = make(folder, STATEFUL), make(folder, STATEFUL)
    for step in range(2):
        whole.update(random_samples(6, seed=step))
        first.update(random_samples(6, seed=step))
    first.save_policy(tmp_path / "policy")
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make(folder, STATEFUL)
    second.load_policy(tmp_path / "policy")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(2, 4):
        expected = whole.update(random_samples(6, seed=step))
        assert second.update(random_samples(6, seed=step)) == expected
        assert expected["policy/entropy_coefficient"] == pytest.approx(0.01 * step)
        assert expected["policy/kl"] > 1e-6
    assert_same(reference(second), reference(whole), atol=0.0)


def test_a_checkpoint_without_the_reference_is_refused(model_folder: Folder) -> None:
    folder = model_folder(tied=True)
    state = make(folder, {"kl": {"type": "k3"}}).state_dict()
    with pytest.raises(ValueError, match=r"kl.reference is 'average', but the checkpoint holds no reference"):
        make(folder, STATEFUL).load_state_dict(state)


@pytest.mark.slow
def test_an_optimizer_that_is_reset_starts_each_batch_anew(model_folder: Folder, tmp_path: Path) -> None:
    """Two updates with reset = two learners with one update each; without it, the moments make a difference."""
    folder = model_folder(tied=True)
    ends = []
    for reset in (True, False):
        learner = make(folder, {"reset_optimizer": reset})
        for seed in range(2):
            learner.update(random_samples(6, seed=seed))
        ends.append(weights(learner))
    first, second = make(folder), make(folder)
    first.update(random_samples(6, seed=0))
    first.save_policy(tmp_path / "policy")
    second.load_policy(tmp_path / "policy")
    second.update(random_samples(6, seed=1))
    assert_same(ends[0], weights(second), atol=1e-7)
    assert max(float((ends[1][name] - value).abs().max()) for name, value in ends[0].items()) > 1e-4
