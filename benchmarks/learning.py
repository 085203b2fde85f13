"""Does every objective learn? A tiny model, a toy task, each surrogate, three seeds: steps to 0.9 of the reward.

    python benchmarks/learning.py [--seeds 3] [--out docs/learning.md]

The task: after one of eight symbols, say it three times; the reward is the share of the three that are right, 1.0 can
be reached, a random policy has 0.11. The model is a Llama of one layer and 32 hidden units with random weights;
completions are drawn from the learner's own policy, so that what is measured is `rlvr.learn` alone, as a recipe uses
it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from rlvr.config import Algorithm, LearnerConfig, Model
from rlvr.learn import update
from rlvr.learn.advantages import mean_baseline, scale
from rlvr.records import TrainingSample

SYMBOLS, LENGTH, PROMPTS, GROUP = 8, 3, 8, 12
STEPS, ENOUGH = 60, 0.9
MEAN: dict[str, Any] = {"aggregation": {"type": "sequence_mean"}}
PRODUCT: dict[str, Any] = {"ratio": {"type": "sequence_product"}}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"surrogate": {"type": "clip", "low": 0.2, "high": 0.28}},
    "clip, ratio sequence_mean (GSPO)": {
        "ratio": {"type": "sequence_mean"}, "surrogate": {"type": "clip", "low": 0.1, "high": 0.1}, **MEAN,
    },
    "clip, ratio sequence_product": {**PRODUCT, **MEAN},
    "reinforce": {"surrogate": {"type": "reinforce"}},
    "cispo": {"surrogate": {"type": "cispo"}},
    "sapo": {"surrogate": {"type": "sapo"}, **MEAN},
    "gmpo": {"surrogate": {"type": "gmpo"}, **MEAN},
    "vespo": {"surrogate": {"type": "vespo"}, **PRODUCT},
    "dppo": {"surrogate": {"type": "dppo"}, "squared_log_ratio": 1e-3},
    "clip_cov": {"surrogate": {"type": "clip_cov", "share": 0.01, "cov_low": 0.5}},
    "kl_cov": {"surrogate": {"type": "kl_cov", "share": 0.01}},
    "squared": {"surrogate": {"type": "squared", "tau": 0.1}, **PRODUCT, **MEAN},
}  # fmt: skip
"""Two optimiser steps a batch each, so that ratios leave 1; baseline and scale are GRPO's."""


def make_model(folder: Path, seed: int) -> str:
    """A random Llama in a folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=SYMBOLS + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.1, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def draw(model: torch.nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [P G, 2 + LENGTH] and the log-probabilities of the completions [P G, LENGTH]."""
    symbols = torch.arange(1, SYMBOLS + 1).repeat_interleave(GROUP)
    ids, logprobs = torch.stack([torch.zeros_like(symbols), symbols], 1), []
    for _ in range(LENGTH):
        chances = torch.log_softmax(model(input_ids=ids).logits[:, -1].float(), -1)
        token = torch.multinomial(chances.exp(), 1, generator=generator)
        logprobs.append(chances.gather(1, token))
        ids = torch.cat([ids, token], 1)
    return ids, torch.cat(logprobs, 1)


def run(algorithm: Algorithm, seed: int, folder: Path) -> Iterator[float]:
    """Mean reward of each batch, one a step, while the policy is trained on it."""
    learner = update.Learner(
        Model(path=make_model(folder, seed)), LearnerConfig(lr=0.005), algorithm,
        total_updates=2 * STEPS, temperature=1.0, accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    while True:
        ids, logprobs = draw(learner.policy.model, generator)
        rewards = (ids[:, 2:] == ids[:, 1:2]).float().mean(1)
        rewards_P_G = rewards.view(PROMPTS, GROUP).tolist()
        centred = [[r - b for r, b in zip(g, mean_baseline(g), strict=True)] for g in rewards_P_G]
        advantages = [a for group in scale(centred, rewards_P_G, algorithm.scale) for a in group]
        learner.update(
            [
                TrainingSample(
                    ids=tuple(row), loss_mask=(0, 0) + (1,) * LENGTH, behaviour_logprobs=(0.0, 0.0, *known),
                    advantage=advantage, group=index // GROUP,
                )
                for index, (row, known, advantage) in enumerate(
                    zip(ids.tolist(), logprobs.tolist(), advantages, strict=True)
                )
            ]
        )  # fmt: skip
        yield float(rewards.mean())


def steps_to_learn(settings: dict[str, Any], seed: int) -> tuple[int | None, float]:
    """The first step whose batch has a mean reward of at least 0.9 (None if no step of 60 does), and the last mean."""
    algorithm = Algorithm.model_validate({"updates_per_batch": 2, **settings})
    reward = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for step, reward in enumerate(run(algorithm, seed, Path(folder)), start=1):
            if reward >= ENOUGH:
                return step, reward
            if step == STEPS:
                break
    return None, reward


def table(seeds: int) -> str:
    """The page."""
    lines = [
        "# Does every objective learn?\n",
        "Made by `make bench-learning` (`benchmarks/learning.py`): a Llama of one layer learns to say a symbol three",
        f"times. Steps of {PROMPTS} groups of {GROUP} completions, two optimiser steps each, AdamW with lr 0.005, "
        "until a",
        f"batch drawn from the policy has a mean reward of {ENOUGH} (1.0 can be reached, a random one has",
        f"0.11); at most {STEPS} steps. The table says that each objective learns, not which one is better.\n",
        "| surrogate | steps by seed | mean |",
        "|---|---|---|",
    ]
    for name, settings in OBJECTIVES.items():
        found = [steps_to_learn(settings, seed) for seed in range(seeds)]
        steps = [step for step, _ in found if step is not None]
        shown = ", ".join(str(step) if step is not None else f"not in {STEPS} ({last:.2f})" for step, last in found)
        mean = f"{statistics.fmean(steps):.0f}" if len(steps) == seeds else "-"
        lines.append(f"| {name} | {shown} | {mean} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all, print and write the table; the exit status is 1 if an objective did not learn with a seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    page = table(options.seeds)
    if options.out is not None:
        options.out.write_text(page)
    raise SystemExit(1 if "not in" in page else 0)


if __name__ == "__main__":
    main()
