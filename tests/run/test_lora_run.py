"""Adapters through the whole loop: proof at the start, merged weights to the engine, checkpoints, resuming, export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from rlvr.config import Recipe
from rlvr.learn.lora import adapter_size
from rlvr.learn.update import Learner
from rlvr.run.memory import learner_bytes
from tests.builders import recipe_data
from tests.runs import Workspace, assert_same_weights, assert_trained, elsewhere

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def work(workspace: Workspace) -> Workspace:
    workspace.recipe["model"]["lora"] = {"rank": 4, "alpha": 8.0}
    workspace.recipe["rollout"] |= {"self_test": True, "probe": 4}
    workspace.recipe["algorithm"] |= {"kl": {"type": "k3", "coefficient": 0.01}}
    workspace.recipe["learner"] |= {"lr": 5.0e-2}
    return workspace


@pytest.mark.slow
def test_a_run_of_adapters(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """4 steps, and 2 + 2 with another process's memory between: the same metrics, rollouts, weights and adapters to the
    last bit. The engine follows the merged weights, which are what the checkpoint's folder holds, alone; a run that
    changes the rank, or that has no adapters, may not go on from it."""
    assert work.run("name=whole") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "adapters rank 4, alpha 8, on all linear layers below the head" in said
    assert "the engine follows the learner: " in said
    assert work.run("run.steps=2") == 0
    assert work.run() == 0
    assert work.metrics() == work.metrics("whole")
    assert work.rollouts() == work.rollouts("whole")
    assert_same_weights(work.weights(), work.weights("whole"))
    latest = work.results() / "checkpoints/latest"
    adapters = load_file(latest / "adapter/adapter_model.safetensors")
    assert_same_weights(
        adapters, load_file(work.results("whole") / "checkpoints/latest/adapter/adapter_model.safetensors")
    )
    assert any(bool(tensor.any()) for name, tensor in adapters.items() if "lora_B" in name)
    assert_trained(work.metrics())
    last = work.metrics()[-1]
    assert last["sync/mismatch"] < 1e-4
    assert last["sync/learner_change"] > 0

    base = AutoModelForCausalLM.from_pretrained(work.folder / "model")
    merged = AutoModelForCausalLM.from_pretrained(latest)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in base.named_parameters()}
    moved = {n for n, p in merged.named_parameters() if not torch.equal(p, base.get_parameter(n))}
    assert moved == {name for name, _ in base.named_parameters() if name.endswith("_proj.weight")}

    with elsewhere(work.folder):
        recipe = Recipe.model_validate(work.recipe)
        learner = Learner(
            recipe.model, recipe.learner, recipe.algorithm, total_updates=1, temperature=1.0,
            accelerator=Accelerator(cpu=True),
        )  # fmt: skip
    learner.load_policy(latest)
    assert all(torch.equal(tensor, merged.get_parameter(name)) for name, tensor in learner.named_weights())

    capsys.readouterr()
    assert work.run("model.lora.rank=5") == 2
    assert "model.lora.rank: 4 -> 5" in capsys.readouterr().err
    assert work.run("model.lora=null") == 2
    assert "what a run may not change" in capsys.readouterr().err


def test_targets_that_are_not_there_are_refused_before_the_engine_starts(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert work.run("model.lora.targets=[q_proj, query]") == 2
    said = capsys.readouterr()
    assert "model.lora.targets: " in said.err
    assert "no linear layer ['query']" in said.err
    assert "starting the engine" not in said.out
    assert work.run("model.lora.rank=4096") == 2
    assert "model.lora.rank must be at most" in capsys.readouterr().err


def test_the_learners_memory_is_counted_by_hand(tmp_path: Path) -> None:
    """1000 weights and 10 numbers of adapters. All weights: 4 copies (weights, gradient, two moments). Adapters: the
    weights once, 4 float32 copies of the 10. A reference is one more copy, but for adapters' fixed one: they are
    switched off. In 8 bits the two moments of a number take 2 bytes."""

    def count(dtype: str, adapters: int | None, kl: dict[str, object] | None = None, optimizer: str = "adamw") -> int:
        data = recipe_data(tmp_path)
        data["model"] |= {"dtype": dtype, "lora": None if adapters is None else {}}
        data["algorithm"] = {"kl": kl or {"type": "none"}}
        data["learner"] |= {"optimizer": optimizer}
        return learner_bytes(Recipe.model_validate(data), 1000, adapters)

    copied = {"type": "k3", "reference": {"type": "copy", "every": 3}}
    assert count("bfloat16", None) == 8000
    assert count("float32", None, {"type": "k3"}) == 20000
    assert count("bfloat16", 10) == 2000 + 160
    assert count("bfloat16", 10, {"type": "k3"}) == 2000 + 160
    assert count("bfloat16", None, optimizer="adamw_8bit") == 2000 + 2000 + 2000
    assert count("float32", 10, optimizer="adamw_8bit") == 4000 + 40 + 40 + 20
    assert count("bfloat16", 10, copied) == 2000 + 160 + 2000 + 40


def test_the_size_of_adapters_is_that_of_those_made(work: Workspace) -> None:
    """On the model without weights that the first screen looks at, and on the one that is trained."""
    recipe = Recipe.model_validate(work.recipe)
    assert recipe.model.lora is not None
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(work.folder / "model"))
    with elsewhere(work.folder):
        learner = Learner(
            recipe.model, recipe.learner, recipe.algorithm, total_updates=1, temperature=1.0,
            accelerator=Accelerator(cpu=True),
        )  # fmt: skip
    trained = sum(one.numel() for one in learner.policy.parameters() if one.requires_grad)
    assert adapter_size(meta, recipe.model.lora) == trained > 0
