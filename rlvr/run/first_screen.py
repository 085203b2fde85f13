"""The summary printed before a run starts: model, problems, samples and tokens per step, memory, engine."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PretrainedConfig

from rlvr.config import Recipe
from rlvr.config.algorithm import GivenText, GivenTextLikelihood
from rlvr.config.recipe import Lora
from rlvr.problems.data import Data
from rlvr.run.launch import describe
from rlvr.run.memory import count_adapters, estimate_memory, num_parameters


def first_screen(
    recipe: Recipe, accelerator: Accelerator, config: PretrainedConfig, data: Data, folder: Path
) -> list[tuple[str, str]]:
    """Label and text of each line."""
    rollout, model, algorithm = recipe.rollout, recipe.model, recipe.algorithm
    weights = num_parameters(config)
    adapters = count_adapters(recipe, config)
    sets = (
        ", ".join(f"{eval_set.name}: {len(problems)} x {eval_set.samples}" for eval_set, problems in data.eval_sets)
        or "none"
    )
    stops = [*map(repr, data.renderer.stop), f"tokens {list(data.renderer.stop_token_ids)}"]
    samples = rollout.prompts_per_step * rollout.group_size
    slots = ("baseline", "scale", "surrogate", "aggregation", "kl")
    processes = describe(accelerator.num_processes, accelerator.device.type, torch.cuda.device_count())
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return [
        ("model", f"{model.path}: {weights / 1e6:.1f} M parameters in {model.dtype}, autocast {model.autocast}"),
        *_adapters(model.lora, adapters),
        ("problems", f"{len(data.train)} to train on; measured on {sets}"),
        ("prompt", f"template {recipe.template.type}, up to {data.longest_prompt} tokens, stops at {', '.join(stops)}"),
        *_given_text(algorithm.given_text, data),
        ("rewards", ", ".join(f"{t.name} x {t.weight:g}" + (f" if {t.gate}" if t.gate else "") for t in data.terms)),
        ("samples a step", f"{rollout.prompts_per_step} problems x {rollout.group_size} completions = {samples}"),
        ("tokens a step", f"at most {samples * (data.longest_prompt + rollout.max_new_tokens)}"),
        ("objective", " ".join(f"{name}={getattr(algorithm, name).type}" for name in slots)),
        ("engine", f"{rollout.engine.type} in {rollout.engine.dtype}"),
        ("memory", _memory(recipe, config, weights, adapters)),
        ("processes", f"{processes}, {threads}"),
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


def _memory(recipe: Recipe, config: PretrainedConfig, weights: int, adapters: int | None) -> str:
    need, engine = estimate_memory(recipe, config, weights, adapters), recipe.rollout.engine
    text = f"about {_gib(need.learner)} for weights, gradients and AdamW, up to {_gib(need.activations)} for "
    text += f"activations; the engine's weights {_gib(need.engine)}"
    return text + (f", its keys and values {engine.kv_cache_gib:g} GiB" if engine.type == "vllm" else "")


def _gib(count: float) -> str:
    return f"{count / 2**30:.2g} GiB"
