"""Slot ``rollout.engine.speculative``: which drafter proposes the tokens that the policy then only verifies.

Proposals change how fast tokens come, not which ones: rejection sampling (2211.17192) keeps the policy's distribution.
A drafter that learns from the policy would be another type here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from rlvr.config.base import Section


class NgramDrafts(Section):
    """Propose what followed the same tokens earlier in prompt and completion: needs no model, good for repetitive
    texts."""

    type: Literal["ngram"]
    tokens: PositiveInt = 4
    """Most tokens that are proposed at a time."""
    shortest: PositiveInt = 2
    """Last tokens that must be the same, at least..."""
    longest: PositiveInt = 4
    """...and at most."""

    @model_validator(mode="after")
    def _range(self) -> NgramDrafts:
        if self.shortest > self.longest:
            raise ValueError(f"shortest must be at most longest = {self.longest}, got {self.shortest}")
        return self


class SuffixDrafts(Section):
    """Propose what followed in this and earlier completions, by suffix trees (SuffixDecoding, 2411.04975); needs the
    package arctic-inference."""

    type: Literal["suffix"]
    tokens: PositiveInt = 24
    """Most tokens that are proposed at a time."""


class ModelDrafts(Section):
    """A smaller model with the policy's vocabulary, or heads on the policy's hidden states (EAGLE, 2401.15077; EAGLE-3,
    2503.01840). Its weights stay as they are: the further the policy moves, the fewer of its tokens are accepted."""

    type: Literal["draft_model", "eagle", "eagle3"]
    path: str
    """A Hugging Face folder or a name on the hub."""
    tokens: PositiveInt = 3
    """Tokens that are proposed at a time."""


Speculative = Annotated[NgramDrafts | SuffixDrafts | ModelDrafts, Field(discriminator="type")]
