"""Common to all engines: the text of a completion up to its stop string, and the checks before they start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlvr.engines.protocol import EngineError
from rlvr.records import Request


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


def completion_text(tokenizer: Decoder, ids: Sequence[int], stops: Sequence[str]) -> str:
    """The decoded tokens without special ones, cut after the stop string that completes first, if one of `stops` does.

    The token that completes a stop string may go on after it: the ids keep that tail, the text does not.
    """
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def check_fits(request: Request, model_len: int) -> None:
    """Raises `EngineError` if prompt and completion together may not fit the model."""
    prompt, new = len(request.prompt_ids), request.sampling.max_new_tokens
    if not prompt or not new or prompt + new > model_len:
        raise EngineError(
            f"request {request.id!r}: prompt of {prompt} tokens, max_new_tokens {new}; each must be at least 1, "
            f"their sum at most the model length {model_len}"
        )


def check_lengths(sequences: Sequence[Sequence[int]], model_len: int) -> None:
    """Raises `EngineError` if a sequence to be scored is empty or longer than the model."""
    for index, ids in enumerate(sequences):
        if not 1 <= len(ids) <= model_len:
            raise EngineError(f"sequence {index} has {len(ids)} tokens; must be 1 to {model_len}")
