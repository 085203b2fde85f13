"""Recipe section of `rlvr select`: which completions become training rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlvr.config.base import Fraction01, NonNegativeInt, Section

Range = tuple[NonNegativeInt, NonNegativeInt | None]
"""Least and most; None is no bound."""


class Finished(Section):
    """Completions that end by themselves, not by the token limit."""

    type: Literal["finished"]


class LanguageFilter(Section):
    """Completions in one language, as `rewards.language` judges words by script and by the commonest ones."""

    type: Literal["language"]
    language: str
    at_least: Fraction01 = 0.95
    """Share of its words."""


class ParagraphFilter(Section):
    """Completions without long paragraphs (DeepSeek-R1, section 2.3.3)."""

    type: Literal["paragraph"]
    most_words: PositiveInt = 200


class NoCodeBlock(Section):
    """Completions without a fenced block of code (DeepSeek-R1, section 2.3.3)."""

    type: Literal["no_code_block"]


class RepetitionFilter(Section):
    """Completions that do not repeat themselves."""

    type: Literal["repetition"]
    ngram: PositiveInt = 4
    """Words."""
    most: Fraction01 = 0.3
    """Share of n-grams that stood before."""


class LengthFilter(Section):
    """Completions of so many tokens."""

    type: Literal["length"]
    least: NonNegativeInt = 0
    most: PositiveInt


class SameTokens(Section):
    """Completions whose text is read back as as many tokens as were sampled; of others, fine-tuning sees other ones."""

    type: Literal["same_tokens"]


Filter = Annotated[
    Finished | LanguageFilter | ParagraphFilter | NoCodeBlock | RepetitionFilter | LengthFilter | SameTokens,
    Field(discriminator="type"),
]


class Mix(Section):
    """Rows of another file, appended as they are."""

    path: str
    """JSON lines with the columns that `rlvr sft` or `rlvr dpo` will read."""
    rows: PositiveInt | None = None
    """So many of them, drawn by the run's seed; None takes all."""


class Select(Section):
    """Settings of ``rlvr select``: from sampled completions to rows for ``rlvr sft`` and ``rlvr dpo``."""

    rule: Literal["correct", "shortest_correct", "random_correct", "pairs"] = "correct"
    """Which right completions of a problem become rows: the first, the shortest, or drawn ones; ``pairs`` has the
    shortest right one as chosen beside rejected ones."""
    keep: PositiveInt = 1
    """Rows a problem, at most; texts that are equal count once."""
    term: str | None = None
    """The reward term that says what is right; None is the first."""
    success: float = 1.0
    """Its score from which a completion is right."""
    right: Range = (1, None)
    """Right completions that a problem must have, of those sampled."""
    wrong: Range = (0, None)
    """Wrong completions that a problem must have."""
    steps: tuple[NonNegativeInt | None, NonNegativeInt | None] = (None, None)
    """First and last step of a run whose completions are looked at; None is no bound."""
    rejects: Literal["wrong", "longer"] = "wrong"
    """Of ``pairs``: wrong completions, or Kimi k1.5's (2501.12599, section 2.4): wrong ones that are longer than the
    chosen one, and right ones that are `ratio` times as long."""
    ratio: PositiveFloat = 1.5
    filters: list[Filter] = []
    """What a completion to imitate must be; of a pair, the chosen one."""
    mix: list[Mix] = []

    @model_validator(mode="after")
    def _ranges(self) -> Select:
        for key in ("right", "wrong", "steps"):
            least, most = getattr(self, key)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{key} must be [least, most], got [{least}, {most}]; swap them")
        return self
