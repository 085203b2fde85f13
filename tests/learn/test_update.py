"""The learner: one golden step against NumPy, and a theorem for every way of computing the same update."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlvr.config.algorithm import Algorithm
from rlvr.config.recipe import LearnerConfig, Model
from rlvr.learn.optimiser_step import NonFiniteError
from rlvr.learn.update import Learner
from rlvr.records import TrainingSample
from tests.learn import oracle
from tests.learn.conftest import random_samples, samples_of_groups

Folder = Callable[..., str]


def make(
    model: str, algorithm: dict[str, Any] | None = None, *, temperature: float = 1.0, total: int = 10, **learner: Any
) -> Learner:
    """A learner; AdamW's epsilon is large, so that its division does not blow rounding errors of tiny gradients up."""
    settings = {"lr": 3e-3, "epsilon": 1e-3, "max_grad_norm": 1e9, **learner}
    return Learner(
        Model(path=model),
        LearnerConfig.model_validate(settings),
        Algorithm.model_validate(algorithm or {}),
        total_updates=total,
        temperature=temperature,
        accelerator=Accelerator(cpu=True),
    )


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.named_weights()}


def gradients(learner: Learner) -> dict[str, Tensor]:
    """Of the last optimiser step."""
    return {name: p.grad.clone() for name, p in learner.policy.model.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# --------------------------------------------------------------------------------------------------------- golden step


AGGREGATIONS = [
    {"type": "token_mean"},
    {"type": "prompt_mean"},
    {"type": "sequence_mean"},
    {"type": "sequence_sum", "length": 20},
]
OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"ratio": {"against": "behaviour"}, "surrogate": {"type": "clip", "low": 0.2, "high": 0.28, "dual": 1.5}},
    {"surrogate": {"type": "reinforce"}, "correction": {"type": "truncate", "cap": 1.5}},
    {"correction": {"type": "mask", "low": 0.5, "high": 1.5}, "kl": {"type": "k3", "coefficient": 0.1}},
]


