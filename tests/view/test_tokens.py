"""Pieces of text, one a token."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rlvr.view.tokens import pieces


def byte_tokenizer() -> Tokenizer:
    """One token a byte, as byte-level BPE without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("text", ["plain text", "größer", "你好 🙂 x", "🙂" * 20, ""])
def test_pieces_join_to_the_text(text: str) -> None:
    """Theorem: one piece a token, together the decoded text; a character stands with the byte that completes it."""
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == text
    assert [one for one in found if one] == list(text)


def test_bytes_that_are_no_character_do_not_hold_up_what_follows() -> None:
    tokenizer = byte_tokenizer()
    broken = tokenizer.encode("🙂").ids[:2] + tokenizer.encode("then this").ids
    found = pieces(tokenizer, broken)
    assert len(found) == len(broken)
    assert "".join(found).endswith("then this")


@pytest.mark.slow
def test_a_decoder_that_drops_the_first_space_keeps_those_between() -> None:
    """Metaspace, as in Llama's first tokenizer: a word's own space is its own only behind another word."""
    vocabulary = {"▁one": 0, "▁two": 1, "s": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    assert pieces(tokenizer, [0, 1, 2, 0]) == ["one", " two", "s", " one"]
