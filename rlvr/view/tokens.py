"""Splits a completion into the text of each token."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

WINDOW = 5
"""Tokens that are waited for until a character is complete: its bytes are four at most."""


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token; together they are the text of all. Special tokens are shown by their names.

    A character whose bytes are spread over several tokens belongs to the token that completes it, the others are "".
    """
    result: list[str] = []
    start = read = 0  # ids[start:read] are done; the next ones are decoded after them
    for end in range(1, len(ids) + 1):
        shown = tokenizer.decode(list(ids[start:read]), skip_special_tokens=False)
        text = tokenizer.decode(list(ids[start:end]), skip_special_tokens=False)
        if text.endswith("\ufffd") and end - read < WINDOW and end < len(ids):  # a character is not complete yet
            result.append("")
        else:
            result.append(text[len(shown) :])
            start, read = read, end
    return result
