"""What a run says before it does anything: model, problems, samples and tokens a step, memory, engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlvr.config import Recipe
from rlvr.config.algorithm import GivenText, GivenTextLikelihood
from rlvr.config.recipe import Lora
from rlvr.learn.lora import adapter_size
from rlvr.problems.data import Data

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def first_screen(
    recipe: Recipe, accelerator: Accelerator, config: PretrainedConfig, data: Data, folder: Path
) -> list[tuple[str, str]]:
    """Label and text of each line."""
    rollout, model, algorithm = recipe.rollout, recipe.model, recipe.algorithm
    weights = num_parameters(config)
    adapters = count_adapters(recipe, config)
    sets = ", ".join(f"{one.name}: {len(problems)} x {one.samples}" for one, problems in data.eval_sets) or "none"
    stops = [*map(repr, data.renderer.stop), f"tokens {list(data.renderer.stop_token_ids)}"]
    samples = rollout.prompts_per_step * rollout.group_size
    slots = ("baseline", "scale", "surrogate", "aggregation", "kl")
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return [
        ("model", f"{model.path}: {weights / 1e6:.1f} M parameters in {model.dtype}, autocast {model.autocast}"),
        *_adapters(model.lora, adapters),
        ("problems", f"{len(data.train)} to train on; measured on {sets}"),
        ("prompt", f"template {recipe.template.type}, up to {data.longest_prompt} tokens, stops at {', '.join(stops)}"),
        *_given_text(algorithm.given_text, data),
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
    return [
        ("adapters", f"rank {lora.rank}, alpha {lora.alpha:g}, on {where}: {size / 1e6:.3g} M parameters are trained")
    ]


def _given_text(given: GivenText, data: Data) -> list[tuple[str, str]]:
    if not isinstance(given, GivenTextLikelihood):
        return []
    return [("given text", f"{len(data.texts)} rows, {given.rows} an update, their likelihood x {given.coefficient:g}")]


def num_parameters(config: PretrainedConfig) -> int:
    """How many weights a model has, from its configuration alone."""
    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


def count_adapters(recipe: Recipe, config: PretrainedConfig) -> int | None:
    """How many weights ``model.lora`` adds and trains; None without it."""
    if recipe.model.lora is None:
        return None
    with torch.device("meta"):
        return adapter_size(AutoModelForCausalLM.from_config(config), recipe.model.lora)


class Memory(NamedTuple):
    """An estimate in bytes for one process that holds everything."""

    learner: float
    """Weights, gradients and AdamW."""
    activations: float
    """At most."""
    engine: float
    """The engine's weights."""


def estimate_memory(recipe: Recipe, config: PretrainedConfig, weights: int, adapters: int | None) -> Memory:
    """What `learner_bytes` says, and 17 values a token, layer and hidden unit for activations
    (Korthikanti et al. 2022, arXiv 2205.05198, eq. 2, without the attention matrix)."""
    width = BYTES.get(recipe.model.autocast, BYTES[recipe.model.dtype])
    kept = 1.0
    if recipe.model.gradient_checkpointing:
        kept = recipe.model.kept_activations if recipe.model.compile else 0.0
    layers = max(1.0, kept * int(config.num_hidden_layers))
    return Memory(
        learner=learner_bytes(recipe, weights, adapters),
        activations=17 * recipe.learner.micro_batch_tokens * layers * int(config.hidden_size) * width,
        engine=weights * BYTES[recipe.rollout.engine.dtype],
    )


def _memory(recipe: Recipe, config: PretrainedConfig, weights: int, adapters: int | None) -> str:
    need, engine = estimate_memory(recipe, config, weights, adapters), recipe.rollout.engine
    text = f"about {_gib(need.learner)} for weights, gradients and AdamW, up to {_gib(need.activations)} for "
    text += f"activations; the engine's weights {_gib(need.engine)}"
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
