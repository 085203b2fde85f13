"""What a run says before it does anything: model, problems, samples and tokens a step, memory, engine."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlvr.config import Recipe
from rlvr.config.recipe import Lora
from rlvr.data import Data
from rlvr.learn.lora import adapter_size

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def first_screen(
    recipe: Recipe, accelerator: Accelerator, config: PretrainedConfig, data: Data, folder: Path
) -> list[tuple[str, str]]:
    """Label and text of each line."""
    rollout, model, algorithm = recipe.rollout, recipe.model, recipe.algorithm
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(config)
    weights = meta.num_parameters()
    adapters = None if model.lora is None else adapter_size(meta, model.lora)
    sets = ", ".join(f"{one.name}: {len(problems)} x {one.samples}" for one, problems in data.eval_sets) or "none"
    stops = [*map(repr, data.renderer.stop), f"tokens {list(data.renderer.stop_token_ids)}"]
    samples = rollout.prompts_per_step * rollout.group_size
    slots = ("baseline", "scale", "surrogate", "aggregation", "kl")
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return [
        ("model", f"{model.path}: {weights / 1e6:.1f} M weights in {model.dtype}, autocast {model.autocast}"),
        *_adapters(model.lora, adapters),
        ("problems", f"{len(data.train)} to train on; measured on {sets}"),
        ("prompt", f"template {recipe.template.type}, up to {data.longest_prompt} tokens, stops at {', '.join(stops)}"),
        ("rewards", ", ".join(f"{t.name} x {t.weight:g}" + (f" if {t.gate}" if t.gate else "") for t in data.terms)),
        ("samples a step", f"{rollout.prompts_per_step} problems x {rollout.group_size} answers = {samples}"),
        ("tokens a step", f"at most {samples * (data.longest_prompt + rollout.max_new_tokens)}"),
        ("objective", " ".join(f"{name}={getattr(algorithm, name).type}" for name in slots)),
        ("engine", f"{rollout.engine.type} in {rollout.engine.dtype}"),
        ("memory", _memory(recipe, config, weights, adapters)),
        ("processes", f"{accelerator.num_processes} on {accelerator.device.type}, {threads}"),
        ("steps", f"{recipe.run.steps}, seed {recipe.run.seed}"),
        ("folder", str(folder)),
    ]


def _adapters(lora: Lora | None, size: int | None) -> list[tuple[str, str]]:
    if lora is None or size is None:
        return []
    where = "all linear layers below the head" if lora.targets == "all" else ", ".join(lora.targets)
    return [("adapters", f"rank {lora.rank}, alpha {lora.alpha:g}, on {where}: {size / 1e6:.3g} M weights are trained")]


def _memory(recipe: Recipe, config: PretrainedConfig, weights: int, adapters: int | None) -> str:
    """An estimate: 17 values a token, layer and hidden unit for activations (Korthikanti et al. 2022, arXiv 2205.05198,
    eq. 2, without the attention matrix)."""
    engine = recipe.rollout.engine
    learner = learner_bytes(recipe, weights, adapters)
    width = BYTES.get(recipe.model.autocast, BYTES[recipe.model.dtype])
    layers = 1 if recipe.model.gradient_checkpointing else int(config.num_hidden_layers)
    activations = 17 * recipe.learner.micro_batch_tokens * layers * int(config.hidden_size) * width
    text = f"about {_gib(learner)} for weights, gradients and AdamW, up to {_gib(activations)} for activations; "
    text += f"the engine's weights {_gib(weights * BYTES[engine.dtype])}"
    return text + (f", its keys and values {engine.kv_cache_gib:g} GiB" if engine.type == "vllm" else "")


def learner_bytes(recipe: Recipe, weights: int, adapters: int | None) -> int:
    """Weights, gradients, AdamW's two moments, and the reference's weights. Adapters are trained in float32 over
    weights that are only read; a fixed reference is then the policy without them."""
    width, kl = BYTES[recipe.model.dtype], recipe.algorithm.kl
    reference = 0 if kl.type == "none" else weights * width
    trained, trained_width, frozen = weights, width, 0
    if adapters is not None:
        trained, trained_width, frozen = adapters, BYTES["float32"], weights * width
        if kl.type != "none":
            reference = 0 if kl.reference.type == "fixed" else reference + adapters * trained_width
    moments = 2 * (1 if recipe.learner.optimizer == "adamw_8bit" else trained_width)
    return frozen + trained * (2 * trained_width + moments) + reference


def _gib(count: float) -> str:
    return f"{count / 2**30:.2g} GiB"
