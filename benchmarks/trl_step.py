"""GRPO steps of TRL on a CPU, on the work that `benchmarks/trl_peer.yaml` gives rlvr.

`benchmarks/step_beside_trl.py` runs it in an environment of TRL's own, where rlvr is not installed:

    python benchmarks/trl_step.py MODEL_FOLDER [--steps 6]

Each step samples 8 completions of at most 64 tokens for 8 questions ("What is 7*8?", factors from 2 to 12) at
temperature 1, rewards those whose last number is right, and makes one optimizer step at rate 5e-6: bfloat16 weights, no
reference model, micro-batches of 16. The last line of the output is a JSON object: medians and means over all steps but
the first, which also warms up, and the peak resident memory of the process in GB.
"""

import argparse
import json
import random
import re
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

PROMPTS, GROUP, MICRO_BATCH = 8, 8, 16
SAMPLES = PROMPTS * GROUP


def questions(count: int) -> Dataset:
    """Products of two factors as chat prompts, each with its result in the column ``product``."""
    rng = random.Random(0)
    factors = [(rng.randint(2, 12), rng.randint(2, 12)) for _ in range(count)]
    prompts = [[{"role": "user", "content": f"What is {left}*{right}?"}] for left, right in factors]
    return Dataset.from_dict({"prompt": prompts, "product": [left * right for left, right in factors]})


def is_right(completions: list[list[dict[str, str]]], product: list[int], **_: Any) -> list[float]:
    """1 for each completion whose last whole number is the product, else 0."""
    rewards = []
    for messages, result in zip(completions, product, strict=True):
        numbers = re.findall(r"-?\d+", messages[-1]["content"])
        rewards.append(1.0 if numbers and int(numbers[-1]) == result else 0.0)
    return rewards


class Clock(TrainerCallback):
    """Notes when training began and when each step ended."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.marks.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append(time.perf_counter())
        print(f"step {len(self.marks) - 1}: {self.marks[-1] - self.marks[-2]:.2f} s", file=sys.stderr, flush=True)

    def steps(self) -> list[float]:
        """Seconds of each step."""
        return [end - start for start, end in zip(self.marks, self.marks[1:], strict=False)]


def train(model: str, steps: int, folder: str) -> dict[str, float]:
    """Train and sum up; what the trainer saves goes to the folder."""
    clock = Clock()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=is_right,
        train_dataset=questions(steps * PROMPTS),
        callbacks=[clock],
        args=GRPOConfig(
            output_dir=folder,
            max_steps=steps,
            # one optimizer step takes SAMPLES completions, in micro-batches
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=SAMPLES // MICRO_BATCH,
            num_generations=GROUP,
            max_completion_length=64,
            temperature=1.0,
            learning_rate=5e-6,
            beta=0.0,  # no reference model
            model_init_kwargs={"dtype": torch.bfloat16},
            bf16=False,  # the weights are in bfloat16, so nothing is cast
            gradient_checkpointing=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    lengths = [float(line["completions/mean_length"]) for line in trainer.state.log_history if "reward" in line]
    seconds = statistics.median(clock.steps()[1:])
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of 1024 bytes on Linux
    return {
        "seconds_per_step": seconds,
        "samples_per_second": SAMPLES / seconds,
        "mean_completion_tokens": statistics.mean(lengths[1:]),
        "peak_rss_gb": kib * 1024 / 1e9,
    }


def main() -> None:
    """Train in a folder that is thrown away and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the model, in the Hugging Face format")
    parser.add_argument("--steps", type=int, default=6, help="steps to train, at least 2: the first is left out")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps must be at least 2, got {arguments.steps}: the first step is left out of the figures")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(train(arguments.model, arguments.steps, folder)))


if __name__ == "__main__":
    main()
