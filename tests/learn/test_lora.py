"""Adapters: they start as nothing, learn as the algebra says, and the engine gets the weights that they make."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlvr.config import Recipe
from rlvr.config.algorithm import Algorithm
from rlvr.config.recipe import LearnerConfig, Lora, Model
from rlvr.engines.hf import HfEngine
from rlvr.learn.lora import is_adapter
from rlvr.learn.policy import PolicyError
from rlvr.learn.update import Learner
from rlvr.records import TrainingSample
from tests.builders import recipe_data
from tests.helpers import make_tiny_model
from tests.learn.conftest import random_samples, samples_of_groups
from tests.learn.test_update import gradients, make, weights

Folder = Callable[..., str]
RANK, ALPHA = 3, 6.0


def make_adapted(
    folder: str, algorithm: dict[str, Any] | None = None, *, dtype: str = "float32", **settings: Any
) -> Learner:
    """A learner of adapters, as `tests.learn.test_update.make` makes one of all weights."""
    return Learner(
        Model.model_validate({"path": folder, "dtype": dtype, "lora": {"rank": RANK, "alpha": ALPHA}}),
        LearnerConfig.model_validate({"lr": 1e-2, "epsilon": 1e-3, "max_grad_norm": 1e9, **settings}),
        Algorithm.model_validate(algorithm or {}),
        total_updates=10,
        temperature=1.0,
        accelerator=Accelerator(cpu=True),
    )


def adapters(learner: Learner) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in learner.policy.model.named_parameters() if is_adapter(n)}


SEQUENCES = [[5, 6, 7, 8, 9], [20, 30, 40, 2]]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_untrained_adapters_are_the_base_model_to_the_last_bit(model_folder: Folder, tied: bool, dtype: str) -> None:
    """B = 0: log-probabilities and merged weights are exactly the base model's, under its names and in its order."""
    folder = model_folder(tied=tied)
    learner = make_adapted(folder, dtype=dtype)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    sent = list(learner.named_weights())
    assert [name for name, _ in sent] == [name for name, _ in base.named_parameters()]
    assert all(torch.equal(tensor, base.get_parameter(name)) for name, tensor in sent)
    assert all(p.dtype == torch.float32 for p in adapters(learner).values())
    plain = Learner(
        Model.model_validate({"path": folder, "dtype": dtype}), learner.config, Algorithm(), total_updates=1,
        temperature=1.0, accelerator=learner.accelerator,
    )  # fmt: skip
    assert learner.logprobs(SEQUENCES) == plain.logprobs(SEQUENCES)


