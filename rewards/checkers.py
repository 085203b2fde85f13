"""When two outputs, or two values, count as the same: the rules for the tests of programs.

`stdout` checkers: ``tokens`` (white space does not count, and numbers are compared as decimals: 3.0 is 3, those that
are not integers may differ by a tolerance; it accepts all that LiveCodeBench does), ``exact`` (every byte), ``lines``
(blanks at the ends of lines and empty lines at the end do not count), ``unordered_lines`` (lines as a multiset).
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

CHECKERS = ("tokens", "exact", "lines", "unordered_lines")
_NUMBER = re.compile(r"[+-]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][+-]?\d{1,4})?\Z", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+\Z", re.ASCII)


def outputs_agree(checker: str, actual: bytes, expected: str, rel_tol: float, abs_tol: float) -> bool:
    """Compare what a program wrote with what it should have written, by one of `CHECKERS`."""
    wanted = expected.encode("utf-8", "surrogatepass")
    if checker == "exact":
        return actual == wanted
    if checker == "tokens":
        found, tokens = actual.split(), wanted.split()
        return len(found) == len(tokens) and all(
            a == b or _numbers_agree(a.decode("latin-1"), b.decode("latin-1"), rel_tol, abs_tol)
            for a, b in zip(found, tokens, strict=True)
        )
    left, right = _lines(actual), _lines(wanted)
    return sorted(left) == sorted(right) if checker == "unordered_lines" else left == right


def _lines(text: bytes) -> list[bytes]:
    lines = [line.rstrip() for line in text.split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _numbers_agree(actual: str, expected: str, rel_tol: float, abs_tol: float) -> bool:
    """Two tokens as decimal numbers; an expected integer admits no tolerance."""
    if not (_NUMBER.match(actual) and _NUMBER.match(expected)):
        return False
    if _INTEGER.match(expected):
        return Decimal(actual) == Decimal(expected)
    return math.isclose(float(actual), float(expected), rel_tol=rel_tol, abs_tol=abs_tol)


def values_agree(actual: Any, expected: Any, rel_tol: float, abs_tol: float) -> bool:
    """Compare a returned value (exact built-in types) with an expected one that comes from JSON.

    JSON has neither tuples nor keys that are no strings: a tuple equals a list, integer keys equal their decimal text.
    A truth value equals only a truth value; 2 equals 2.0; nan equals nan. A tolerance holds where a float is expected.
    """
    if isinstance(expected, bool) or isinstance(actual, bool) or expected is None or isinstance(expected, str):
        return type(actual) is type(expected) and actual == expected
    if isinstance(expected, int | float):
        if not isinstance(actual, int | float):
            return False
        if isinstance(expected, int):
            return actual == expected
        return _floats_agree(actual, expected, rel_tol, abs_tol)
    if isinstance(expected, list):
        return (
            isinstance(actual, list | tuple)
            and len(actual) == len(expected)
            and all(values_agree(a, b, rel_tol, abs_tol) for a, b in zip(actual, expected, strict=True))
        )
    if not isinstance(expected, dict) or not isinstance(actual, dict) or len(actual) != len(expected):
        return False
    named = {str(key) if type(key) is int else key: value for key, value in actual.items()}
    return named.keys() == expected.keys() and all(
        values_agree(named[key], value, rel_tol, abs_tol) for key, value in expected.items()
    )


def _floats_agree(actual: int | float, expected: float, rel_tol: float, abs_tol: float) -> bool:
    if math.isnan(expected):
        return isinstance(actual, float) and math.isnan(actual)
    try:
        return actual == expected or math.isclose(actual, expected, rel_tol=rel_tol, abs_tol=abs_tol)
    except OverflowError:  # an integer that no float can hold
        return False
