"""DPO: its loss by hand, its gradient against NumPy, pairs that stay together, and a tiny model that learns."""

from __future__ import annotations

import dataclasses
import math
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
from rlvr.learn.meter import Meter
from rlvr.learn.objective import TokenBatch
from rlvr.learn.packing import Mode
from rlvr.learn.preference import DirectPreference, dpo_loss, pack_pairs_for_ranks
from rlvr.learn.update import Learner
from rlvr.problems.examples import Pair
from rlvr.records import TrainingSample
from rlvr.run.dpo import prefer, with_reference
from tests.learn.conftest import tiny_llama

MODES: list[Mode] = ["shared", "bucketed", "packed"]


def pairs(count: int, seed: int = 0) -> list[Pair]:
    """Chosen and rejected completions of other lengths to common prompts, with made-up reference log-probabilities."""
    rng = np.random.default_rng(seed)
    found = []
    for group in range(count):
        prompt = rng.integers(3, 97, rng.integers(2, 6)).tolist()
        two = []
        for advantage in (1.0, -1.0):
            completion = [*rng.integers(3, 97, rng.integers(1, 9)).tolist(), 2]
            two.append(
                TrainingSample(
                    ids=(*prompt, *completion),
                    loss_mask=(0,) * len(prompt) + (1,) * len(completion),
                    behaviour_logprobs=(0.0,) * len(prompt) + tuple(rng.normal(-4.5, 0.3, len(completion)).tolist()),
                    advantage=advantage,
                    group=group,
                )
            )
        found.append((two[0], two[1]))
    return found


def flat(of: list[Pair]) -> list[TrainingSample]:
    return [sample for pair in of for sample in pair]


def make(folder: Path, **learner: Any) -> Learner:
    if not folder.exists():
        tiny_llama(tied=True).save_pretrained(folder)
    settings = {"lr": 3e-3, "epsilon": 1e-3, "max_grad_norm": 1e9, **learner}
    return Learner(
        Model(path=str(folder)), LearnerConfig.model_validate(settings), Algorithm(), total_updates=10,
        temperature=1.0, accelerator=Accelerator(cpu=True),
    )  # fmt: skip


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in learner.policy.model.named_parameters() if p.grad is not None}


def test_the_loss_of_a_pair() -> None:
    """Margin 0: log 2. Margin log 3: sigmoid is 3/4, so -log(3/4), and with smoothing 1/4 a quarter of -log(1/4)."""
    margins = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    assert dpo_loss(margins, 0.0).tolist() == pytest.approx([math.log(2), math.log(4 / 3)], abs=1e-15)
    expected = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert dpo_loss(margins, 0.25).tolist() == pytest.approx([math.log(2), expected], abs=1e-15)


def test_the_objective_by_hand() -> None:
    """One pair, beta 1/2: the chosen completion gained 1 + 2 = 3 nats over the reference, the rejected one 1, so margin
    1/2 * (3 - 1) = 1, and loss log(1 + 1/e)."""
    chosen = TrainingSample(
        ids=(5, 6, 7), loss_mask=(0, 1, 1), behaviour_logprobs=(0.0, -3.0, -4.0), advantage=1.0, group=0
    )
    rejected = TrainingSample(ids=(5, 8), loss_mask=(0, 1), behaviour_logprobs=(0.0, -2.0), advantage=-1.0, group=0)
    ((batch,),) = pack_pairs_for_ranks([chosen, rejected], 99, "packed", ranks=1)
    gain = {6: 1.0, 7: 2.0, 8: 1.0}
    gained = torch.tensor([[gain[int(token)] for token in batch.targets[0]]], dtype=torch.float64)
    logprobs = (batch.behaviour_logprobs.double() + gained).requires_grad_()
    meter = Meter(torch.device("cpu"))
    tokens = TokenBatch(batch=batch, logprobs=logprobs, entropy=torch.zeros_like(logprobs), is_first=True)
    loss = DirectPreference(0.5, 0.0).loss(tokens, meter)
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-12)
    loss.backward()
    slope = 0.5 / (1 + math.e)  # beta * sigmoid(-margin) on each chosen token, the opposite on the rejected one
    signs = {6: -1.0, 7: -1.0, 8: 1.0}
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([slope * signs[int(t)] for t in batch.targets[0]], abs=1e-12)
    totals = meter.totals()
    assert (totals["pairs"], totals["dpo/margin"], totals["dpo/accuracy"]) == (1.0, pytest.approx(1.0), 1.0)
    assert (totals["dpo/chosen"], totals["dpo/rejected"]) == (pytest.approx(1.5), pytest.approx(0.5))


