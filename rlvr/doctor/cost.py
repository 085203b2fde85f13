"""Estimates what a run will need: seconds and memory per step, and disk space."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from rlvr.config import Recipe
from rlvr.doctor.learner import Compared
from rlvr.dtypes import itemsize
from rlvr.engines.devices import SHARED_SHARE
from rlvr.records import RolloutGroup
from rlvr.rules.finding import Finding, Grade
from rlvr.rules.rule import Rule
from rlvr.run.memory import count_adapters, estimate_memory
from rlvr.runlog.run_log import rollout_record, token_record

DISK = Rule(
    "disk_too_small", Grade.STOPS, "checkpoints and rollouts of the whole run need more than is free in `run.output`",
    "set run.output to a larger disk, run.keep: 1, run.log_token_groups: 0 or run.log_rollouts: false",
)  # fmt: skip
MEMORY = Rule(
    "memory_too_small", Grade.SLOWS,
    "weights, gradients, AdamW, activations and engine of one process need more than this machine's memory",
    "lower learner.micro_batch_tokens, set model.gradient_checkpointing: true, take a smaller model, or shard it over "
    "several devices (launch/fsdp2.yaml)",
)  # fmt: skip
COST_RULES = (DISK, MEMORY)


@dataclass(frozen=True, slots=True)
class Cost:
    """Estimates; a step's seconds are those of a run alone on this machine at the start, when completions are short."""

    generate_seconds: float
    learn_seconds: float
    learner_bytes: float
    engine_bytes: float
    memory_there: float
    rollout_bytes: float
    """Of rollouts.jsonl, for the whole run."""
    checkpoint_bytes: float
    """Of the checkpoints that are kept, and one more while it is written."""
    disk_free: float


def estimate(
    recipe: Recipe, config: PretrainedConfig, weights: int, groups: Sequence[RolloutGroup], prompt: str,
    tokens_per_second: float, compared: Compared,
) -> Cost:  # fmt: skip
    """Estimate the cost of `recipe` from a few groups: their lengths, their speed, and one pass of the learner."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    completions = recipe.rollout.prompts_per_step * recipe.rollout.group_size
    length = sum(len(rollout.ids) for rollout in rollouts) / len(rollouts)
    before = sum(len(rollout.prompt_ids) for rollout in rollouts) / len(rollouts)
    per_group = 1 if recipe.learner.packing == "shared" else recipe.rollout.group_size
    positions = recipe.rollout.prompts_per_step * (before * per_group + length * recipe.rollout.group_size)
    algorithm = recipe.algorithm
    several = algorithm.updates_per_batch * algorithm.epochs > 1 and algorithm.ratio.against == "recomputed"
    frozen = several + (algorithm.kl.type != "none") + (algorithm.distillation.type != "none")
    passes = algorithm.epochs + frozen / 3
    memory = estimate_memory(recipe, config, weights, count_adapters(recipe, config))
    trained = min(recipe.learner.micro_batch_tokens, positions) / recipe.learner.micro_batch_tokens
    cache = recipe.rollout.engine.kv_cache_gib if recipe.rollout.engine.type == "vllm" else 0.0
    if torch.cuda.is_available() and recipe.rollout.engine.type == "vllm":  # there it takes its share, cache included
        engine = (recipe.rollout.engine.gpu_memory_share or SHARED_SHARE) * _memory_there()
    else:
        engine = memory.engine + cache * 2**30
    return Cost(
        generate_seconds=completions * length / tokens_per_second if tokens_per_second else 0.0,
        learn_seconds=positions * passes * compared.seconds_per_token,
        learner_bytes=memory.learner + trained * memory.activations,
        engine_bytes=engine,
        memory_there=_memory_there(),
        rollout_bytes=recipe.run.steps * _bytes_of_a_step(recipe, groups, prompt),
        checkpoint_bytes=_checkpoints(recipe) * weights * itemsize(recipe.model.dtype) * 3,
        disk_free=shutil.disk_usage(_existing(Path(recipe.run.output))).free,
    )


def _bytes_of_a_step(recipe: Recipe, groups: Sequence[RolloutGroup], prompt: str) -> float:
    """Of rollouts.jsonl, by lines as a run writes them."""
    if not recipe.run.log_rollouts:
        return 0.0
    sizes = [
        len(json.dumps(rollout_record(1, 0, group, rollout, prompt, 0.0), ensure_ascii=False).encode())
        for group in groups
        for rollout in group.rollouts
    ]
    tokens = [
        len(json.dumps(token_record(rollout, rollout.behaviour_logprobs)))
        for group in groups
        for rollout in group.rollouts[:1]
    ]
    size, prompts = recipe.rollout.group_size, recipe.rollout.prompts_per_step
    with_tokens = min(recipe.run.log_token_groups, prompts) * size * sum(tokens) / len(tokens)
    return prompts * size * sum(sizes) / len(sizes) + with_tokens


def _checkpoints(recipe: Recipe) -> int:
    """The largest number of checkpoints on disk at any time."""
    run = recipe.run
    kept = min(run.keep, run.steps // run.save_every + 1) if run.save_every else 1
    lasting = run.steps // run.keep_every if run.keep_every else 0
    return kept + lasting + (run.keep_best is not None) + 1


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _memory_there() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def check_cost(recipe: Recipe, cost: Cost) -> Iterator[Finding]:
    """Findings where machine or disk are too small."""
    disk = cost.rollout_bytes + cost.checkpoint_bytes
    if disk > cost.disk_free:
        yield DISK.finding(
            f"the run will fill about {gib(disk)} (rollouts {gib(cost.rollout_bytes)}, checkpoints "
            f"{gib(cost.checkpoint_bytes)}); {gib(cost.disk_free)} are free in {recipe.run.output}"
        )
    need = cost.learner_bytes + cost.engine_bytes
    if need > cost.memory_there:
        yield MEMORY.finding(
            f"one process needs about {gib(need)} (learner {gib(cost.learner_bytes)}, engine "
            f"{gib(cost.engine_bytes)}), the machine has {gib(cost.memory_there)}"
        )


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def rows(recipe: Recipe, cost: Cost) -> list[tuple[str, str]]:
    """The estimate as labels and texts."""
    step = cost.generate_seconds + cost.learn_seconds
    hours = step * recipe.run.steps / 3600
    whole = f"{hours:.2g} h" if hours >= 1 else f"{60 * hours:.2g} min"
    return [
        (
            "a step",
            f"about {step:.2g} s: {cost.generate_seconds:.2g} sampling, {cost.learn_seconds:.2g} learning; "
            f"{recipe.run.steps} steps in {whole}, without evaluations",
        ),
        (
            "memory",
            f"about {gib(cost.learner_bytes)} for the learner, {gib(cost.engine_bytes)} for the engine, of "
            f"{gib(cost.memory_there)}",
        ),
        (
            "disk",
            f"about {gib(cost.rollout_bytes)} of rollouts, {gib(cost.checkpoint_bytes)} of checkpoints; "
            f"{gib(cost.disk_free)} free",
        ),
    ]
