"""Values as JSON that keeps exact built-in types: the only form in which data leave an untrusted process.

Nothing here runs code of the value's own class on the reading side, and what is read consists of exact built-in
types, so that `==` on it is Python's own. JSON's natural types stand for themselves; the others are one-key objects:
``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``, ``{"float": "nan"}``, ``{"bytes": "hex"}``.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 150
"""Nesting beyond which a value is refused, on both sides."""
_BIG = 1 << 256  # larger integers travel in hexadecimal: decimal text of theirs costs quadratic time


class Unencodable(TypeError):
    """The value holds something that is not data of built-in types (or is nested too deep, or holds itself)."""


class Undecodable(ValueError):
    """The text is not something that `encode` wrote."""


def encode(value: Any, foreign: Callable[[Any], Any] | None = None, depth: int = 0) -> Any:
    """The JSON-able form of a value; `foreign` gives the form of what is no built-in data, or raises.

    Instances of subclasses (named tuples, counters, enumerations of integers) are written as their built-in base.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if depth > MAX_DEPTH:
        raise Unencodable(f"nested deeper than {MAX_DEPTH}")
    if kind is int:
        return value if -_BIG < value < _BIG else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind is list:
        return [encode(item, foreign, depth + 1) for item in value]
    for base, tag in _TAGS.items():
        if kind is base:
            return {tag: [encode(item, foreign, depth + 1) for item in value]}
    if kind is dict:
        return {"dict": [[encode(part, foreign, depth + 1) for part in item] for item in value.items()]}
    for base, (tag, write, _) in _SCALARS.items():
        if kind is base:
            return {tag: write(value)}
    for base in _BASES:  # an instance of a subclass: its data, read by the base's own methods
        if isinstance(value, base):
            return encode(_PLAIN[base](value), foreign, depth)
    if foreign is None:
        raise Unencodable(f"{kind.__name__} is not built-in data")
    return foreign(value)


def decode(form: Any, foreign: Callable[[str, Any], Any] | None = None, depth: int = 0) -> Any:
    """The value of a form that `encode` wrote. Raises `Undecodable` on anything else; runs none of the sender's code.

    A set or dictionary whose keys nearly all have one hash is refused: building it would take quadratic time.
    """
    if depth > MAX_DEPTH:
        raise Undecodable(f"nested deeper than {MAX_DEPTH}")
    if form is None or isinstance(form, bool | int | float | str):
        return form
    if isinstance(form, list):
        return [decode(item, foreign, depth + 1) for item in form]
    if not isinstance(form, dict) or len(form) != 1:
        raise Undecodable(f"not a tagged value: {str(form)[:80]}")
    ((tag, body),) = form.items()
    try:
        if tag in _MAKERS:
            return _MAKERS[tag](_distinct(decode(item, foreign, depth + 1) for item in body))
        if tag in ("tuple", "deque"):
            items = [decode(item, foreign, depth + 1) for item in body]
            return tuple(items) if tag == "tuple" else deque(items)
        if tag == "dict":
            keys = _distinct(decode(key, foreign, depth + 1) for key, _ in body)
            return dict(zip(keys, (decode(value, foreign, depth + 1) for _, value in body), strict=True))
        if tag in _READERS:
            return _READERS[tag](body)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise Undecodable(f"a broken {tag}: {error}") from error
    if foreign is None:
        raise Undecodable(f"unknown tag {tag[:40]!r}")
    return foreign(tag, body)


def dumps(form: Any) -> bytes:
    """JSON text of a form, ASCII only."""
    return json.dumps(form, separators=(",", ":"), allow_nan=False).encode("ascii")


def loads(text: bytes) -> Any:
    """The form in a JSON text. Raises `Undecodable`."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"not JSON: {error}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _distinct(items: Iterator[Any]) -> list[Any]:
    keys = list(items)
    if len(keys) > 256 and len({hash(key) for key in keys}) < len(keys) // 2:
        raise Undecodable("most of the keys share one hash")
    return keys


def _complex_parts(value: complex) -> list[str]:
    return [repr(value.real), repr(value.imag)]


def _small_decimal(text: str) -> Decimal:
    if len(text) > 5000:
        raise Undecodable("a decimal of more than 5000 characters")
    return Decimal(text)


def _small_fraction(numerator: str, denominator: str) -> Fraction:
    if len(numerator) + len(denominator) > 5000:
        raise Undecodable("a fraction of more than 5000 characters")
    return Fraction(int(numerator, 16), int(denominator, 16))


_TAGS: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset", deque: "deque"}
_SCALARS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    bytes: ("bytes", bytes.hex, bytes.fromhex),
    bytearray: ("bytearray", bytearray.hex, bytearray.fromhex),
    complex: ("complex", _complex_parts, lambda parts: complex(float(parts[0]), float(parts[1]))),
    Decimal: ("decimal", str, _small_decimal),
    Fraction: (
        "fraction",
        lambda value: [hex(value.numerator), hex(value.denominator)],
        lambda parts: _small_fraction(*parts),
    ),
    range: ("range", lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
}
_MAKERS: dict[str, Callable[[list[Any]], Any]] = {"set": set, "frozenset": frozenset}
_READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": lambda text: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    **{tag: read for tag, _, read in _SCALARS.values()},
}
_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: lambda value: int.__add__(value, 0),
    float: lambda value: float.__add__(value, 0.0),
    str: lambda value: str.__str__(value),
    list: lambda value: list(list.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    deque: lambda value: deque(deque.__iter__(value)),
    bytes: lambda value: bytes(bytes.__iter__(value)),
}
_BASES = tuple(_PLAIN)
