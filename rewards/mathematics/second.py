"""math-verify and sympy as the last instance, for notation that the own reader does not know.

It is asked only about the notation in `WANTED`, because elsewhere it drops what it cannot read ("5 *" and "5|6" are 5).
Nor do answers reach it that a guard objects to: it drops units, percents, bases and labels, merges sets with tuples
and intervals, reads the last side of a chain of equations, and computes towers of powers until somebody kills it.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from rewards.mathematics.nodes import Node, Unreadable

MAX_LENGTH = 300
WANTED = re.compile(r"\\cap|\\begin\{[vV]matrix\}|\\det|\\operatorname|\\overline|\\mod|\\pmod|\\cos\^|\\mathrm\{d\}")
SAME_NAMES = "sin cos tan cot sec csc sinh cosh tanh coth gamma factorial arg"
SYMPY_NAMES = {name: name for name in SAME_NAMES.split()} | {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc",
    "arsinh": "asinh", "arcosh": "acosh", "artanh": "atanh", "ln": "log", "abs": "Abs", "floor": "floor",
    "ceil": "ceiling", "binom": "binomial", "sgn": "sign", "Re": "re", "Im": "im", "max": "Max", "min": "Min",
}  # fmt: skip
BALANCED = {")": "([", "]": "([", "}": "{"}
MAX_DEPTH = 12
MAX_NODES = 60
MAX_NUMBER = 10**12
"""The largest expression and number that sympy is asked about."""
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


def is_zero(node: Node) -> bool:
    """Whether sympy proves that an expression without symbols is 0."""
    if not _is_small(node):
        return False
    import sympy

    try:
        expression = expression_of(node)
        return expression.equals(0) is True or sympy.simplify(expression) == 0
    except (Unreadable, ValueError, TypeError, NotImplementedError, ArithmeticError, RecursionError):
        return False


def _is_small(node: Node, room: int = MAX_NODES) -> bool:
    """Whether an expression has few nodes and no large powers: sympy computes towers until somebody kills it."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        room -= 1
        if room < 0 or (each.op == "pow" and each.args[1].op != "num" and each.args[0].op == "num"):
            return False
        if each.op in ("num", "dec") and max(abs(each.value if each.op == "num" else each.value[0]), 1) > MAX_NUMBER:
            return False
        waiting += each.args
    return True


def expression_of(node: Node) -> Any:
    """The tree in sympy."""
    import sympy

    match node.op:
        case "num":
            return sympy.Rational(node.value.numerator, node.value.denominator)
        case "dec":
            return sympy.Rational(node.value[0].numerator, node.value[0].denominator)
        case "const":
            return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[node.value]
        case "add" | "mul" | "pow":
            operation = {"add": sympy.Add, "mul": sympy.Mul, "pow": sympy.Pow}[node.op]
            return operation(*map(expression_of, node.args))
        case "deg":
            return expression_of(node.args[0]) * sympy.pi / 180
        case "fn" if node.value in SYMPY_NAMES:
            return getattr(sympy, SYMPY_NAMES[node.value])(*map(expression_of, node.args))
    raise Unreadable(f"{node.op} has no counterpart in sympy")
