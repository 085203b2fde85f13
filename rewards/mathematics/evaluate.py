"""Whether two expressions have the same value: proved, where it can be, and never by their first digits.

Numbers: exact arithmetic decides first (`rewards.mathematics.exact`). Else their difference is enclosed in balls of
growing precision (`rewards.mathematics.balls`): a ball without 0 proves that they differ. A difference that cannot be
told from 0 is 0 where a bound says how small an algebraic number can be that is not (`rewards.mathematics.separation`),
or, for others, where it cannot be told from 0 in `PRECISIONS[-1]` bits and sympy agrees. Else they are not equal.

Functions: equal where their normal forms are, or where at several points, which depend on the symbols' names alone,
their values cannot be told apart in `CONFIRMING` bits.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from rewards.mathematics.balls import (
    RANGES,
    Undefined,
    ball,
    based_value,
    fraction_of,
    is_accurate,
    is_real,
    precision,
    substitute,
)
from rewards.mathematics.exact import exact, exactly_equal
from rewards.mathematics.nodes import IMAGINARY, MINUS_ONE, PI, Node, Unreadable, add, mul, neg, num, power
from rewards.mathematics.separation import separation_bits

__all__ = [
    "based_value",
    "contains",
    "equal",
    "exact",
    "is_constant",
    "number_of",
    "proportional",
    "sample",
    "substitute",
    "symbols",
]

PRECISIONS = (128, 512, 2048, 8192)
"""Bits, one after the other; the last is the precision in which a difference that cannot be told from 0 counts as 0
if sympy agrees."""
MAX_SEPARATION_BITS = 20_000
SAMPLING = 192
CONFIRMING = 1536
INTEGERS = frozenset("ijkmnpqrstKMN")
"""Symbols that count things: where a floor or a sum to n is, they are compared at integers too."""
INTEGER_TRIALS = 14


def symbols(node: Node) -> frozenset[str]:
    """The names of the free symbols."""
    if node.op == "sym":
        return frozenset([node.value])
    found: frozenset[str] = frozenset()
    for arg in node.args:
        found |= symbols(arg)
    if node.op == "big":
        variable, _, start = node.value[1].partition("=")
        found = found - {variable} if start else found
        found |= {node.value[2]} if node.value[2].isalpha() and len(node.value[2]) == 1 else frozenset()
    return found


def contains(node: Node, op: str, value: Any = None) -> bool:
    """Whether a node of this op (and value) occurs in the tree."""
    if node.op == op and (value is None or node.value == value):
        return True
    return any(contains(arg, op, value) for arg in node.args)


def equal(left: Node, right: Node) -> bool:
    """Whether two expressions have the same value everywhere we look. Raises `Unreadable` for what has no value."""
    if left == right:
        return True
    verdict = exactly_equal(left, right)
    if verdict is not None:
        return verdict
    if not symbols(left) and not symbols(right):
        return _same_number(left, right)
    return _same_function(left, right)


def sample(node: Node, trial: int) -> Any:
    """The value at one sample point as an `acb`, or None where there is none."""
    with precision(SAMPLING):
        return _value(node, trial)


def number_of(node: Node) -> Fraction | None:
    """A real number that an expression without symbols stands for, to some fifty digits; None where it is none."""
    value = exact(node)
    if value is not None:
        return value
    number = sample(node, 0)
    return fraction_of(number.real) if number is not None and is_real(number) else None


def proportional(left: Node, right: Node) -> int:
    """1 where one is a positive multiple of the other, -1 for a negative multiple, 0 where it is no multiple."""
    ratios = []
    for trial in range(len(RANGES)):
        with precision(SAMPLING):
            a, b = _value(left, trial), _value(right, trial)
            if a is not None and b is not None and not a.contains(0) and not b.contains(0):
                ratios.append((a, b))
    if len(ratios) < 3:
        return 0
    top, bottom = ratios[0]
    if not all((a * bottom - b * top).contains(0) for a, b in ratios):
        return 0
    ratio = top / bottom
    return 0 if not is_real(ratio) else 1 if ratio.real > 0 else -1


def is_constant(node: Node, within: Node) -> bool:
    """Whether a function has one real value at all sample points where the other is real, and at three at least."""
    with precision(CONFIRMING):
        real = []
        for trial in range(len(RANGES)):
            number, other = _value(node, trial), _value(within, trial)
            if number is None or other is None:
                continue
            if is_real(number):
                real.append(number)
            elif is_real(other):
                return False  # ln x beside ln|x|
        return len(real) >= 3 and all((number - real[0]).contains(0) for number in real[1:])


def _value(node: Node, trial: int) -> Any:
    try:
        number = ball(node, trial)
    except Undefined:
        return None
    return number if is_accurate(number) else None


# -- numbers -----------------------------------------------------------------------------------------------------


def _same_number(left: Node, right: Node) -> bool:
    infinities = [_infinity(node) for node in (left, right)]
    if any(infinities):
        return infinities[0] == infinities[1]
    difference = _difference(left, right)
    known = exact(difference)
    if known is not None:
        return known == 0
    defined = False
    bound = separation_bits(difference)
    precisions = PRECISIONS if bound is None or bound > MAX_SEPARATION_BITS else (*PRECISIONS, bound)
    for bits in sorted(precisions):
        with precision(bits + 64):
            try:
                number = ball(difference, 0)
            except Undefined:
                continue
            if not number.is_finite():
                continue
            defined = True
            if not number.contains(0):
                return False
            if number.is_zero():
                return True
            if bound is not None and bool(abs(number).abs_upper() < _flint_power(-bound)):
                return True
    if not defined:
        raise Unreadable("no value")
    return bound is None and (_closes(difference) or _sympy_agrees(difference))


def _closes(difference: Node) -> bool:
    """Whether a sum of angles or of logarithms that cannot be told from 0 is 0.

    A sum of rational multiples of pi and of arcs of algebraic numbers is 0 where the product of the powers of the
    complex numbers of these angles is 1; a sum of logarithms where the product of the powers of their arguments is 1.
    """
    powers: list[tuple[Fraction, Node]] = []
    kinds = set()
    for sign, term in _terms(difference, 1):
        coefficient, factor = Fraction(sign), None
        for part in term.args if term.op == "mul" else (term,):
            value = exact(part)
            if value is not None:
                coefficient *= value
            elif factor is None:
                factor = part
            else:
                return False
        if factor is None or (factor.op != "fn" and factor != PI):
            return False
        kinds.add(factor.value == "ln")
        if factor == PI:
            powers.append((Fraction(1), _turned(coefficient)))
        elif (base := _on_circle(factor)) is not None:
            powers.append((coefficient, base))
        else:
            return False
    if len(kinds) != 1:
        return False
    common = math.lcm(*(exponent.denominator for exponent, _ in powers))
    scaled = [(exponent * common, base) for exponent, base in powers]
    if any(abs(exponent) > 1000 for exponent, _ in scaled):
        return False
    product = mul(*(power(base, Node("num", (), exponent)) for exponent, base in scaled))
    return separation_bits(product) is not None and _same_number(product, num(1))


def _turned(half_turns: Fraction) -> Node:
    """The complex number of an angle in half turns."""
    angle = mul(Node("num", (), half_turns), PI)
    return add(Node("fn", (angle,), "cos"), mul(IMAGINARY, Node("fn", (angle,), "sin")))


def _on_circle(function: Node) -> Node | None:
    """The complex number whose angle an arc is; the argument of a logarithm; None for other functions."""
    (x, *_) = function.args
    half, square = num(Fraction(1, 2)), power(x, num(2))
    match function.value:
        case "ln":
            return x
        case "arctan":
            return mul(add(num(1), mul(IMAGINARY, x)), power(add(num(1), square), num(Fraction(-1, 2))))
        case "arcsin":
            return add(power(add(num(1), neg(square)), half), mul(IMAGINARY, x))
        case "arccos":
            return add(x, mul(IMAGINARY, power(add(num(1), neg(square)), half)))
    return None


def _flint_power(exponent: int) -> Any:
    from flint import arb, fmpz

    return arb(2) ** fmpz(exponent)


def _difference(left: Node, right: Node) -> Node:
    """left - right, without terms that cancel as they are written: neither ``a - a`` nor its tower need be computed."""
    terms = [*_terms(left, 1), *_terms(right, -1)]
    kept: list[tuple[int, Node]] = []
    for sign, term in terms:
        opposite = (-sign, term)
        if opposite in kept and not contains(term, "const", "oo"):
            kept.remove(opposite)
        else:
            kept.append((sign, term))
    if not kept:
        return Node("num", (), Fraction(0))
    return add(*(term if sign > 0 else neg(term) for sign, term in kept))


def _terms(node: Node, sign: int) -> list[tuple[int, Node]]:
    if node.op == "add":
        return [term for arg in node.args for term in _terms(arg, sign)]
    if node.op == "mul" and node.args[0] == MINUS_ONE and len(node.args) > 1:
        return _terms(mul(*node.args[1:]), -sign)
    return [(sign, node)]


def _infinity(node: Node) -> int:
    """+1 or -1 for a signed infinity, 0 for anything else."""
    if node.op == "const" and node.value == "oo":
        return 1
    if node.op == "mul" and len(node.args) == 2 and _infinity(node.args[1]):
        sign = exact(node.args[0])
        return 0 if not sign else (1 if sign > 0 else -1)
    return 0


def _sympy_agrees(difference: Node) -> bool:
    from rewards.mathematics.second import is_zero

    return is_zero(difference)


# -- functions ---------------------------------------------------------------------------------------------------


def _same_function(left: Node, right: Node) -> bool:
    if _agree_everywhere(left, right):
        return True
    if not any(
        contains(side, "fn", name) for side in (left, right) for name in ("floor", "ceil", "doublefactorial")
    ) and not any(contains(side, "big") for side in (left, right)):
        return False
    names = sorted(symbols(left) | symbols(right))
    return set(names) <= INTEGERS and all(
        _same_number(*(_at_integers(side, names, trial) for side in (left, right))) for trial in range(INTEGER_TRIALS)
    )


def _at_integers(node: Node, names: list[str], trial: int) -> Node:
    """The tree with its symbols replaced by integers, other ones in each trial."""
    for at, name in enumerate(names):
        node = substitute(node, name, Fraction(7 + trial * (2 * at + 1) + 5 * at))
    return node


def _agree_everywhere(left: Node, right: Node) -> bool:
    """Agreement at all sample points where both sides are real, or both complex, and at two of them at least."""
    logarithm = contains(right, "fn", "ln")
    agreed: list[int] = []
    agreed_real = odd = 0
    for trial in range(len(RANGES)):
        with precision(SAMPLING):
            a, b = _value(left, trial), _value(right, trial)
            if a is None or b is None:
                continue
            real = is_real(a), is_real(b)
            if (a - b).contains(0):
                agreed.append(trial)
                agreed_real += all(real)
            elif all(real) or (real[0] and logarithm):
                return False  # ln x is not ln|x|, which has values below 0, too
            else:
                odd += 1 if not any(real) else 0  # both complex: perhaps only another branch of a root
    if len(agreed) < 2 or (odd and agreed_real < 2):
        return False
    return all(_agree_closely(left, right, trial) for trial in (agreed[0], agreed[-1]))


def _agree_closely(left: Node, right: Node, trial: int) -> bool:
    with precision(CONFIRMING):
        try:
            return bool((ball(left, trial) - ball(right, trial)).contains(0))
        except Undefined:
            return False
