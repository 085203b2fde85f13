"""math-verify and sympy as the last instance, for notation that the own reader does not know.

It is asked only about the notation in `WANTED`, because elsewhere it drops what it cannot read ("5 *" and "5|6" are 5).
Nor do answers reach it that a guard objects to: it drops units, percents, bases and labels, merges sets with tuples
and intervals, reads the last side of a chain of equations, and computes towers of powers until somebody kills it.
"""

from __future__ import annotations

import logging
import re
from typing import Any

MAX_LENGTH = 300
WANTED = re.compile(r"\\cap|\\begin\{[vV]matrix\}|\\det|\\operatorname|\\overline|\\mod|\\pmod|\\cos\^|\\mathrm\{d\}")
BALANCED = {")": "([", "]": "([", "}": "{"}
MAX_DEPTH = 12
FORBIDDEN = re.compile(
    r"=|%|:|\\neq|\\text|\\deg|\\pm|!|\d_|\\(?:sum|prod|int|lim|forall|exists)|&(?!.*\\end)|\\emptyset"
    r"|\^\s*\{?[^{}]*\^|\^\s*\{?\s*-?\d{4,}|\b(?:and|or|not)\b",
    re.DOTALL,
)


def warm_up() -> None:
    """Import math-verify and sympy, and run each once: their first calls build tables."""
    agrees(r"\{1,2\} \cap \{2,3\}", r"\{2,1\} \cap \{2,3\}")


def agrees(gold: str, answer: str) -> bool:
    """Whether math-verify holds the answer to be the reference; False wherever a guard objects."""
    if not (WANTED.search(gold) or WANTED.search(answer)):
        return False
    if not (_admitted(gold) and _admitted(answer) and _shape(gold) == _shape(answer)):
        return False
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    configs = [LatexExtractionConfig(), ExprExtractionConfig()]

    def reading(text: str) -> list[Any]:
        found: list[Any] = parse(f"${text}$", configs, fallback_mode="no_fallback", parsing_timeout=None)
        return found

    golds, answers = reading(gold), reading(answer)
    if not golds or not answers:
        return False
    return bool(verify(golds, answers, strict=True, timeout_seconds=None))


def _admitted(text: str) -> bool:
    if not text or len(text) > MAX_LENGTH or FORBIDDEN.search(text) or text[-1] in "*-+/^_":
        return False
    opened: list[str] = []
    for char in text:
        if char in "({[":
            opened.append(char)
        elif char in BALANCED and (not opened or opened.pop() not in BALANCED[char]):
            return False
        if len(opened) > MAX_DEPTH:
            return False
    return not opened


def _shape(text: str) -> tuple[bool, int, int]:
    """What must agree before math-verify is asked: braces of sets, commas, brackets at the ends."""
    return r"\{" in text, text.count(","), text.count("(") - text.count("[")
