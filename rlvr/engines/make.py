"""Builds the recipe's engine for a run, or for `rlvr serve` to serve it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig

from rlvr.config import Recipe, RecipeError, VllmEngineConfig, VllmServersConfig
from rlvr.engines.devices import OWN_SHARE, Host, Place, engine_places, is_in_process
from rlvr.engines.protocol import Engine
from rlvr.engines.restarting import RestartingEngine
from rlvr.engines.servers.serve import ServedChild, free_port, serve, url_of
from rlvr.engines.vllm.settings import FILE_BACKEND, NCCL_BACKEND, VllmSettings, speculative_config
from rlvr.problems.data import load_data
from rlvr.problems.templates import load_tokenizer

TRANSFERS = {"file": FILE_BACKEND, "nccl": NCCL_BACKEND}
"""vLLM's backend of weight transfer, by the recipe's name."""


def most_new_tokens(recipe: Recipe) -> int:
    """The longest completion that training or an eval set may ask for."""
    return max([recipe.rollout.max_new_tokens, *(eval_set.max_new_tokens or 0 for eval_set in recipe.problems.eval)])


def make_engine(
    recipe: Recipe,
    model_len: int,
    log_file: Path,
    warn: Callable[[str, str], None],
    say: Callable[[str], None] = lambda text: None,
) -> Engine:
    """The recipe's engine, not started yet; `say` prints where the run's own servers will be."""
    settings = recipe.rollout.engine
    places = engine_places(settings, Host.here())
    if settings.type == "hf":
        from rlvr.engines.hf import HfEngine

        return HfEngine(recipe.model.path, dtype=settings.dtype, max_batch=settings.max_batch, max_model_len=model_len)
    own = vllm_settings(recipe, model_len)
    if settings.type == "vllm_servers":
        return _servers(settings, places, own, model_len, log_file, warn, say)
    if not is_in_process(places):
        servers = VllmServersConfig(type="vllm_servers", devices=settings.devices, restarts=settings.restarts)
        return _servers(servers, places, own, model_len, log_file, warn, say)
    from rlvr.engines.vllm import engine as vllm_engine

    engine = vllm_engine.VllmEngine(own, stats=settings.stats, log_file=log_file)
    return RestartingEngine(
        engine, restarts=settings.restarts, timeout=settings.timeout, warn=warn,
        repeats_batches=recipe.rollout.schedule.type != "asynchronous",
    )  # fmt: skip


def _servers(
    settings: VllmServersConfig, places: Sequence[Place], own: VllmSettings, model_len: int, log_file: Path,
    warn: Callable[[str, str], None], say: Callable[[str], None],
) -> Engine:  # fmt: skip
    from rlvr.engines.servers.servers import VllmServers

    if own.max_model_len is not None and own.max_model_len < model_len:
        raise RecipeError(
            f"rollout.engine.max_model_len must be at least {model_len}, the longest prompt and completion of the "
            f"recipe's problems, got {own.max_model_len}"
        )
    if settings.transfer == "nccl" and not torch.cuda.is_available():
        raise RecipeError("rollout.engine.transfer: nccl needs a GPU beside the learner; use transfer: file")
    transfer = TRANSFERS[settings.transfer]
    children = []
    for index, here in enumerate(places):
        log = log_file.with_stem(f"{log_file.stem}_{index}")
        children.append(child := ServedChild(_placed(own, here, len(places)), transfer, "127.0.0.1", log))
        where = f" on GPU {', '.join(map(str, here.devices))}" if torch.cuda.is_available() else ""
        say(f"engine of this run{where}: {child.url}, its log {child.log_file}")
    return VllmServers(
        own, settings.urls, children=children, transfer=transfer, address=settings.address, timeout=settings.timeout,
        folder=Path(settings.folder) if settings.folder is not None else None, wait=settings.wait,
        restarts=settings.restarts, warn=warn,
    )  # fmt: skip


def _placed(settings: VllmSettings, here: Place, engines: int) -> VllmSettings:
    """`settings` of one of several engines of this node: on its GPUs, or with its part of a CPU's cores."""
    if torch.cuda.is_available():
        share = settings.gpu_memory_share or here.memory_share
        return replace(settings, device_ids=here.devices, gpu_memory_share=share)
    return replace(settings, threads=settings.threads or max(1, len(os.sched_getaffinity(0)) // engines))


def vllm_settings(recipe: Recipe, model_len: int) -> VllmSettings:
    """Settings of the recipe's vLLM engines; `model_len` is the length that its problems need."""
    settings = recipe.rollout.engine
    if not isinstance(settings, VllmEngineConfig | VllmServersConfig):
        raise RecipeError(f"rollout.engine.type must be vllm or vllm_servers, got {settings.type!r}")
    extra = dict(settings.extra)
    if recipe.model.head_dtype != "same" and torch.cuda.is_available():  # the packed head of a CPU cannot
        extra = {"hf_overrides": {"head_dtype": recipe.model.head_dtype}} | extra
    if settings.speculative is not None and not torch.cuda.is_available():
        raise RecipeError(
            f"rollout.engine.speculative must be null on a CPU, got type {settings.speculative.type!r}: vLLM's CPU "
            "build (0.32) hands the temperatures of proposed tokens through a conversion to integers whose result is "
            "lost, so that they are sampled, and their log-probabilities given, at whatever temperature the memory "
            "held; leave it out"
        )
    return VllmSettings(
        model=recipe.model.path,
        dtype=settings.dtype,
        max_model_len=(settings.max_model_len if isinstance(settings, VllmServersConfig) else None) or model_len,
        max_num_seqs=settings.max_num_seqs,
        kv_cache_gib=settings.kv_cache_gib,
        gpu_memory_share=settings.gpu_memory_share,
        enforce_eager=not torch.cuda.is_available() if settings.enforce_eager is None else settings.enforce_eager,
        threads=settings.threads,
        tensor_parallel=settings.tensor_parallel,
        sleep=isinstance(settings, VllmEngineConfig) and settings.sleep,
        speculative=None if settings.speculative is None else speculative_config(settings.speculative),
        extra=extra,
    )


def serve_recipe(recipe: Recipe, host: str, port: int | None) -> None:
    """Become a `vllm serve` for runs of this recipe, with room for its problems; prints the URL. Does not return."""
    settings = recipe.rollout.engine
    given = settings.max_model_len if isinstance(settings, VllmServersConfig) else None
    own = vllm_settings(recipe, given or _needed_length(recipe))
    own = replace(own, gpu_memory_share=own.gpu_memory_share or OWN_SHARE)
    transfer = TRANSFERS[settings.transfer] if isinstance(settings, VllmServersConfig) else FILE_BACKEND
    try:
        port = free_port(host) if port is None else port
    except OSError as error:
        raise RecipeError(f"--host: {host!r} is no address of this machine: {error.strerror or error}") from error
    print(f"rlvr: serving {recipe.model.path} at {url_of(host, port)}", flush=True)
    serve(own, transfer, host, port)


def _needed_length(recipe: Recipe) -> int:
    """Tokens of the longest prompt and completion of the recipe's problems, at most what the model takes."""
    limit = int(AutoConfig.from_pretrained(recipe.model.path).max_position_embeddings)
    data = load_data(recipe, load_tokenizer(recipe.model.path), limit)
    data.pool.close()
    return min(limit, data.longest_prompt + most_new_tokens(recipe))
