"""What a run says before it does anything: model, problems, samples and tokens a step, memory, engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlvr.config import Recipe
from rlvr.data import Data

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def first_screen(
    recipe: Recipe, accelerator: Accelerator, config: PretrainedConfig, data: Data, folder: Path
) -> list[tuple[str, str]]:
    """Label and text of each line."""
    rollout, model, algorithm = recipe.rollout, recipe.model, recipe.algorithm
    weights = count_weights(config)
    sets = ", ".join(f"{one.name}: {len(problems)} x {one.samples}" for one, problems in data.eval_sets) or "none"
    stops = [*map(repr, data.renderer.stop), f"tokens {list(data.renderer.stop_token_ids)}"]
    samples = rollout.prompts_per_step * rollout.group_size
    slots = ("baseline", "scale", "surrogate", "aggregation", "kl")
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return [
        ("model", f"{model.path}: {weights / 1e6:.1f} M weights in {model.dtype}, autocast {model.autocast}"),
        ("problems", f"{len(data.train)} to train on; measured on {sets}"),
        ("prompt", f"template {recipe.template.type}, up to {data.longest_prompt} tokens, stops at {', '.join(stops)}"),
        ("rewards", ", ".join(f"{t.name} x {t.weight:g}" + (f" if {t.gate}" if t.gate else "") for t in data.terms)),
        ("samples a step", f"{rollout.prompts_per_step} problems x {rollout.group_size} answers = {samples}"),
        ("tokens a step", f"at most {samples * (data.longest_prompt + rollout.max_new_tokens)}"),
        ("objective", " ".join(f"{name}={getattr(algorithm, name).type}" for name in slots)),
        ("engine", f"{rollout.engine.type} in {rollout.engine.dtype}"),
        ("memory", _memory(recipe, config, weights)),
        ("processes", f"{accelerator.num_processes} on {accelerator.device.type}, {threads}"),
        ("steps", f"{recipe.run.steps}, seed {recipe.run.seed}"),
        ("folder", str(folder)),
    ]


def count_weights(config: PretrainedConfig) -> int:
    """How many weights a model has, from its configuration alone."""
    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


class Memory(NamedTuple):
    """An estimate in bytes for one process that holds everything."""

    learner: float
    """Weights, gradients and AdamW."""
    activations: float
    """At most."""
    engine: float
    """The engine's weights."""


def estimate_memory(recipe: Recipe, config: PretrainedConfig, weights: int) -> Memory:
    """4 copies of the weights for AdamW, and 17 values a token, layer and hidden unit for activations
    (Korthikanti et al. 2022, arXiv 2205.05198, eq. 2, without the attention matrix)."""
    copies = 4 + (recipe.algorithm.kl.type != "none")
    width = BYTES.get(recipe.model.autocast, BYTES[recipe.model.dtype])
    layers = 1 if recipe.model.gradient_checkpointing else int(config.num_hidden_layers)
    return Memory(
        learner=weights * BYTES[recipe.model.dtype] * copies,
        activations=17 * recipe.learner.micro_batch_tokens * layers * int(config.hidden_size) * width,
        engine=weights * BYTES[recipe.rollout.engine.dtype],
    )


def _memory(recipe: Recipe, config: PretrainedConfig, weights: int) -> str:
    need, engine = estimate_memory(recipe, config, weights), recipe.rollout.engine
    text = f"about {_gib(need.learner)} for weights, gradients and AdamW, up to {_gib(need.activations)} for "
    text += f"activations; the engine's weights {_gib(need.engine)}"
    return text + (f", its keys and values {engine.kv_cache_gib:g} GiB" if engine.type == "vllm" else "")


def _gib(count: float) -> str:
    return f"{count / 2**30:.2g} GiB"
