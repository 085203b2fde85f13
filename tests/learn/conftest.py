"""Tiny models and samples for the learner's tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlvr.records import TrainingSample

VOCABULARY = 97


def tiny_llama(*, tied: bool, seed: int = 0, scale: float = 1.0) -> LlamaForCausalLM:
    """Two layers, grouped-query attention, weights large enough for peaked predictions; end of text is also padding."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.15 * scale,
    )
    return LlamaForCausalLM(config)


def random_samples(
    count: int, *, seed: int = 0, longest: int = 20, groups: int = 4, mismatch: float = 0.1
) -> list[TrainingSample]:
    """Samples of different lengths that end in the padding token, with holes in their masks and made-up
    log-probabilities near those of a flat prediction."""
    rng = random.Random(seed)
    samples = []
    for index in range(count):
        prompt, completion = rng.randint(2, 6), rng.randint(1, longest)
        ids = [rng.randrange(3, VOCABULARY) for _ in range(prompt + completion - 1)] + [2]
        mask = [0] * prompt + [int(rng.random() < 0.9) for _ in range(completion)]
        samples.append(
            TrainingSample(
                ids=tuple(ids),
                loss_mask=tuple(mask),
                behaviour_logprobs=tuple(m * rng.gauss(-4.5, mismatch) for m in mask),
                advantage=rng.gauss(0.0, 1.0),
                group=index % groups,
            )
        )
    return samples


def samples_of_groups(count: int, *, seed: int = 0, longest: int = 20, groups: int = 4) -> list[TrainingSample]:
    """`random_samples` in which the samples of a group continue one prompt of 2 to 9 tokens."""
    rng = random.Random(f"prompts {seed}")
    prompts = [tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(2, 9))) for _ in range(groups)]
    samples = []
    for one in random_samples(count, seed=seed, longest=longest, groups=groups):
        prompt, own = prompts[one.group], one.loss_mask.index(1) if 1 in one.loss_mask else 1
        samples.append(
            replace(
                one,
                ids=prompt + one.ids[own:],
                loss_mask=(0,) * len(prompt) + one.loss_mask[own:],
                behaviour_logprobs=(0.0,) * len(prompt) + one.behaviour_logprobs[own:],
            )
        )
    return samples


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., str]:
    """Writes a tiny Llama and returns its folder."""

    def write(*, tied: bool, seed: int = 0, scale: float = 1.0) -> str:
        folder = tmp_path / f"llama_{tied}_{seed}_{scale}"
        tiny_llama(tied=tied, seed=seed, scale=scale).save_pretrained(folder)
        return str(folder)

    return write