def expected_gradient(
    folder: str, samples: list[TrainingSample], algorithm: dict[str, Any], temperature: float
) -> dict[str, Tensor]:
    """The gradient of the first update: the derivative by each log-probability in NumPy, by hand, and from there on to
    the weights by autograd through the model's own logits, one sequence at a time, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    surrogate = algorithm.get("surrogate", {"type": "clip"})
    correct = algorithm.get("correction", {"type": "none"})
    aggregation = algorithm["aggregation"]
    per_token = oracle.token_weights(
        [s.trained_tokens for s in samples],
        [s.group for s in samples],
        aggregation["type"],
        aggregation.get("length", 1),
    )
    for sample, weight in zip(samples, per_token, strict=True):
        logits = model(input_ids=torch.tensor([sample.ids])).logits[0, :-1] / temperature
        logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(sample.ids)[1:, None]).squeeze(1)
        new, behaviour = logprobs.detach().numpy(), np.array(sample.behaviour_logprobs[1:])
        old = behaviour if algorithm.get("ratio", {}).get("against") == "behaviour" else new
        advantage = np.full_like(new, sample.advantage)
        if surrogate["type"] == "clip":
            low, high, dual = surrogate.get("low", 0.2), surrogate.get("high", 0.2), surrogate.get("dual")
            _, slope = oracle.clip(new, old, advantage, low, high, dual)
        else:
            _, slope = oracle.reinforce(new, advantage)
        bounds = {key: value for key, value in correct.items() if key != "type"}
        slope = slope * oracle.correction(old, behaviour, correct["type"], **bounds)
        if "kl" in algorithm:  # the reference is the starting policy itself: k3 and its derivative are 0 here
            slope = slope + algorithm["kl"]["coefficient"] * oracle.k3(new, new)[1]
        slope = slope * weight * np.array(sample.loss_mask[1:])
        logprobs.backward(torch.tensor(slope))
    return {name: p.grad.float() for name, p in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=lambda a: a["type"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=["grpo", "behaviour", "reinforce", "icepop_kl"])
def test_the_gradient_of_a_step_equals_the_one_by_hand(
    model_folder: Folder, aggregation: dict[str, Any], objective: dict[str, Any]
) -> None:
    """Golden step: masks, alignment, temperature, denominators, correction and surrogate, all in one number each."""
    folder, samples = model_folder(tied=True), random_samples(7, mismatch=1.0)
    algorithm = objective | {"aggregation": aggregation}
    learner = make(folder, algorithm, temperature=0.7, micro_batch_tokens=40)
    learner.update(samples)
    expected = expected_gradient(folder, samples, algorithm, 0.7)
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-3
    assert_same(gradients(learner), expected, atol=2e-6 * max(1.0, largest))


@pytest.mark.slow
def test_adamw_steps_as_torch_does_on_that_gradient(model_folder: Folder, tied: bool) -> None:
    """Weights after the step equal torch's plain AdamW on the oracle's gradient, clipped by hand; norms never decay."""
    folder, samples = model_folder(tied=tied), random_samples(7)
    learner = make(folder, {}, max_grad_norm=0.5, weight_decay=0.1, schedule={"warmup_steps": 2})
    metrics = learner.update(samples)
    model = AutoModelForCausalLM.from_pretrained(folder)
    gradient = expected_gradient(folder, samples, {"aggregation": {"type": "token_mean"}}, 1.0)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
    assert norm > 0.5
    assert metrics["update/grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, p in model.named_parameters():
        p.grad = gradient[name] * 0.5 / norm
    named = list(model.named_parameters())
    torch.optim.AdamW(
        [
            {"params": [p for _, p in named if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for _, p in named if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=1.5e-3, betas=(0.9, 0.95), eps=1e-3,
    ).step()  # fmt: skip
    assert metrics["update/lr"] == 1.5e-3
    assert_same(weights(learner), {name: p.detach() for name, p in named}, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- equivalence

EVERYTHING: dict[str, Any] = {
    "updates_per_batch": 2,
    "epochs": 2,
    "kl": {"type": "k3", "coefficient": 0.05},
    "correction": {"type": "truncate"},
    "aggregation": {"type": "prompt_mean"},
}


SIZES = ("tokens/computed", "tokens/padding_share", "update/micro_batches", "update/over_limit", "update/flops")


def five_steps(folder: str, **learner: Any) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    one = make(folder, EVERYTHING, temperature=0.8, total=20, max_grad_norm=1.0, **learner)
    metrics = [one.update(samples_of_groups(10, seed=step)) for step in range(5)]
    return weights(one), metrics


@pytest.mark.slow
def test_any_micro_batches_and_any_packing_make_the_same_weights(model_folder: Folder, tied: bool) -> None:
    """One micro-batch = many = one a sample = packed = padded = prompts once, after 5 steps of 4 updates each, to
    float32 rounding; so do the metrics that are not about sizes."""
    folder = model_folder(tied=tied)
    expected, reference = five_steps(folder, micro_batch_tokens=100_000, packing="bucketed")
    start = weights(make(folder))
    assert max(float((expected[n] - start[n]).abs().max()) for n in start) > 1e-2
    for settings in (
        {"micro_batch_tokens": 60, "packing": "bucketed"},
        {"micro_batch_tokens": 1, "packing": "bucketed"},
        {"micro_batch_tokens": 100_000, "packing": "shared"},
        {"micro_batch_tokens": 60, "packing": "shared", "head_chunk": 3},
        {"micro_batch_tokens": 1, "packing": "shared"},
        {"micro_batch_tokens": 100_000, "packing": "packed"},
        {"micro_batch_tokens": 60, "packing": "packed", "head_chunk": 3},
    ):
        ours, metrics = five_steps(folder, **settings)
        assert_same(ours, expected, atol=2e-5)
        for mine, other in zip(metrics, reference, strict=True):
            for key, value in other.items():
                if key not in SIZES:
                    assert mine[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


@pytest.mark.slow
def test_the_order_of_samples_does_not_matter(model_folder: Folder) -> None:
    folder, samples = model_folder(tied=True), random_samples(9)
    results = []
    for order in (samples, samples[::-1]):
        learner = make(folder, micro_batch_tokens=50)
        learner.update(order)
        results.append(weights(learner))
    assert_same(results[0], results[1], atol=1e-6)


@pytest.mark.slow
def test_an_update_split_in_two_equals_two_updates_when_ratios_stay_inside_the_clip(model_folder: Folder) -> None:
    """updates_per_batch 2 on groups {0,1} and {2,3} = two updates of one each, against the log-probabilities before the
    first, which a very wide clip turns into importance weighting: checked by the ratio's own value."""
    folder, samples = model_folder(tied=False), random_samples(12)
    wide = {"surrogate": {"type": "clip", "low": 100.0, "high": 100.0}, "ratio": {"against": "behaviour"}}
    split = make(folder, wide | {"updates_per_batch": 2})
    split.update(samples)
    twice = make(folder, wide)
    for half in ((0, 1), (2, 3)):
        twice.update([sample for sample in samples if sample.group in half])
    assert_same(weights(split), weights(twice), atol=1e-6)
    assert split.updates == twice.updates == 2


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["shared", "packed", "bucketed"])
def test_kept_logprobs_are_those_before_the_update(model_folder: Folder, packing: str) -> None:
    """Of the samples asked for, each trained token's, as `logprobs` has them beforehand. With several optimiser steps a
    batch: all of them where ratios need them all, else those of the first step, which alone sees that policy."""
    folder, samples = model_folder(tied=True), random_samples(12)
    for against, expected in (("recomputed", {0, 4, 9, 11}), ("behaviour", {0, 4, 9, 11} & set(first_half(samples)))):
        algorithm = {"updates_per_batch": 2, "ratio": {"against": against}}
        learner = make(folder, algorithm, micro_batch_tokens=50, packing=packing)
        before = learner.logprobs([sample.ids for sample in samples])
        learner.update(samples, keep={0, 4, 9, 11})
        assert set(learner.logged_logprobs) == expected
        for index, values in learner.logged_logprobs.items():
            trained = [value for value, mask in zip(before[index], samples[index].loss_mask, strict=True) if mask]
            assert values == pytest.approx(trained, abs=1e-4)
        learner.update(samples)
        assert learner.logged_logprobs == {}


