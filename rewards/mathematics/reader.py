"""From an answer's text to what can be compared: a tree, or words, or a letter of multiple choice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rewards.mathematics.nodes import Node, TooLarge, Unreadable
from rewards.mathematics.normalise import normalise
from rewards.mathematics.parse import Parser

TEXT_COMMAND = re.compile(r"\\text\s*\{([^{}]*)\}")
CHOICE = re.compile(r"\(?([A-Za-z])\)?(?:\s*[.:)]\s*.*|\s+[^*+=^_/<>].*)?\Z", re.DOTALL)
CHOICE_WITH_CONTENT = re.compile(r"\(([A-J])\)\s*\S|([A-J])[.:)]\s+\S")
CAPTION = re.compile(r"(?:^|(?<=, ))[A-Z]?[a-z]{2,}(?: [a-z]+)*\s*:\s*")
LEAD = re.compile(
    r"^(?!.*\bnot\b)(?:\\text\s*\{[^{}]*?(?:\bis\b|:|=)\s*\}|(?:[A-Za-z]{2,}\s+)*(?:is|are)\s+(?=[\d\\(\[-]))\s*"
)
NAMED = re.compile(r"^(?:\\text\s*\{[^{}]*\}|[A-Za-z]{4,}(?: [a-z]+)*)\s*(?==)")
WORDS = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?", re.UNICODE)
ARTICLES = frozenset(("a", "an", "the"))


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer as it was read."""

    text: str
    """The normalised text."""
    node: Node | None
    """The tree, or None where the answer is words."""
    reason: str = ""
    """Why there is no tree."""


@lru_cache(maxsize=8192)
def read(text: str, thousands: bool = True) -> Reading:
    """The answer as a tree where it is mathematics. Raises `TooLarge` for what is too long or too deep."""
    normal = normalise(text)
    if not normal:
        raise Unreadable("an empty answer")
    plain = TEXT_COMMAND.sub(r"\1", normal).strip()
    if len(plain) > 2 and plain.isalpha() and "\\" not in plain:
        return Reading(normal, None, "words")
    trimmed = CAPTION.sub("", NAMED.sub("y ", LEAD.sub("", normal)))
    try:
        return Reading(normal, Parser(trimmed, thousands).parse())
    except TooLarge:
        raise
    except (Unreadable, RecursionError) as error:
        return Reading(normal, None, str(error))


def words(reading: Reading) -> list[str]:
    """The words of an answer for comparing text: lower case, no articles, no punctuation."""
    plain = TEXT_COMMAND.sub(r" \1 ", reading.text)
    return [word for word in WORDS.findall(plain.lower()) if word not in ARTICLES]


def choice_of_reference(text: str) -> str | None:
    """The letter of a reference such as ``B``, ``(D)``, ``(D) Alina`` or ``\\text{(C)}``, or None."""
    plain = TEXT_COMMAND.sub(r"\1", normalise(text)).strip()
    if re.fullmatch(r"\(?[A-J]\)?", plain):
        return plain.strip("()")
    match = CHOICE_WITH_CONTENT.match(plain)
    return (match.group(1) or match.group(2)) if match else None


def choice_of_answer(text: str) -> str | None:
    """The letter that an answer chooses: ``b``, ``(B)``, ``B. 12``; None where it is no single choice."""
    plain = re.sub(r"^(?:option|choice|answer)\s+", "", TEXT_COMMAND.sub(r"\1", normalise(text)).strip(), flags=re.I)
    match = CHOICE.match(plain)
    if match is None:
        return None
    if match.group(1).islower() and re.match(r"\s+\w", plain[match.end(1) :]):
        return None  # "a man" is no choice of A
    rest = plain[match.end(1) :].lstrip(") .:")
    if re.match(r"(?:(?:,|and|or|&)\s*)?\(?[A-J]\)?(?![A-Za-z])", rest):
        return None  # two letters are no choice
    return match.group(1).upper()
