"""On-policy distillation: per-token advantages from a teacher, by hand; a tiny student that follows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlvr.config.algorithm import Algorithm
from rlvr.config.recipe import Model
from rlvr.learn.distill import load_teacher
from rlvr.learn.policy import Policy, PolicyError
from rlvr.learn.update import Learner
from rlvr.records import TrainingSample
from tests.helpers import make_tiny_model
from tests.learn import oracle
from tests.learn.conftest import random_samples
from tests.learn.test_update import make

Folder = Callable[..., str]


def algorithm(teacher: str, **settings: Any) -> dict[str, Any]:
    distillation = {"type": "teacher", "path": teacher} | settings.pop("distillation", {})
    return {"filter": {"type": "keep"}, "distillation": distillation, **settings}


def logprobs(model: Any, sample: TrainingSample, temperature: float) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([sample.ids])).logits[0, :-1] / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(sample.ids)[1:, None]).squeeze(1)


@pytest.mark.slow
def test_the_policy_keeps_what_the_recipe_says_beside_a_teacher(model_folder: Folder) -> None:
    """What the compiler keeps is one setting of the process, which loading the teacher, too, makes."""
    settings = Model(path=model_folder(tied=True), compile=True, gradient_checkpointing=True, kept_activations=0.3)
    policy = Policy.load(settings, head_chunk=64)
    load_teacher(settings, model_folder(tied=True, seed=5), policy)
    assert torch._functorch.config.activation_memory_budget == 0.3


@pytest.mark.slow
@pytest.mark.parametrize("rewards", ["ignore", "add"])
def test_the_gradient_is_that_of_advantages_from_both_models(model_folder: Folder, rewards: str) -> None:
    """At the first update A_t = (A if rewards are added) + 1/2 (log pi_teacher - log pi), and the gradient of the
    clipped surrogate is -A_t at ratio 1; both models at the rollout's temperature, in float64 from their own logits."""
    folder, teacher = model_folder(tied=True), model_folder(tied=True, seed=5)
    samples, temperature = random_samples(5), 0.7
    settings = algorithm(teacher, distillation={"coefficient": 0.5, "rewards": rewards})
    learner = make(folder, settings, temperature=temperature, micro_batch_tokens=40)
    metrics = learner.update(samples)
    student = AutoModelForCausalLM.from_pretrained(folder).double()
    above = AutoModelForCausalLM.from_pretrained(teacher).double()
    weights = oracle.token_weights([s.trained_tokens for s in samples], [s.group for s in samples], "token_mean")
    gaps = []
    for sample, weight in zip(samples, weights, strict=True):
        own, mask = logprobs(student, sample, temperature), torch.tensor(sample.loss_mask[1:])
        gap = (logprobs(above, sample, temperature) - own).detach() * mask
        advantage = 0.5 * gap + (sample.advantage if rewards == "add" else 0.0)
        own.backward(-advantage * mask * weight)
        gaps.append(gap.numpy())
    trained = sum(sample.trained_tokens for sample in samples)
    assert metrics["policy/teacher_kl"] == pytest.approx(-np.concatenate(gaps).sum() / trained, abs=1e-5)
    for name, parameter in learner.policy.model.named_parameters():
        expected = dict(student.named_parameters())[name].grad
        torch.testing.assert_close(parameter.grad, expected.float(), rtol=0, atol=2e-6)


def test_a_teacher_that_is_the_policy_teaches_nothing(model_folder: Folder) -> None:
    """Theorem: equal models, advantages of 0, no gradient, whatever the rewards were."""
    folder = model_folder(tied=False)
    learner = make(folder, algorithm(folder))
    metrics = learner.update(random_samples(5))
    assert metrics["update/grad_norm"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["policy/teacher_kl"] == pytest.approx(0.0, abs=1e-6)


def test_the_advantage_is_fixed_for_all_updates_of_a_batch(model_folder: Folder) -> None:
    """Two epochs: both see the teacher against the policy before the first, so that the metric is the same twice."""
    folder, teacher = model_folder(tied=True), model_folder(tied=True, seed=5)
    once = make(folder, algorithm(teacher)).update(random_samples(5))
    twice = make(folder, algorithm(teacher, epochs=2, ratio={"against": "behaviour"})).update(random_samples(5))
    assert twice["policy/teacher_kl"] == pytest.approx(once["policy/teacher_kl"], abs=1e-6)


@pytest.mark.slow
def test_a_student_follows_its_teacher(model_folder: Folder) -> None:
    """Reinforce on tokens that the student samples anew each step: the reverse KL halves in 40 steps."""
    folder, teacher = model_folder(tied=True), model_folder(tied=True, seed=5, scale=0.5)
    settings = algorithm(teacher, surrogate={"type": "reinforce"})
    learner = make(folder, settings, lr=3e-3, epsilon=1e-8, total=40)
    torch.manual_seed(0)
    distances = [learner.update(sampled(learner))["policy/teacher_kl"] for _ in range(40)]
    assert distances[0] > 0.3
    assert np.mean(distances[-5:]) < distances[0] / 2


def sampled(learner: Learner, count: int = 64, length: int = 8) -> list[TrainingSample]:
    """Completions of the policy itself to a prompt of one random token."""
    ids = torch.randint(3, 97, (count, 1))
    for _ in range(length):
        logits = learner.policy.model(input_ids=ids).logits[:, -1].detach()
        ids = torch.cat([ids, torch.multinomial(torch.softmax(logits, -1), 1)], 1)
    return [
        TrainingSample(ids=tuple(row), loss_mask=(0, *[1] * length), behaviour_logprobs=(0.0,) * (length + 1),
                       advantage=0.0, group=index)
        for index, row in enumerate(ids.tolist())
    ]  # fmt: skip


def test_a_teacher_of_another_vocabulary_is_refused(model_folder: Folder, tmp_path: Path) -> None:
    """By size where a model has no tokenizer, token by token where both have one."""
    small = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    LlamaForCausalLM(small).save_pretrained(tmp_path / "small")
    with pytest.raises(PolicyError, match="has 50 tokens, the policy 97"):
        make(model_folder(tied=True), algorithm(str(tmp_path / "small")))
    ours = make_tiny_model(tmp_path / "ours")
    theirs = make_tiny_model(tmp_path / "theirs")
    text = (theirs / "tokenizer.json").read_text()
    assert '"a"' in text
    (theirs / "tokenizer.json").write_text(text.replace('"a"', '"ä"'))
    with pytest.raises(PolicyError, match="2 tokens have other ids or are missing, 'a' for one"):
        make(str(ours), algorithm(str(theirs)))


def test_slots_that_do_not_go_with_a_teacher_are_refused() -> None:
    with pytest.raises(ValueError, match="filter must be keep with distillation 'teacher', got 'drop'"):
        Algorithm.model_validate({"distillation": {"type": "teacher", "path": "x"}})
