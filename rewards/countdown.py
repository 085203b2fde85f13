"""The Countdown game: reach a target with the given numbers and + - * /, judged by reading, never by eval."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from rewards.extract import check_mode
from rewards.extract import extract as extract_answer
from rewards.verdict import BadReference, Outcome, Verdict

MAX_LENGTH = 300
"""Characters of an expression; six numbers need far fewer."""
MAX_DIGITS = 12
MAX_DEPTH = 50
ALLOWED = re.compile(r"[0-9+\-*/() \t]+\Z")
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})


class _Refused(Exception):
    """The expression uses what the game does not have; the message says what."""


class CountdownVerifier:
    """Grades an arithmetic expression against ``{"numbers": [3, 7, 50], "target": 29}``.

    The answer is an expression of the given integers, ``+ - * /`` and parentheses, computed exactly (fractions on
    the way are fine). A trailing ``= value`` is read as a claim and must be true. ``use_all=True`` (TinyZero's rule)
    asks for each given number exactly once, False for at most once. ``extract`` finds the answer in the text
    (`rewards.extract`). ``legal_score`` is the score of a legal expression that misses the target: 0.0 unless asked
    for (TinyZero gave 0.1).
    """

    lowest_score = 0.0

    def __init__(self, extract: str = "answer_tag", use_all: bool = True, legal_score: float = 0.0) -> None:
        if not 0.0 <= legal_score < 1.0:
            raise ValueError(f"legal_score: {legal_score!r} must be at least 0 and below 1")
        self.extract = extract
        self.use_all = use_all
        self.legal_score = legal_score
        check_mode(extract)

    def check_reference(self, reference: Any) -> None:
        """Raises `BadReference` unless reference has integer ``numbers`` and an integer ``target``."""
        _read_reference(reference)

    def grade(self, completion: str, reference: Any) -> Verdict:
        """CORRECT, WRONG (or PARTIAL, if asked for), UNREADABLE or NO_ANSWER."""
        numbers, target = _read_reference(reference)
        extraction = extract_answer(completion, self.extract)
        if extraction.text is None:
            return Verdict(0.0, Outcome.NO_ANSWER, {"reason": extraction.reason})
        detail: dict[str, Any] = {"answer": extraction.text}
        try:
            value, used, claim = _evaluate(extraction.text)
        except _Refused as refusal:
            return Verdict(0.0, Outcome.UNREADABLE, detail | {"reason": str(refusal)})
        detail["value"] = str(value)
        fault = self._fault(Counter(numbers), Counter(used))
        if fault is None and claim is not None and claim != value:
            fault = f"claims {claim}, is {value}"
        if fault is not None:
            return Verdict(0.0, Outcome.WRONG, detail | {"reason": fault})
        if value == target:
            return Verdict(1.0, Outcome.CORRECT, detail)
        outcome = Outcome.PARTIAL if self.legal_score else Outcome.WRONG
        return Verdict(self.legal_score, outcome, detail | {"reason": f"reaches {value}, not {target}"})

    def _fault(self, given: Counter[int], used: Counter[int]) -> str | None:
        foreign = used - given
        if foreign:
            return f"uses {sorted(foreign.elements())} beyond the given numbers"
        if self.use_all and (unused := given - used):
            return f"leaves {sorted(unused.elements())} unused"
        return None


def _read_reference(reference: Any) -> tuple[list[int], int]:
    if not isinstance(reference, Mapping):
        raise BadReference(f"{reference!r:.200} must be an object with 'numbers' and 'target'")
    for key in ("numbers", "target"):
        if key not in reference:
            raise BadReference(f"{reference!r:.200} has no {key!r}")
    numbers, target = reference["numbers"], reference["target"]
    if not isinstance(numbers, list | tuple) or not numbers or not all(type(n) is int and n >= 0 for n in numbers):
        raise BadReference(f"numbers: {numbers!r:.200} must be a list of integers, none below 0 and at least one")
    if type(target) is not int:
        raise BadReference(f"target: {target!r:.200} must be an integer")
    return list(numbers), target


def _evaluate(text: str) -> tuple[Fraction, list[int], Fraction | None]:
    """The exact value of an expression, the numbers it uses, and the value claimed after ``=``, if any."""
    text = text.translate(SIGNS).replace(r"\times", "*").replace(r"\cdot", "*").replace(r"\div", "/")
    text = text.replace(r"\(", "(").replace(r"\)", ")").replace(r"\[", "(").replace(r"\]", ")")
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
    text = re.sub(r"\\(?:left|right|,|;|!)", "", text).strip(" \n\t$.`").removeprefix("**").removesuffix("**")
    expression, equals, claimed = text.partition("=")
    claim = _walk(_parse(claimed), []) if equals else None
    used: list[int] = []
    return _walk(_parse(expression), used), used, claim


def _parse(text: str) -> ast.expr:
    text = text.strip()
    if len(text) > MAX_LENGTH:
        raise _Refused(f"longer than {MAX_LENGTH} characters")
    if not text:
        raise _Refused("an empty expression")
    if not ALLOWED.match(text):
        foreign = sorted(set(re.sub(r"[0-9+\-*/() \t]", "", text)))
        raise _Refused(f"has {''.join(foreign)!r:.40}; an expression has digits, + - * / and parentheses only")
    if max(map(len, re.findall(r"\d+", text)), default=0) > MAX_DIGITS:
        raise _Refused(f"has a number of more than {MAX_DIGITS} digits")
    try:
        return ast.parse(re.sub(r"\b0+(?=\d)", "", text), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise _Refused(f"is no arithmetic expression ({type(error).__name__})") from None


def _walk(node: ast.expr, used: list[int], depth: int = 0) -> Fraction:
    if depth > MAX_DEPTH:
        raise _Refused(f"nested deeper than {MAX_DEPTH}")
    match node:
        case ast.Constant(value=int(value)):
            used.append(value)
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            inner = _walk(operand, used, depth + 1)
            return -inner if isinstance(sign, ast.USub) else inner
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _walk(left, used, depth + 1), _walk(right, used, depth + 1)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    if b == 0:
                        raise _Refused("divides by zero")
                    return a / b
    raise _Refused(f"uses {ast.unparse(node)!r:.40}, which the game does not have")