@pytest.mark.slow
def test_the_gradient_of_a_step_is_the_one_by_numpy(tmp_path: Path) -> None:
    """The derivative by each sequence's log-probability by hand, from there on through the model's own logits, one
    sequence at a time, in float64; beta 0.3, smoothing 0.1."""
    learner, of = make(tmp_path / "model", micro_batch_tokens=30), pairs(5)
    metrics = learner.preference_update(flat(of), DirectPreference(0.3, 0.1))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").double()
    sums = []
    for sample in flat(of):
        logits = model(input_ids=torch.tensor([sample.ids])).logits[0, :-1]
        logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(sample.ids)[1:, None]).squeeze(1)
        sums.append((logprobs * torch.tensor(sample.loss_mask[1:])).sum())
    value = np.array([float(one.detach()) for one in sums]) - np.array([sum(s.behaviour_logprobs) for s in flat(of)])
    margin = 0.3 * (value[::2] - value[1::2])
    sigmoid = 1 / (1 + np.exp(-margin))
    losses = -0.9 * np.log(sigmoid) - 0.1 * np.log(1 - sigmoid)
    slope = (-0.9 * (1 - sigmoid) + 0.1 * sigmoid) * 0.3 / 5
    for place, one in enumerate(sums):
        (one * float(slope[place // 2]) * (1 if place % 2 == 0 else -1)).backward()
    assert metrics["update/loss"] == pytest.approx(losses.mean(), abs=1e-5)
    assert metrics["dpo/margin"] == pytest.approx(margin.mean(), abs=1e-5)
    assert metrics["dpo/accuracy"] == (margin > 0).mean()
    found = gradients(learner)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad.float(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_update_does_not_depend_on_micro_batches_or_packing(tmp_path: Path) -> None:
    """Theorem: any limit and any mode give the same gradient and loss, since no pair is split."""
    of, expected = flat(pairs(7)), None
    for mode, limit in [("packed", 10_000), ("packed", 25), ("shared", 25), ("bucketed", 25), ("shared", 1)]:
        learner = make(tmp_path / "model", packing=mode, micro_batch_tokens=limit)
        metrics = learner.preference_update(of, DirectPreference(0.3, 0.0))
        found = (metrics["update/loss"], gradients(learner))
        if expected is None:
            expected = found
        assert found[0] == pytest.approx(expected[0], abs=1e-6)
        for name, value in found[1].items():
            torch.testing.assert_close(value, expected[1][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("limit", [1, 25, 60, 10_000])
def test_pairs_are_never_split_and_none_is_lost(mode: Mode, ranks: int, limit: int) -> None:
    of = flat(pairs(7))
    packed = pack_pairs_for_ranks(of, limit, mode, ranks=ranks)
    assert len({len(batches) for batches in packed}) == 1
    batches = [batch for mine in packed for batch in mine]
    assert sorted(index for batch in batches for index in batch.index) == list(range(14))
    for batch in batches:
        assert {index // 2 for index in batch.index if index % 2 == 0} == {i // 2 for i in batch.index if i % 2}
        assert batch.tokens <= limit or len(batch.index) <= 2
        if batch.index:
            assert float(batch.token_weight.max()) == pytest.approx(1 / 7)


def test_what_are_no_pairs_is_refused() -> None:
    (chosen, rejected), (other, _) = pairs(2)
    with pytest.raises(ValueError, match="come in pairs of one group"):
        pack_pairs_for_ranks([chosen, other], 99, "packed", ranks=1)
    with pytest.raises(ValueError, match="come in pairs of one group"):
        pack_pairs_for_ranks([chosen], 99, "packed", ranks=1)
    empty = dataclasses.replace(rejected, loss_mask=(0,) * len(rejected.ids))
    with pytest.raises(ValueError, match="at least one trained token"):
        pack_pairs_for_ranks([chosen, empty], 99, "packed", ranks=1)


@pytest.mark.slow
def test_the_reference_is_the_starting_policy(tmp_path: Path) -> None:
    """Before the first step every margin is 0 and the loss log 2; only trained tokens have a log-probability."""
    learner = make(tmp_path / "model")
    known = with_reference(learner, pairs(3))
    assert all(
        lp == 0.0 for one in flat(known) for lp, m in zip(one.behaviour_logprobs, one.loss_mask, strict=True) if not m
    )
    metrics = learner.preference_update(flat(known), DirectPreference(0.5, 0.0))
    assert metrics["update/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["dpo/margin"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.slow
def test_a_tiny_model_learns_to_prefer(tmp_path: Path) -> None:
    """Eight pairs, 30 steps: every chosen completion ends above its rejected one, by a margin that grows."""
    learner = make(tmp_path / "model", lr=1e-2)
    seen: list[dict[str, float]] = []
    objective = DirectPreference(0.5, 0.0)
    prefer(learner, objective, pairs(8), steps=30, batch_size=8, seed=0, report=lambda _, metrics: seen.append(metrics),
           save_to=tmp_path / "policy")  # fmt: skip
    assert seen[0]["update/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert seen[-1]["dpo/accuracy"] == 1.0
    assert seen[-1]["update/loss"] < 0.1
    assert seen[-1]["dpo/chosen"] > seen[-1]["dpo/rejected"]
    assert (tmp_path / "policy" / "model.safetensors").exists()