def first_half(samples: list[TrainingSample]) -> list[int]:
    """Samples of the first of two optimiser steps: the smaller half of the groups."""
    groups = sorted({sample.group for sample in samples})
    return [index for index, sample in enumerate(samples) if sample.group in groups[: (len(groups) + 1) // 2]]


def test_the_first_ratio_is_exactly_one_and_later_ones_are_against_the_policy_before(model_folder: Folder) -> None:
    """One update: ratio 1 without a pass for it. Two epochs: the second sees the policy after one update."""
    folder, samples = model_folder(tied=True), random_samples(8)
    assert make(folder).update(samples)["policy/ratio_max"] == 1.0
    learner = make(folder, {"epochs": 2}, lr=1e-2)
    before = learner.logprobs([samples[0].ids])
    metrics = learner.update(samples)
    assert metrics["policy/ratio_max"] > 1.01
    assert metrics["update/count"] == 2
    assert before != learner.logprobs([samples[0].ids])


def test_an_all_zero_advantage_leaves_the_weights_bitwise_unchanged(model_folder: Folder, tied: bool) -> None:
    """Zero loss, zero gradient, and AdamW without decay does not move."""
    learner = make(model_folder(tied=tied), {"correction": {"type": "truncate"}})
    before = weights(learner)
    silent = [dataclasses.replace(sample, advantage=0.0) for sample in random_samples(6)]
    metrics = learner.update(silent)
    assert metrics["update/grad_norm"] == 0.0
    after = weights(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_nothing_to_train_is_counted_and_changes_nothing(model_folder: Folder) -> None:
    """No groups left after the filter, or all completions masked: no step, but the schedule's clock goes on."""
    learner = make(model_folder(tied=True), {"updates_per_batch": 2}, schedule={"type": "linear"}, total=4)
    before = weights(learner)
    metrics = learner.update([])
    assert (metrics["update/empty"], metrics["update/count"]) == (2, 0)
    assert "update/loss" not in metrics
    masked = [TrainingSample(ids=(3, 4), loss_mask=(0, 0), behaviour_logprobs=(0.0, 0.0), advantage=1.0, group=0)]
    metrics = learner.update(masked)
    assert learner.updates == 4
    assert metrics["update/lr"] == 0.0
    assert all(torch.equal(before[name], value) for name, value in weights(learner).items())


def test_the_learner_climbs(model_folder: Folder) -> None:
    """Positive advantages raise and negative ones lower the log-probability of what was sampled."""
    learner = make(model_folder(tied=True), {"surrogate": {"type": "reinforce"}}, lr=1e-2)
    ids = [(5, 6, 7, 8), (5, 6, 9, 10)]
    samples = [
        TrainingSample(ids=one, loss_mask=(0, 0, 1, 1), behaviour_logprobs=(0.0, 0.0, -4.0, -4.0), advantage=a, group=0)
        for one, a in zip(ids, (1.0, -1.0), strict=True)
    ]
    before = [sum(row[2:]) for row in learner.logprobs(ids)]
    for _ in range(3):
        learner.update(samples)
    after = [sum(row[2:]) for row in learner.logprobs(ids)]
    assert after[0] > before[0] + 0.5
    assert after[1] < before[1] - 0.5


# -------------------------------------------------------------------------------------------------------------- metrics


def test_metrics_by_hand(model_folder: Folder) -> None:
    """Entropy, mismatch, effective sample size and what a correction did, from the policy's own log-probabilities."""
    folder, samples = model_folder(tied=True), random_samples(6, mismatch=1.0)
    learner = make(folder, {"correction": {"type": "mask", "low": 0.8, "high": 1.5}}, micro_batch_tokens=30)
    logprobs = learner.logprobs([sample.ids for sample in samples])
    delta = np.array(
        [
            new - old
            for sample, row in zip(samples, logprobs, strict=True)
            for new, old, m in zip(row, sample.behaviour_logprobs, sample.loss_mask, strict=True)
            if m
        ]
    )
    rho = np.exp(delta)
    metrics = learner.update(samples)
    assert metrics["mismatch/abs"] == pytest.approx(np.abs(delta).mean(), rel=1e-5)
    assert metrics["mismatch/kl"] == pytest.approx((rho - delta - 1).mean(), rel=1e-5)
    assert metrics["mismatch/ratio_max"] == pytest.approx(rho.max(), rel=1e-5)
    assert metrics["mismatch/ess"] == pytest.approx(rho.sum() ** 2 / (len(rho) * (rho**2).sum()), rel=1e-5)
    assert metrics["mismatch/masked"] == pytest.approx(((rho < 0.8) | (rho > 1.5)).mean())
    assert metrics["tokens/trained"] == len(delta)
    assert metrics["update/micro_batches"] > 1
    assert metrics["policy/clip_fraction"] == 0.0
    assert 0 < metrics["policy/entropy"] < math.log(97)


@pytest.mark.slow
def test_phases_are_told_to_the_clock(model_folder: Folder) -> None:
    seen: list[str] = []

    class Listener:
        @contextmanager
        def phase(self, name: str):  # type: ignore[no-untyped-def]  # the test's own
            seen.append(name)
            yield

    make(model_folder(tied=True), EVERYTHING).update(random_samples(8), clock=Listener())
    assert seen[:3] == ["pack", "old_logprobs", "ref_logprobs"]
    assert seen[3:] == ["forward_backward", "optimizer"] * 4


def test_samples_over_the_limit_are_counted(model_folder: Folder) -> None:
    samples = random_samples(8)
    metrics = make(model_folder(tied=True), micro_batch_tokens=12).update(samples)
    assert metrics["update/over_limit"] == sum(len(s.ids) - 1 > 12 for s in samples if s.trained_tokens) > 0


# ------------------------------------------------------------------------------------------------------------- failures


def poison(learner: Learner) -> None:
    with torch.no_grad():
        learner.policy.model.get_parameter("model.norm.weight")[0] = float("inf")


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what(model_folder: Folder) -> None:
    learner = make(model_folder(tied=True))
    poison(learner)
    before = weights(learner)
    with pytest.raises(
        NonFiniteError,
        match=r"optimiser step 1: loss is nan.*weights that are not finite: model.norm.weight.*learner.lr",
    ):
        learner.update(random_samples(4))
    assert all(torch.equal(before[name], value) for name, value in weights(learner).items())


def test_a_loss_that_is_not_finite_is_left_out_and_counted_if_asked(model_folder: Folder) -> None:
    learner = make(model_folder(tied=True), non_finite="skip")
    good = copy.deepcopy(learner.policy.model.get_parameter("model.norm.weight").data)
    poison(learner)
    before = weights(learner)
    metrics = learner.update(random_samples(4))
    assert (metrics["update/non_finite"], metrics["update/count"]) == (1, 0)
    assert all(torch.equal(before[name], value) for name, value in weights(learner).items())
    learner.policy.model.get_parameter("model.norm.weight").data.copy_(good)
    assert learner.update(random_samples(4))["update/count"] == 1


def test_bad_settings_are_refused(model_folder: Folder) -> None:
    folder = model_folder(tied=True)
    with pytest.raises(ValueError, match="rank 0 must pass the samples"):
        make(folder).update(None)


# ---------------------------------------------------------------------------------------- weights, logprobs, SFT, state


def test_named_weights_are_the_folders_and_a_tied_head_comes_once(model_folder: Folder, tied: bool) -> None:
    folder = model_folder(tied=tied)
    names = [name for name, _ in make(folder).named_weights()]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert names == [name for name, _ in model.named_parameters()]
    assert ("lm_head.weight" in names) is not tied


@pytest.mark.slow
def test_scores_are_the_models_own_at_temperature_one(model_folder: Folder, tied: bool) -> None:
    folder, sequences = model_folder(tied=tied), [[5, 6, 7, 2], [8], [9, 2, 2, 2, 10, 11], []]
    model = AutoModelForCausalLM.from_pretrained(folder)
    for packing in ("shared", "bucketed", "packed"):
        logprobs = make(folder, temperature=0.5, packing=packing).logprobs(sequences)
        assert [len(row) for row in logprobs] == [4, 1, 6, 0]
        for ids, row in zip(sequences, logprobs, strict=True):
            if len(ids) > 1:
                logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
                expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[1:, None]).squeeze(1)
                torch.testing.assert_close(torch.tensor(row[1:]), expected, rtol=0, atol=1e-5)
            assert row[:1] == [0.0] * len(row[:1])
        assert make(folder).logprobs([]) == []


@pytest.mark.slow
def test_supervised_fine_tuning_is_the_mean_negative_log_likelihood(model_folder: Folder) -> None:
    """At temperature 1 whatever rollouts use, over the trained tokens; its loss before the step by the logprobs."""
    learner = make(model_folder(tied=True), temperature=0.3, micro_batch_tokens=40, lr=1e-2)
    samples = random_samples(8)
    logprobs = learner.logprobs([s.ids for s in samples])
    picked = [lp for s, row in zip(samples, logprobs, strict=True) for lp, m in zip(row, s.loss_mask, strict=True) if m]
    losses = [learner.sft_update(samples)["update/loss"] for _ in range(4)]
    assert losses[0] == pytest.approx(-np.mean(picked), rel=1e-5)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.slow
def test_saved_and_restored_it_goes_on_bit_by_bit(model_folder: Folder, tmp_path: Path, tied: bool) -> None:
    """4 updates = 2, a checkpoint through files into a new learner, and 2 more; the reference stays the start."""
    folder = model_folder(tied=tied)
    algorithm = {"kl": {"type": "k3", "coefficient": 0.1}}
    whole = make(folder, algorithm, schedule={"type": "cosine"})
    first = make(folder, algorithm, schedule={"type": "cosine"})
    for step in range(2):
        whole.update(random_samples(6, seed=step))
        first.update(random_samples(6, seed=step))
    first.save_policy(tmp_path / "policy")
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make(folder, algorithm, schedule={"type": "cosine"})
    second.load_policy(tmp_path / "policy")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(2, 4):
        assert whole.update(random_samples(6, seed=step)) == second.update(random_samples(6, seed=step))
    ours, theirs = weights(whole), weights(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_of_another_number_of_processes_leaves_the_random_states_alone(model_folder: Folder) -> None:
    """They are those of ranks; the rest of the state is whole and is taken."""
    learner = make(model_folder(tied=True))
    learner.update(random_samples(6))
    state = learner.state_dict()
    state["random"] = state["random"] * 2
    other = make(model_folder(tied=True))
    torch.manual_seed(17)
    before = torch.get_rng_state()
    other.load_state_dict(state)
    assert torch.equal(torch.get_rng_state(), before)
    assert other.updates == learner.updates > 0


# --------------------------------------------------------------------------- what no test noticed while it was broken


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(model_folder: Folder) -> None:
    learner = make(model_folder(tied=True))
    learner.policy.model.get_parameter("model.norm.weight").register_hook(lambda gradient: gradient * math.inf)
    before = weights(learner)
    with pytest.raises(NonFiniteError, match=r"optimiser step 1: grad_norm is (inf|nan); .*not finite: model.norm.wei"):
        learner.update(random_samples(4))
    assert all(torch.equal(before[name], value) for name, value in weights(learner).items())


@pytest.mark.slow
def test_each_optimiser_step_of_a_batch_has_a_number_of_its_own_for_its_draws(
    model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """clip_cov draws by the number of the optimiser step; two in a batch must not draw alike."""
    algorithm = {"surrogate": {"type": "clip_cov", "share": 0.5, "cov_low": -9.0, "cov_high": 9.0}}
    learner = make(model_folder(tied=True), algorithm | {"updates_per_batch": 2})
    numbers, statistics = [], learner.objective.statistics

    def watched(batches: Any, update: int) -> Any:
        numbers.append(update)
        return statistics(batches, update)

    monkeypatch.setattr(learner.objective, "statistics", watched)
    for _ in range(2):
        learner.update(random_samples(8))
    assert numbers == [0, 1, 2, 3]


def test_a_restored_learner_has_the_random_states_of_the_saved_one(model_folder: Folder) -> None:
    """Python's, NumPy's and torch's: after each is drawn from, the state brings back the numbers that were to come."""
    learner = make(model_folder(tied=True))

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    state = learner.state_dict()
    expected = draw()
    assert draw() != expected
    learner.load_state_dict(state)
    assert draw() == expected
