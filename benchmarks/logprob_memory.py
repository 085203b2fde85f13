"""Memory and time of log-probabilities and their gradient, in blocks and the plain way.

    python benchmarks/logprob_memory.py [--tokens 8192] [--vocabulary 151936] [--hidden 896] [--dtype bfloat16]

Prints one JSON line for each type: the peak above weights, hidden states and the head's own gradient in GB, each way
in a fresh process (the plain way with `--plain-tokens`, and scaled to `--tokens` in proportion), and how long the way
in blocks takes against the plain way with `--time-tokens`, both in one process by turns: the median of the ratios, by
the wall clock and by CPU seconds.
Without numbers of your own it is Qwen2.5-0.5B's head. Reads Linux's /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as rlvr's own command does, before torch allocates

import torch
from torch import Tensor

from rlvr.config.recipe import LearnerConfig
from rlvr.learn.logprobs import chunked_logprobs

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def in_blocks(chunk: int, head_dtype: torch.dtype | None, entropy_gradient: bool) -> Way:
    """The product's way."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logprobs, entropy = chunked_logprobs(
            hidden, weight, None, targets, temperature=1.0, chunk=chunk, head_dtype=head_dtype
        )
        return logprobs.sum() + entropy.sum() if entropy_gradient else logprobs.sum()

    return loss


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits, a log-softmax in float32, and the entropy that the product's way gives too, without a gradient."""
    logprobs = torch.log_softmax((hidden @ weight.t()).float(), -1)
    with torch.no_grad():
        (logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, targets[:, None]).sum()


def memory(key: str) -> int:
    """Bytes of this process by /proc: VmRSS now, VmHWM at its peak. (ru_maxrss would begin with that of the parent.)"""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def make_inputs(tokens: int, vocabulary: int, hidden: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    states = torch.empty(tokens, hidden, dtype=dtype).normal_().requires_grad_()
    weight = torch.empty(vocabulary, hidden, dtype=dtype).normal_(std=0.03).requires_grad_()
    return states, weight, torch.randint(vocabulary, (tokens,))


def peak_above(way: Way, tokens: int, vocabulary: int, hidden: int, dtype: torch.dtype) -> int:
    """Bytes of the peak over one forward and backward pass above inputs and, in the backward pass, the head's gradient;
    call it once in a fresh process."""
    way(*make_inputs(3, 7, hidden, dtype)).backward()  # libraries load what they need
    states, weight, targets = make_inputs(tokens, vocabulary, hidden, dtype)
    before = memory("VmRSS")
    loss = way(states, weight, targets)
    forward = memory("VmHWM") - before
    loss.backward()
    assert weight.grad is not None
    return max(forward, memory("VmHWM") - before - weight.grad.nbytes)


def time_ratio(way: Way, inputs: tuple[Tensor, Tensor, Tensor], repeats: int) -> tuple[float, float]:
    """Median ratios of `way` and the plain way: by the wall clock, and by this process's CPU seconds, which other work
    on the machine disturbs less."""
    ratios: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):
        taken = []
        for one in (way, plain):
            inputs[0].grad = inputs[1].grad = None
            wall, cpu = time.perf_counter(), time.process_time()
            one(*inputs).backward()
            taken.append((time.perf_counter() - wall, time.process_time() - cpu))
        if repeat:  # the first warms up
            for kind, (ours, theirs) in zip(ratios, zip(*taken, strict=True), strict=True):
                kind.append(ours / theirs)
    return statistics.median(ratios[0]), statistics.median(ratios[1])


def in_fresh_process(part: str, dtype: str, args: argparse.Namespace) -> float:
    """What `--part` prints: a number."""
    same = [f"--{name}={getattr(args, name.replace('-', '_'))}" for name in _NUMBERS]
    same += ["--entropy-gradient"] if args.entropy_gradient else []
    command = [sys.executable, __file__, "--part", part, "--dtype", dtype, "--head-dtype", args.head_dtype, *same]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


_NUMBERS = ("tokens", "vocabulary", "hidden", "chunk", "plain-tokens", "time-tokens", "repeats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--chunk", type=int, default=LearnerConfig.model_fields["head_chunk"].default)
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--head-dtype", default="same", choices=["same", "float32"])
    parser.add_argument("--entropy-gradient", action="store_true", help="a loss that uses the entropy")
    parser.add_argument("--plain-tokens", type=int, default=1024)
    parser.add_argument("--time-tokens", type=int, default=1024, help="0: do not measure times")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", choices=["blocks", "plain"], help="one measurement in this process, in bytes")
    args = parser.parse_args()
    way = in_blocks(args.chunk, None if args.head_dtype == "same" else torch.float32, args.entropy_gradient)
    for name in args.dtype:
        dtype = getattr(torch, name)
        if args.part is not None:
            chosen, tokens = (way, args.tokens) if args.part == "blocks" else (plain, args.plain_tokens)
            print(peak_above(chosen, tokens, args.vocabulary, args.hidden, dtype))
            continue
        line = {"dtype": name, "head_dtype": args.head_dtype, "tokens": args.tokens, "chunk": args.chunk}
        line["blocks_gb"] = round(in_fresh_process("blocks", name, args) / 1e9, 3)
        if args.plain_tokens:
            scaled = in_fresh_process("plain", name, args) * args.tokens / args.plain_tokens
            line["plain_gb_scaled"] = round(scaled / 1e9, 2)
        if args.time_tokens:
            inputs = make_inputs(args.time_tokens, args.vocabulary, args.hidden, dtype)
            wall, cpu = time_ratio(way, inputs, args.repeats)
            line |= {"time_tokens": args.time_tokens, "time_ratio": round(wall, 3), "cpu_ratio": round(cpu, 3)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
