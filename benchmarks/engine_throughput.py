"""Tokens a second of the engines on a real model, and what a sync costs: the figures behind the recipes' settings.

    python benchmarks/engine_throughput.py MODEL_FOLDER [--engine vllm|hf] [--compiled] [--requests 64] [--tokens 72]

One line of JSON. Each request has its own prompt of 48 random tokens and samples exactly so many tokens; the first
round warms up, the best of the following counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from typing import Any

import psutil
from safetensors import safe_open
from transformers import AutoConfig

from rlvr.engines.hf import HfEngine
from rlvr.engines.vllm.engine import VllmEngine
from rlvr.engines.vllm.settings import VllmSettings
from rlvr.records import Request, Sampling


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--engine", choices=["vllm", "hf"], default="vllm")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument(
        "--worker-process", action="store_true", help="vLLM's own choice on a CPU: core and worker apart"
    )
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=72)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


def make_engine(settings: argparse.Namespace) -> Any:
    if settings.engine == "hf":
        return HfEngine(settings.model, dtype=settings.dtype)
    own = VllmSettings(
        model=settings.model,
        dtype=settings.dtype,
        max_model_len=512,
        max_num_seqs=settings.requests,
        kv_cache_gib=1.0,
        enforce_eager=not settings.compiled,
        threads=settings.threads,
        extra={"distributed_executor_backend": "mp"} if settings.worker_process else {},
    )
    return VllmEngine(own)


async def one_round(engine: Any, settings: argparse.Namespace, vocabulary: int, seed: int) -> float:
    """Seconds for all requests."""
    generator = random.Random(seed)
    prompts = [[generator.randrange(vocabulary) for _ in range(48)] for _ in range(settings.requests)]
    sampling = Sampling(max_new_tokens=settings.tokens)
    start = time.perf_counter()
    async with engine.hold():
        tasks = [
            asyncio.create_task(engine.generate(Request(id=str(i), prompt_ids=tuple(p), sampling=sampling, seed=i)))
            for i, p in enumerate(prompts)
        ]
    completions = await asyncio.gather(*tasks)
    assert all(len(one.ids) == settings.tokens for one in completions)
    return time.perf_counter() - start


def cpu_seconds() -> float:
    """Core time of this process and all below it: on a busy machine it says more than the clock."""
    this = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (this, *this.children(recursive=True)))


async def main(settings: argparse.Namespace) -> None:
    engine = make_engine(settings)
    vocabulary = AutoConfig.from_pretrained(settings.model).vocab_size
    start = time.perf_counter()
    await engine.start()
    started = time.perf_counter() - start
    rounds, cores = [], []
    for seed in range(settings.rounds + 1):
        before = cpu_seconds()
        rounds.append(await one_round(engine, settings, vocabulary, seed))
        cores.append(cpu_seconds() - before)
    syncs = []
    with safe_open(f"{settings.model}/model.safetensors", framework="pt") as stored:
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    for version in range(3):
        start = time.perf_counter()
        await engine.load_weights(weights.items(), version)
        syncs.append(time.perf_counter() - start)
    await engine.close()
    tokens = settings.requests * settings.tokens
    print(
        json.dumps(
            {key: value for key, value in vars(settings).items() if key != "model"}
            | {
                "tokens_per_second": round(tokens / min(rounds[1:])),
                "all_rounds": [round(tokens / seconds) for seconds in rounds],
                "core_seconds_per_1000_tokens": round(1000 * min(cores[1:]) / tokens, 2),
                "start_seconds": round(started, 1),
                "sync_seconds": round(min(syncs), 2),
                "load_average": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(arguments()))
