"""How small an algebraic number can be that is not 0: with it, a small enough ball around 0 proves equality.

The bound is that of Burnikel, Fleischer, Mehlhorn and Schirra ("A strong and easily computable separation bound for
arithmetic expressions involving radicals", Algorithmica 27, 2000) for sums, products, quotients and roots of
integers: with u, l and D as computed here, an expression that is not 0 is at least ``1 / (u^(D-1) l)`` in size. Sines
and cosines of rational multiples of pi are halves of sums of two roots of unity, which lie in a field of known degree.
"""

from __future__ import annotations

import math
from fractions import Fraction

from rewards.mathematics.exact import exact
from rewards.mathematics.nodes import IMAGINARY, PI, Node

MAX_DEGREE = 512
CIRCULAR = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))


class _NotAlgebraic(Exception):
    pass


def separation_bits(node: Node) -> int | None:
    """b where a value that is not 0 is at least 2^-b in size; None for what is not algebraic as it is written."""
    roots: dict[Node, int] = {}
    cycle = [1]
    try:
        upper, lower = _sizes(node, roots, cycle)
    except _NotAlgebraic:
        return None
    degree = math.prod(roots.values()) * _totient(cycle[0])
    if degree > MAX_DEGREE:
        return None
    return math.ceil((degree - 1) * upper + lower) + 1


def _sizes(node: Node, roots: dict[Node, int], cycle: list[int]) -> tuple[float, float]:
    """Binary logarithms of the bounds u and l of the expression."""
    value = exact(node)
    if value is not None:
        return _log(value.numerator), _log(value.denominator)
    match node.op:
        case "add":
            sizes = [_sizes(arg, roots, cycle) for arg in node.args]
            total = sum(lower for _, lower in sizes)
            tops = [upper + total - lower for upper, lower in sizes]
            return max(tops) + math.log2(len(tops)), total
        case "mul":
            sizes = [_sizes(arg, roots, cycle) for arg in node.args]
            return sum(upper for upper, _ in sizes), sum(lower for _, lower in sizes)
        case "pow":
            return _power(node, roots, cycle)
        case "const" if node == IMAGINARY:
            cycle[0] = math.lcm(cycle[0], 4)
            return 0.0, 0.0
        case "fn" if node.value in CIRCULAR:
            turn = _half_turns(node.args[0])
            if turn is None:
                raise _NotAlgebraic
            cycle[0] = math.lcm(cycle[0], 4, 2 * turn.denominator)
            return {"sin": (1.0, 1.0), "cos": (1.0, 1.0)}.get(node.value, (2.0, 2.0))
        case "fn" if node.value == "abs":
            return _sizes(node.args[0], roots, cycle)
    raise _NotAlgebraic


def _power(node: Node, roots: dict[Node, int], cycle: list[int]) -> tuple[float, float]:
    exponent = exact(node.args[1])
    if exponent is None or abs(exponent.numerator) > 10_000 or exponent.denominator > MAX_DEGREE:
        raise _NotAlgebraic
    upper, lower = _sizes(node.args[0], roots, cycle)
    if exponent.denominator > 1:
        degree = exponent.denominator
        roots[Node("pow", (node.args[0], Node("num", (), Fraction(1, degree))))] = degree
        if upper >= lower:
            upper, lower = (upper + (degree - 1) * lower) / degree, lower
        else:
            upper, lower = upper, (upper * (degree - 1) + lower) / degree
    if exponent < 0:
        upper, lower = lower, upper
    times = abs(exponent.numerator)
    return upper * times, lower * times


def _half_turns(node: Node) -> Fraction | None:
    """r where an angle is r times pi, for a rational r as it is written; else None."""
    if node.op == "deg":
        degrees = exact(node.args[0])
        return degrees / 180 if degrees is not None else None
    if node == PI:
        return Fraction(1)
    if node.op == "add":
        parts = [_half_turns(arg) for arg in node.args]
        known = [part for part in parts if part is not None]
        return sum(known, Fraction(0)) if len(known) == len(parts) else None
    if node.op == "mul":
        circles = [_half_turns(arg) for arg in node.args if exact(arg) is None]
        if len(circles) == 1 and circles[0] is not None:
            factors = [exact(arg) for arg in node.args]
            return math.prod((factor for factor in factors if factor is not None), start=circles[0])
    return Fraction(0) if exact(node) == 0 else None


def _totient(number: int) -> int:
    return sum(math.gcd(number, k) == 1 for k in range(1, number + 1)) if number <= 4 * MAX_DEGREE else MAX_DEGREE + 1


def _log(number: int) -> float:
    return math.log2(abs(number)) if abs(number) > 1 else 0.0
