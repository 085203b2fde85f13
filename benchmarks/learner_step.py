"""Seconds and memory of one learner update: 64 samples, SmolLM2-135M's shape, random weights unless a folder is given.

    python benchmarks/learner_step.py [--model FOLDER] [--dtype bfloat16 --autocast none] [--steps 3] [--profile]

Prints one JSON line: the median update without the first, its phases, peak memory, and the floor that matrix products
alone would need at the speed measured in the same process, so that runs on a busy machine can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import tempfile
import time
from contextlib import contextmanager

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as rlvr's own command does, before torch allocates

import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from rlvr.config.algorithm import Algorithm
from rlvr.config.recipe import LearnerConfig, Model
from rlvr.learn.update import Learner
from rlvr.records import TrainingSample


def smollm2_135m(folder: str) -> str:
    """A model of SmolLM2-135M's shape with random weights."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def make_samples(count: int, seed: int, vocabulary: int) -> list[TrainingSample]:
    """Groups of 8 completions of 30 to 64 tokens to a prompt of 35 to 45: as the multiplication recipe has them."""
    rng = random.Random(seed)
    samples = []
    for index in range(count):
        if index % 8 == 0:
            prompt = rng.randint(35, 45)
            question = tuple(rng.randrange(vocabulary) for _ in range(prompt))
        completion = rng.randint(30, 64)
        samples.append(
            TrainingSample(
                ids=question + tuple(rng.randrange(vocabulary) for _ in range(completion)),
                loss_mask=(0,) * prompt + (1,) * completion,
                behaviour_logprobs=(0.0,) * prompt + (-10.0,) * completion,
                advantage=rng.choice((-1.0, 1.0)),
                group=index // 8,
            )
        )
    return samples


class PhaseClock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str):  # type: ignore[no-untyped-def]  # a context manager
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def floating_point_operations(learner: Learner, samples: list[TrainingSample]) -> float:
    """2 per weight and position forward, 4 backward; the head only where something is trained."""
    model = learner.policy.model
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    positions = sum(len(sample.ids) - 1 for sample in samples)
    return 6.0 * (body * positions + head * sum(sample.trained_tokens for sample in samples))


def matmul_speed(dtype: torch.dtype) -> float:
    """Operations a second of a matrix product of the model's shape."""
    a, b = torch.randn(2048, 576, dtype=dtype), torch.randn(576, 1536, dtype=dtype)
    best = min(_seconds(lambda: a @ b) for _ in range(20))
    return 2.0 * 2048 * 576 * 1536 / best


def _seconds(function) -> float:  # type: ignore[no-untyped-def]  # any callable
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--autocast", default="none")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--head-chunk", type=int, default=512)
    parser.add_argument("--packing", default="shared")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--torch-attention", action="store_true", help="torch's own backward pass, for comparison")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or smollm2_135m(folder)
        learner = Learner(
            Model(
                path=path,
                dtype=args.dtype,
                autocast=args.autocast,
                gradient_checkpointing=args.gradient_checkpointing,
                compile=args.compile,
            ),
            LearnerConfig(
                lr=5e-6, micro_batch_tokens=args.micro_batch_tokens, head_chunk=args.head_chunk, packing=args.packing
            ),
            Algorithm(),
            total_updates=100,
            temperature=1.0,
            accelerator=Accelerator(cpu=not torch.cuda.is_available()),
        )
    if args.torch_attention:
        learner.policy.model.set_attn_implementation("sdpa")
    samples = make_samples(args.samples, 0, learner.policy.model.config.vocab_size)
    seconds: list[float] = []
    clocks: list[PhaseClock] = []
    for step in range(args.steps):
        if args.profile and step == args.steps - 1:
            with torch.profiler.profile(record_shapes=True) as profile:
                learner.update(samples)
            print(profile.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total", row_limit=30))
            break
        clocks.append(PhaseClock())
        start = time.perf_counter()
        metrics = learner.update(samples, clock=clocks[-1])
        seconds.append(time.perf_counter() - start)
    settled = seconds[1:] or seconds
    speed = matmul_speed(torch.bfloat16 if "bfloat16" in (args.dtype, args.autocast) else torch.float32)
    floor = floating_point_operations(learner, samples) / speed
    print(
        json.dumps(
            {
                "dtype": args.dtype, "autocast": args.autocast, "packing": args.packing,
                "micro_batch_tokens": args.micro_batch_tokens, "seconds": round(statistics.median(settled), 2),
                "all": [round(s, 2) for s in seconds],
                "phases": {name: round(value, 2) for name, value in clocks[-1].seconds.items()},
                "floor_seconds": round(floor, 2), "times_floor": round(statistics.median(settled) / floor, 2),
                "tflops": round(speed / 1e12, 2), "positions": metrics["tokens/computed"],
                "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
