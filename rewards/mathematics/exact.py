"""What can be decided in whole numbers: the value of an expression as a fraction, or its form as a polynomial.

Sums, products and whole powers of fractions, symbols, pi and square roots of positive fractions have a normal form
whose equality is a proof: symbols and pi are algebraically independent, and square roots of integers are linearly
dependent over the fractions only where the product of two of them is a square (Besicovitch 1940).
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

from rewards.mathematics.nodes import PI, Node, TooLarge, Unreadable

EXACT_BITS = 200_000
"""The largest power or factorial that is computed exactly."""
MAX_TERMS = 32
MAX_POWER = 16
MAX_COEFFICIENT_BITS = 2_000
"""Up to here a normal form costs less than evaluating; beyond, there is none."""

Monomial = tuple[tuple[str, int], ...]
"""Names and their powers, in order; ``x^2/y`` is ``(("x", 2), ("y", -1))``."""
Polynomial = dict[tuple[Monomial, int], Fraction]
"""The coefficient of each (monomial, n), which stands for the monomial times the square root of n."""


def exactly_equal(left: Node, right: Node) -> bool | None:
    """Whether two expressions are equal, where that can be proved either way; else None. Raises `Unreadable` (1/0)."""
    values = _exact_or_none(left), _exact_or_none(right)
    if values[0] is not None and values[1] is not None:
        return values[0] == values[1]
    for atoms in (False, True):
        forms = _polynomial(left, atoms), _polynomial(right, atoms)
        if forms[0] is None or forms[1] is None:
            continue
        equal = _vanishes(_sum(forms[0], {key: -value for key, value in forms[1].items()}))
        if equal or not atoms:
            return equal  # atoms may depend on each other: that forms with them differ proves nothing
    return None


def _polynomial(node: Node, atoms: bool = False) -> Polynomial | None:
    """The normal form, or None for what has none or a large one.

    With ``atoms``, what is no sum, product or whole power (``e``, ``\\ln 2``, ``2^x``) stands for itself like a symbol.
    """
    match node.op:
        case "num":
            return _bounded({((), 1): node.value})
        case "dec":
            return _bounded({((), 1): node.value[0]})
        case "sym":
            return {(((node.value, 1),), 1): Fraction(1)}
        case "const" if node == PI:
            return {((("π", 1),), 1): Fraction(1)}
        case "add" | "mul":
            combine = _sum if node.op == "add" else _product
            total: Polynomial | None = {} if node.op == "add" else {((), 1): Fraction(1)}
            for arg in node.args:
                form = _polynomial(arg, atoms)
                total = None if form is None or total is None else _bounded(combine(total, form))
                if total is None:
                    return None
            return total
        case "pow":
            form = _power(node.args[0], node.args[1], atoms)
            return form if form is not None or not atoms else _atom(node)
        case "const" | "fn" if atoms and node.value != "oo":
            return _atom(node)
    return None


def _atom(node: Node) -> Polynomial:
    return {(((f"@{node!r}", 1),), 1): Fraction(1)}


def _bounded(form: Polynomial) -> Polynomial | None:
    small = len(form) <= MAX_TERMS and all(
        key[1].bit_length() + value.numerator.bit_length() + value.denominator.bit_length() <= MAX_COEFFICIENT_BITS
        for key, value in form.items()
    )
    return form if small else None


def _sum(left: Polynomial, right: Polynomial) -> Polynomial:
    total = dict(left)
    for key, value in right.items():
        total[key] = total[key] + value if key in total else value
    return {key: value for key, value in total.items() if value}


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for (monomial, root), value in left.items():
        for (other, other_root), factor in right.items():
            powers = dict(monomial)
            for name, exponent in other:
                powers[name] = powers.get(name, 0) + exponent
            key = tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))
            common = root if root == other_root else 1  # the root of n twice is n
            both = (key, 1 if root == other_root else root * other_root)
            total[both] = total.get(both, Fraction(0)) + value * factor * common
    return {key: value for key, value in total.items() if value}


def _power(base: Node, exponent: Node, atoms: bool) -> Polynomial | None:
    if exponent.op != "num":
        return None
    if exponent.value.denominator == 2 and abs(exponent.value.numerator) == 1:
        radicand = _exact_or_none(base)
        if radicand is None or radicand <= 0:
            return None
        radicand = radicand if exponent.value > 0 else 1 / radicand
        return _bounded({((), radicand.numerator * radicand.denominator): Fraction(1, radicand.denominator)})
    form = _polynomial(base, atoms)
    if form is None or exponent.value.denominator != 1 or abs(exponent.value.numerator) > MAX_POWER:
        return None
    if exponent.value < 0:
        if len(form) != 1:
            return None  # a sum in a denominator has no such form
        (((monomial, root), value),) = form.items()
        form = {(tuple((name, -power) for name, power in monomial), root): 1 / (value * root)}
    total: Polynomial | None = {((), 1): Fraction(1)}
    for _ in range(abs(exponent.value.numerator)):
        total = None if total is None else _bounded(_product(total, form))
    return total


def _vanishes(form: Polynomial) -> bool:
    """Whether a normal form is 0: for each monomial, roots whose product is a square are multiples of one another."""
    classes: dict[Monomial, list[tuple[int, Fraction]]] = {}
    for (monomial, root), value in form.items():
        members = classes.setdefault(monomial, [])
        for at, (other, total) in enumerate(members):
            side = math.isqrt(root * other)
            if side * side == root * other:  # the root of n is side/m times the root of m
                members[at] = (other, total + value * Fraction(side, other))
                break
        else:
            members.append((root, value))
    return not any(total for members in classes.values() for _, total in members)


@lru_cache(maxsize=4096)
def exact(node: Node) -> Fraction | None:
    """The value as a fraction, or None where it is not seen to be one. Raises `TooLarge`, `Unreadable` (1/0)."""
    match node.op:
        case "num" | "dec":
            value: Fraction = node.value if node.op == "num" else node.value[0]
            return value
        case "add" | "mul" | "pow" | "fn" | "percent" | "unit" | "deg":
            values = [exact(arg) for arg in node.args]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                return None
            return _exact_of(node, known)
    return None


def _exact_of(node: Node, values: list[Fraction]) -> Fraction | None:
    match node.op:
        case "add":
            return sum(values, Fraction(0))
        case "mul":
            return math.prod(values, start=Fraction(1))
        case "pow":
            return _exact_power(*values)
        case "percent":
            return values[0] / 100
        case "unit" | "deg":
            return values[0]
    return _exact_function(node.value, values)


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator == 1:
        if base == 0 and exponent < 0:
            raise Unreadable("a division by zero")
        if abs(base) == 1 or base == 0:
            return Fraction(base) ** (exponent.numerator % 2 if base == -1 else min(1, abs(exponent.numerator)))
        bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent.numerator)
        if bits > EXACT_BITS:
            return None
        return base ** int(exponent)
    if exponent.denominator == 2 and base >= 0 and abs(exponent.numerator) == 1:
        top, bottom = math.isqrt(base.numerator), math.isqrt(base.denominator)
        if top * top == base.numerator and bottom * bottom == base.denominator and (top or exponent > 0):
            return Fraction(top, bottom) ** exponent.numerator
    return None


def _exact_function(name: str, values: list[Fraction]) -> Fraction | None:
    if name == "abs":
        return abs(values[0])
    if name == "floor":
        return Fraction(math.floor(values[0]))
    if name == "ceil":
        return Fraction(math.ceil(values[0]))
    if name in ("max", "min"):
        return (max if name == "max" else min)(values)
    if any(value.denominator != 1 for value in values):
        return None
    integers = [value.numerator for value in values]
    if name in ("gcd", "lcm"):
        return Fraction((math.gcd if name == "gcd" else math.lcm)(*integers))
    if name == "gamma" and 0 < integers[0] <= 1000:
        return Fraction(math.factorial(integers[0] - 1))
    if name == "doublefactorial" and -1 <= integers[0] <= 300:
        return Fraction(math.prod(range(integers[0], 0, -2)))
    if name == "factorial" and 0 <= integers[0] <= 1000:
        return Fraction(math.factorial(integers[0]))
    if name == "binom" and len(integers) == 2 and 0 <= integers[1] <= integers[0] <= 1000:
        return Fraction(math.comb(*integers))
    return None


def _exact_or_none(node: Node) -> Fraction | None:
    try:
        return exact(node)
    except TooLarge:
        return None
