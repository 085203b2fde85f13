"""Tiny random models with a tokenizer, made by code: no downloads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIALS = ["<pad>", "<bos>", "<eos>"]
CHARACTERS = ["\n", *(chr(code) for code in range(32, 127))]
VOCABULARY = 128


def make_tiny_tokenizer(characters: Iterable[str] = CHARACTERS, size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """One token a character; ids 0, 1, 2 are pad, begin and end of text."""
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *characters])}
    vocabulary |= {f"<unused{i}>": i for i in range(len(vocabulary), size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=256
    )


def make_tiny_model(folder: Path, *, tied: bool = True, qwen: bool = False, seed: int = 0) -> Path:
    """A folder with a random 2-layer Llama (or Qwen2, which has biases), its predictions far from flat."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**shape)) if qwen else LlamaForCausalLM(LlamaConfig(**shape))
    if qwen:
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder
