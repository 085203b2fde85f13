"""Tokens trained a second under each schedule, on completions whose lengths have a long tail.

    PYTHONPATH=. python benchmarks/long_tail.py [--seeds 0,1,2] [--schedules synchronous,partial,...] [--steps 30]

One run of benchmarks/long_tail.yaml for each seed and schedule, one after another, the schedules of a seed next to each
other. The base model (0.4 million weights, made at the first call in about 5 minutes) writes a log-normal number of
filler tokens before each worked addition: the median of all lengths is 40 tokens, the 95th percentile 320. Prints, over
the steps behind the first three: trained tokens a second of the whole step, the same against synchronous, lengths,
ages, and held-out pass@1 at the evaluations; then all of it as one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from rlvr.config import Recipe
from rlvr.problems.examples import Example
from rlvr.problems.sources import load_problems
from rlvr.recipes.base_models import (
    SFT_BATCH,
    TAGS,
    fine_tuned_llama,
    operands_of,
    reasoning_tokenizer,
    worked_solution,
)
from rlvr.records import Problem
from rlvr.runlog.run_log import read_metrics

MEDIAN, RATIO = 40, 8
"""Of the tokens of a completion: the median, and the 95th percentile over it."""
REASONING = 22
"""Tokens of a worked addition without any filler."""
SFT_STEPS = 1200
SKIPPED = 3
"""Steps that are not counted: the pipelines fill."""

SCHEDULES = {
    "synchronous": "{type: synchronous}",
    "partial": "{type: partial, oversample: 2, max_staleness: 4}",
    "budget": "{type: partial, oversample: 2, max_staleness: 4, tokens: 64}",
    "ahead": "{type: ahead}",
    "asynchronous": "{type: asynchronous, oversample: 2, max_staleness: 4}",
}


def filler(rng: random.Random) -> str:
    """Nothing, or n tokens of a kind that tells the power of two below n, so that a model can learn the distribution
    from the token before; n is such that the completion's length is log-normal."""
    sigma = math.log(RATIO) / 1.6449
    count = round(rng.lognormvariate(math.log(MEDIAN), sigma)) - REASONING
    return f" h{int(math.log2(count))}" * min(count, 900) if count > 0 else ""


def rambler(recipe: Recipe) -> None:
    """The base model: quickstart's, which has learned to ramble first."""
    rng = random.Random(0)
    problems: Sequence[Problem] = load_problems(recipe.problems.train)
    drawn = [rng.choice(problems) for _ in range(SFT_STEPS * SFT_BATCH)]
    examples = []
    for one in drawn:
        solution = worked_solution(*operands_of(one), rng)
        examples.append(Example(one, solution.replace(TAGS[0], TAGS[0] + filler(rng), 1)))
    texts = [f"User: {one.prompt} Assistant:{worked_solution(*operands_of(one), rng)}" for one in drawn[:2000]]
    tokenizer = reasoning_tokenizer(texts)
    tokenizer.add_tokens([AddedToken(f" h{power}", normalized=False) for power in range(10)])
    fine_tuned_llama(recipe, tokenizer, [(examples, SFT_STEPS)], positions=1024, seed=0)


def measure(schedule: str, seed: int, steps: int) -> dict[str, Any]:
    """One run, from its folder."""
    name = f"{schedule}-{seed}"
    folder = Path("runs/long_tail") / name
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable, "-m", "rlvr", "train", "benchmarks/long_tail.yaml", f"name={name}", f"run.seed={seed}",
        f"run.steps={steps}", f"rollout.schedule={SCHEDULES[schedule]}",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = read_metrics(folder)
    counted = [line for line in lines if line["step"] > SKIPPED]
    lengths = [json.loads(line)["tokens"] for line in (folder / "rollouts.jsonl").open()]
    cuts = statistics.quantiles(lengths, n=20)
    seconds = sum(line["time/step"] - line["time/eval"] - line["time/checkpoint"] for line in counted)
    return {
        "schedule": schedule,
        "seed": seed,
        "trained_per_second": sum(line["tokens/trained"] for line in counted) / seconds,
        "trained": sum(line["tokens/trained"] for line in lines if line["step"] > 0),
        "seconds": seconds,
        "waiting": sum(line["time/generate"] for line in counted) / seconds,
        "median": cuts[9],
        "p95": cuts[18],
        "staleness": statistics.fmean(line.get("staleness/mean", 0.0) for line in counted),
        "pass@1": [round(line["eval/held_out/pass@1"], 3) for line in lines if "eval/held_out/pass@1" in line],
        "reward": [round(line["reward/mean"], 3) for line in lines if line["step"] > 0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--schedules", default=",".join(SCHEDULES))
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for seed in map(int, arguments.seeds.split(",")):
        for schedule in arguments.schedules.split(","):
            one = measure(schedule, seed, arguments.steps)
            found.append(one)
            plain = [b for b in found if (b["schedule"], b["seed"]) == ("synchronous", seed)]
            base = plain[0]["trained_per_second"] if plain else 0.0
            print(
                f"{schedule:13} seed {seed}: {one['trained_per_second']:6.0f} trained tokens/s"
                + (f" ({one['trained_per_second'] / base:.2f} x synchronous)" if base else "")
                + f"  waiting {one['waiting']:.0%}  length median {one['median']:.0f} p95 {one['p95']:.0f}"
                f"  age {one['staleness']:.2f}  pass@1 {one['pass@1']}",
                flush=True,
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
