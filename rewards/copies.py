"""What can be copied from a problem's text without any work: its formulas, their sides and members, and its numbers."""

from __future__ import annotations

import re

from rewards.extract import spans

NUMBER = re.compile(
    r"(?<![\w.\\])-?(?:\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}|\d+\s*/\s*\d+|\d[\d,]*\d(?:\.\d+)?|\d+\.\d+|\.\d+|\d)"
    r"(?:\s*\\?%)?(?![\w])"
)
ARITHMETIC = re.compile(r"(?<![\w.])[-(]*\d[\d\s.,()+\-*/×÷^−]*[\d)](?![\w])")
"""Arithmetic in plain text: ``12 + 34``."""
SIGN = re.compile(r"[+\-*/×÷^−]")
RELATION = re.compile(r"\\(?:leq?|geq?|neq?|lt|gt|approx|equiv|in)(?![a-zA-Z])|[=<>≤≥]|&=?|\\\\")
LIST = re.compile(r"[,;]|\\q?quad|\\text\s*\{[^{}]*\}")
DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
"""A figure as code, whose coordinates are no text of the problem."""
LONGEST = 400


def copies(problem: str) -> list[str]:
    """Each different thing that a policy could copy into its answer, in the order of the text.

    Formulas as they stand between dollars or brackets, the sides of their relations, the members of their lists,
    arithmetic in plain text, and numbers.
    """
    problem = DRAWING.sub("", problem)
    found: list[str] = []
    for _, _, formula in spans(problem):
        found.append(formula)
        for side in RELATION.split(formula):
            found += side, *LIST.split(side)
        found += LIST.split(formula)
        inside = re.sub(r"\\(?:begin|end)\s*\{[a-z]+\*?\}(?:\{[^{}]*\})?", "", formula)
        found += RELATION.split(inside) if inside != formula else []
    found += [match.group() for match in ARITHMETIC.finditer(problem) if SIGN.search(match.group()[1:])]
    found += [match.group() for match in NUMBER.finditer(problem)]
    stripped = (text.strip(" \t\n.,;:?&") for text in found)
    return [text for text in dict.fromkeys(stripped) if text and len(text) <= LONGEST]
