"""Estimates a recipe's memory from the model's configuration alone: weights, gradients, optimizer, activations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlvr.config import Recipe
from rlvr.dtypes import itemsize
from rlvr.learn.lora import adapter_size


def num_parameters(config: PretrainedConfig) -> int:
    """The number of parameters of a model, from its configuration alone."""
    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


def count_adapters(recipe: Recipe, config: PretrainedConfig) -> int | None:
    """The number of parameters that ``model.lora`` adds and trains; None without it."""
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
    width = itemsize(recipe.model.dtype if recipe.model.autocast == "none" else recipe.model.autocast)
    kept = 1.0
    if recipe.model.gradient_checkpointing:
        kept = recipe.model.kept_activations if recipe.model.compile else 0.0
    layers = max(1.0, kept * int(config.num_hidden_layers))
    return Memory(
        learner=learner_bytes(recipe, weights, adapters),
        activations=17 * recipe.learner.micro_batch_tokens * layers * int(config.hidden_size) * width,
        engine=weights * itemsize(recipe.rollout.engine.dtype),
    )


def learner_bytes(recipe: Recipe, weights: int, adapters: int | None) -> int:
    """Weights, gradients, AdamW's two moments, and the reference's weights. Adapters are trained in float32 over
    weights that are only read; a fixed reference is then the policy without them."""
    width, kl = itemsize(recipe.model.dtype), recipe.algorithm.kl
    reference = 0 if kl.type == "none" else weights * width
    trained, trained_width, frozen = weights, width, 0
    if adapters is not None:
        trained, trained_width, frozen = adapters, itemsize("float32"), weights * width
        if kl.type != "none":
            reference = 0 if kl.reference.type == "fixed" else reference + adapters * trained_width
    moments = 2 * (1 if recipe.learner.optimizer == "adamw_8bit" else trained_width)
    return frozen + trained * (2 * trained_width + moments) + reference