@pytest.mark.slow
def test_the_gradient_of_adapters_is_the_full_gradient_projected(model_folder: Folder, tied: bool) -> None:
    """With W' = W + s B A and G = d loss / d W': d B = s G A^T, d A = s B^T G. G is the gradient of a learner of all
    weights that stands where the adapters have led (the second update of adapters, whose B is not 0)."""
    folder = model_folder(tied=tied)
    adapted = make_adapted(folder)
    adapted.update(random_samples(8))
    before, moved = adapters(adapted), weights(adapted)
    full = make(folder)
    full.backend.load_parameters(full.policy, moved)
    samples = random_samples(8, seed=1)
    adapted.update(samples)
    full.update(samples)
    mine, theirs = gradients(adapted), gradients(full)
    assert mine.keys() == before.keys()
    scaling = ALPHA / RANK
    for name in (n for n in mine if ".lora_B." in n):
        layer = name.removesuffix(".lora_B.default.weight")
        a, b, g = before[name.replace("lora_B", "lora_A")], before[name], theirs[f"{layer}.weight"]
        assert float(b.abs().max()) > 1e-3
        torch.testing.assert_close(mine[name], scaling * g @ a.t(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(mine[name.replace("lora_B", "lora_A")], scaling * b.t() @ g, rtol=1e-3, atol=1e-5)


def test_only_adapters_train(model_folder: Folder, tied: bool) -> None:
    """Frozen weights stay bitwise, the optimizer holds states of adapters alone, and the merged weights have moved."""
    folder = model_folder(tied=tied)
    learner = make_adapted(folder, weight_decay=0.1)
    frozen = {n: p.clone() for n, p in learner.policy.model.named_parameters() if not is_adapter(n)}
    learner.update(random_samples(8))
    assert all(torch.equal(learner.policy.model.get_parameter(n), p) for n, p in frozen.items())
    assert len(learner.backend.optimizer_state()) == len(adapters(learner)) == 2 * 7 * 2  # A and B of 7 layers, twice
    base = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    changed = {name for name, tensor in learner.named_weights() if not torch.equal(tensor, base[name])}
    assert changed == {name for name in base if "_proj" in name}


@pytest.mark.slow
def test_any_micro_batches_packing_and_checkpointing_make_the_same_adapters(model_folder: Folder, tied: bool) -> None:
    """Three updates against a KL term whose reference is the policy without adapters: also while layers are recomputed
    in the backward pass, which must then see the adapters again."""
    folder, algorithm = model_folder(tied=tied), {"kl": {"type": "k3", "coefficient": 0.5}}

    def trained(lora: Lora, gradient_checkpointing: bool = False, **settings: Any) -> dict[str, Tensor]:
        learner = Learner(
            Model(path=folder, lora=lora, gradient_checkpointing=gradient_checkpointing),
            LearnerConfig.model_validate({"lr": 1e-2, "epsilon": 1e-3, **settings}),
            Algorithm.model_validate(algorithm), total_updates=10, temperature=1.0, accelerator=Accelerator(cpu=True),
        )  # fmt: skip
        for step in range(3):
            learner.update(samples_of_groups(8, seed=step))
        return adapters(learner)

    lora = Lora(rank=RANK, alpha=ALPHA)
    whole = trained(lora)
    for other in (
        trained(lora, packing="bucketed", micro_batch_tokens=60),
        trained(lora, packing="packed", micro_batch_tokens=90),
        trained(lora, gradient_checkpointing=True, micro_batch_tokens=60),
    ):
        for name, tensor in whole.items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_the_engine_has_the_learners_log_probabilities_after_training(tmp_path: Path) -> None:
    """Merged weights, sent by name through the engine's own checks: 1e-5 apart in float32, where training has moved
    them by more than 0.01."""
    folder = make_tiny_model(tmp_path / "model")
    learner = make_adapted(str(folder))
    start = learner.logprobs(SEQUENCES)
    samples = [
        TrainingSample(ids=(5, 6, 7, 8 + i), loss_mask=(0, 0, 1, 1), behaviour_logprobs=(0.0, 0.0, -4.0, -4.0),
                       advantage=1.0 - i, group=0)
        for i in range(3)
    ]  # fmt: skip
    for _ in range(3):
        learner.update(samples)
    ours = learner.logprobs(SEQUENCES)

    async def theirs() -> list[list[float]]:
        engine = HfEngine(folder)
        await engine.start()
        await engine.load_weights(learner.named_weights(), 1)
        return await engine.logprobs(SEQUENCES)

    found = asyncio.run(theirs())
    assert max(abs(a - b) for x, y in zip(ours, start, strict=True) for a, b in zip(x, y, strict=True)) > 1e-2
    for mine, other in zip(ours, found, strict=True):
        assert mine[1:] == pytest.approx(other[1:], abs=1e-5)


@pytest.mark.slow
def test_the_reference_of_a_kl_term_is_the_policy_without_adapters(model_folder: Folder) -> None:
    """A fixed reference needs no second model and makes the same updates as one (``copy`` every 1,000,000 steps)."""
    folder = model_folder(tied=True)
    kl = {"type": "k3", "coefficient": 0.5}
    light = make_adapted(folder, {"kl": kl})
    heavy = make_adapted(folder, {"kl": kl | {"reference": {"type": "copy", "every": 10**6}}})
    assert light.reference is None
    assert heavy.reference is not None
    for step in range(3):
        one, other = (learner.update(samples_of_groups(8, seed=step)) for learner in (light, heavy))
        assert one["policy/kl"] == pytest.approx(other["policy/kl"], rel=1e-5, abs=1e-9)
    assert one["policy/kl"] > 1e-4
    for name, tensor in adapters(light).items():
        torch.testing.assert_close(tensor, adapters(heavy)[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_saved_and_restored_it_goes_on_bit_by_bit(model_folder: Folder, tmp_path: Path, tied: bool) -> None:
    """4 updates = 2, a checkpoint through files, and 2 more; the folder is a plain model with the merged weights, and
    its adapters are peft's: read by peft over the base model they make the same logits."""
    from peft import PeftModel

    folder = model_folder(tied=tied)
    algorithm = {"kl": {"type": "k3", "coefficient": 0.1}}
    whole, first = make_adapted(folder, algorithm), make_adapted(folder, algorithm)
    for step in range(2):
        whole.update(random_samples(6, seed=step))
        first.update(random_samples(6, seed=step))
    first.save_policy(tmp_path / "policy")
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_adapted(folder, algorithm)
    second.load_policy(tmp_path / "policy")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert all(torch.equal(plain.get_parameter(name), tensor) for name, tensor in first.named_weights())
    base = AutoModelForCausalLM.from_pretrained(folder)
    theirs = PeftModel.from_pretrained(base, tmp_path / "policy" / "adapter")
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(theirs(ids).logits, plain(ids).logits, rtol=0, atol=1e-5)
    for step in range(2, 4):
        assert whole.update(random_samples(6, seed=step)) == second.update(random_samples(6, seed=step))
    ours, others = adapters(whole), adapters(second)
    assert all(torch.equal(ours[name], others[name]) for name in ours)


def test_adapters_learn(model_folder: Folder) -> None:
    """Positive advantages raise and negative ones lower the log-probability of what was sampled."""
    learner = make_adapted(model_folder(tied=True), {"surrogate": {"type": "reinforce"}})
    ids = [(5, 6, 7, 8), (5, 6, 9, 10)]
    samples = [
        TrainingSample(ids=one, loss_mask=(0, 0, 1, 1), behaviour_logprobs=(0.0, 0.0, -4.0, -4.0), advantage=a, group=0)
        for one, a in zip(ids, (1.0, -1.0), strict=True)
    ]
    before = [sum(row[2:]) for row in learner.logprobs(ids)]
    for _ in range(5):
        learner.update(samples)
    after = [sum(row[2:]) for row in learner.logprobs(ids)]
    assert after[0] > before[0] + 0.5
    assert after[1] < before[1] - 0.5


def test_what_cannot_work_is_refused(model_folder: Folder, tmp_path: Path) -> None:
    """Targets that are not there, the head among them; adapters of another rank; a checkpoint without; an average."""
    folder = model_folder(tied=False)
    settings = LearnerConfig(lr=1.0)

    def learner(**lora: Any) -> Learner:
        return Learner(
            Model(path=folder, lora=Lora.model_validate(lora)), settings, Algorithm(), total_updates=1, temperature=1.0,
            accelerator=Accelerator(cpu=True),
        )  # fmt: skip

    with pytest.raises(PolicyError, match=r"model.lora.targets: Llama.* has no linear layer \['lm_head'\].*q_"):
        learner(targets=["q_proj", "lm_head"])
    with pytest.raises(PolicyError, match=r"model.lora.rank must be at most 16, the full .*k_proj \(32 to 16\)"):
        learner(rank=17)
    assert len(adapters(learner(rank=17, targets=["q_proj"]))) == 4
    few = learner(targets=["q_proj"], rank=2)
    assert len(adapters(few)) == 4
    few.save_policy(tmp_path / "few")
    with pytest.raises(ValueError, match="another rank or other targets"):
        learner(targets=["q_proj"], rank=3).load_policy(tmp_path / "few")
    make(folder).save_policy(tmp_path / "plain")
    with pytest.raises(ValueError, match="holds no adapters; resume with the recipe that wrote it"):
        few.load_policy(tmp_path / "plain")
    kl = {"type": "k3", "coefficient": 0.1, "reference": {"type": "average", "every": 1, "alpha": 0.5}}
    data = recipe_data(tmp_path)
    data["model"] = {**data["model"], "lora": {}}
    with pytest.raises(ValidationError, match=r"must be fixed or copy with model.lora, got 'average'"):
        Recipe.model_validate(data | {"algorithm": {"kl": kl}})
