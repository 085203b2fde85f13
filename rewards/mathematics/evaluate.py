"""The value of an expression in many digits, at sample points, for what `rewards.mathematics.exact` cannot decide.

Two such expressions are held to be equal when they agree to 30 digits at several points. The points depend on the
symbols' names alone, so the same symbol has the same value on both sides; what cannot be computed (an unevaluated
integral, an unknown function) gets a value that depends on its written form, so it equals only itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.mathematics.exact import exact, exactly_equal
from rewards.mathematics.nodes import Node, TooLarge, Unreadable

FLOAT_BITS = 2**34
"""The largest binary exponent of a number in floating point: towers of powers end here."""
MAX_SUM_TERMS = 2_000
MAX_ARGUMENT_BITS = 4_000
"""The largest binary exponent of an argument of sin, exp and the like."""
MPMATH_NAMES = "sin cos tan cot sec csc sinh cosh tanh coth ln exp floor ceil arg factorial gamma"
DIGITS = 50
INTEGERS = frozenset("ijkmnpqrstKMN")
"""Symbols that count things: where a floor or a ceiling is, they are compared at integers too."""
INTEGER_TRIALS = 14
RANGES = [(0.1, 0.9), (0.15, 0.85), (1.1, 3.0), (-2.0, -0.2), (2.0, 5.0)]
"""Where the symbols' sample values lie, a range a trial."""


class _Undefined(Exception):
    """There is no value at this point (a pole, an infinity)."""


def symbols(node: Node) -> frozenset[str]:
    """The names of the free symbols."""
    if node.op == "sym":
        return frozenset([node.value])
    found: frozenset[str] = frozenset()
    for arg in node.args:
        found |= symbols(arg)
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


def _same_number(left: Node, right: Node) -> bool:
    infinities = [_infinity(node) for node in (left, right)]
    if any(infinities):
        return infinities[0] == infinities[1]
    first = _difference(left, right, DIGITS)
    if first is None:
        raise Unreadable("no value")
    distance, size = first
    if distance <= _tolerance(size):
        return True
    if distance > _tolerance(1.0):
        return False
    again = _difference(left, right, 2 * DIGITS)  # true zeros shrink with the precision, small numbers stay
    return again is not None and again[0] <= distance * _tolerance(1.0)


def _difference(left: Node, right: Node, digits: int) -> tuple[Any, Any] | None:
    mp = _mp()
    with mp.workdps(digits):
        try:
            a, b = value(left, 0), value(right, 0)
        except _Undefined:
            return None
        return abs(a - b), max(abs(a), abs(b))


def _tolerance(size: Any) -> Any:
    return size * _mp().mpf(10) ** -30


def _infinity(node: Node) -> int:
    """+1 or -1 for a signed infinity, 0 for anything else."""
    if node.op == "const" and node.value == "oo":
        return 1
    if node.op == "mul" and len(node.args) == 2 and _infinity(node.args[1]):
        sign = exact(node.args[0])
        return 0 if not sign else (1 if sign > 0 else -1)
    return 0


def _same_function(left: Node, right: Node) -> bool:
    if _agree_everywhere(left, right):
        return True
    if not any(contains(side, "fn", name) for side in (left, right) for name in ("floor", "ceil")):
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
    agreed = agreed_real = odd = 0
    for trial in range(len(RANGES)):
        pair = sample(left, trial), sample(right, trial)
        if pair[0] is None or pair[1] is None:
            continue
        reals = [_is_real(number) for number in pair]
        same = abs(pair[0] - pair[1]) <= _tolerance(max(abs(pair[0]), abs(pair[1]), _tolerance(1.0)))
        if same:
            agreed += 1
            agreed_real += all(reals)
        elif all(reals):
            return False
        odd += not same and not any(reals)  # both complex: perhaps only another branch of a root
    return agreed >= 2 and (odd == 0 or agreed_real >= 2)


def sample(node: Node, trial: int) -> Any:
    """The value at one sample point as an mpmath number, or None where there is none."""
    with _mp().workdps(DIGITS):
        try:
            return value(node, trial)
        except _Undefined:
            return None


def _is_real(number: Any) -> bool:
    return bool(abs(number.imag) <= _tolerance(max(abs(number), 1e-10)))


def value(node: Node, trial: int) -> Any:
    """The value of a tree at a sample point, in mpmath's current precision."""
    mp = _mp()
    match node.op:
        case "num":
            return mp.mpf(node.value.numerator) / node.value.denominator
        case "dec":
            return mp.mpf(node.value[0].numerator) / node.value[0].denominator
        case "sym":
            return _symbol_value(node.value, trial)
        case "const":
            return _constant(node.value)
        case "add":
            return mp.fsum([value(arg, trial) for arg in _without_opposites(node.args)])
        case "mul":
            return _product(node, trial)
        case "pow":
            return _power(value(node.args[0], trial), value(node.args[1], trial))
        case "percent":
            return value(node.args[0], trial) / 100
        case "unit":
            return value(node.args[0], trial)
        case "deg":
            return value(node.args[0], trial) * mp.pi / 180
        case "fn":
            return _function(node, trial)
        case "big":
            return _big(node, trial)
        case "based":
            return mp.mpf(based_value(node))
    raise Unreadable(f"{node.op} has no value")


def based_value(node: Node) -> int:
    """The integer that digits in a base stand for; raises `Unreadable` for a digit that the base does not have."""
    digits, base = node.value
    if not 2 <= base <= 36:
        raise Unreadable(f"{base} is no base")
    try:
        return int(digits, base)
    except ValueError:
        raise Unreadable(f"{digits} has a digit that base {base} does not have") from None


def _without_opposites(terms: tuple[Node, ...]) -> list[Node]:
    """A sum's terms without pairs that cancel as they are written: ``a - a`` need not be computed."""
    left = list(terms)
    for term in terms:
        opposite = Node("mul", (Node("num", (), Fraction(-1)), term))
        if opposite in left and term in left and not contains(term, "const", "oo"):
            left.remove(opposite)
            left.remove(term)
    return left


def _product(node: Node, trial: int) -> Any:
    result = _mp().mpf(1)
    for arg in node.args:
        result *= value(arg, trial)
        _check_size(result)
    return result


def _power(base: Any, exponent: Any) -> Any:
    mp = _mp()
    if base == 0:
        if exponent.real < 0:
            raise _Undefined
        return mp.mpf(1) if exponent == 0 else mp.mpf(0)
    if abs(exponent) * abs(mp.log(abs(base), 2)) > FLOAT_BITS or abs(exponent) > 2**62:
        raise TooLarge("a power too large to compute")
    if base.imag == 0 and exponent.imag == 0 and base < 0 and exponent != mp.floor(exponent):
        base = mp.mpc(base)
    return mp.power(base, exponent)


def _check_size(number: Any) -> None:
    if number and abs(_mp().mag(number)) > FLOAT_BITS:
        raise TooLarge("a number too large to compute")


def _function(node: Node, trial: int) -> Any:
    mp = _mp()
    args = [value(arg, trial) for arg in node.args]
    if any(arg and mp.mag(arg) > MAX_ARGUMENT_BITS for arg in args):
        raise TooLarge(f"{node.value} of a number too large")
    function = _functions().get(node.value)
    if function is None:
        return _opaque(node.value, args, trial)
    try:
        result = function(*args)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError, mp.NoConvergence):
        raise _Undefined from None
    if mp.isinf(result) or mp.isnan(result):
        raise _Undefined
    return result


@lru_cache(maxsize=1)
def _functions() -> dict[str, Callable[..., Any]]:
    mp = _mp()
    table: dict[str, Callable[..., Any]] = {name: getattr(mp, name) for name in MPMATH_NAMES.split()}
    table |= {
        "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "arccot": mp.acot, "arcsec": mp.asec,
        "arccsc": mp.acsc, "arsinh": mp.asinh, "arcosh": mp.acosh, "artanh": mp.atanh, "Re": mp.re, "Im": mp.im,
        "abs": abs,
        "binom": lambda n, k: mp.gammaprod([n + 1], [k + 1, n - k + 1]), "max": max, "min": min, "sgn": mp.sign,
    }  # fmt: skip
    return table


def _opaque(name: str, args: list[Any], trial: int) -> Any:
    mp = _mp()
    key = "|".join([name, *(mp.nstr(arg, 25) for arg in args)])
    return _symbol_value(key, trial)


def _big(node: Node, trial: int) -> Any:
    """A short finite sum or product is computed; everything else equals only what is written like it."""
    name, lower, upper = node.value
    variable, _, start = lower.partition("=")
    if name in ("sum", "prod") and start.lstrip("-").isdigit() and upper.lstrip("-").isdigit():
        first, last = int(start), int(upper)
        if last - first > MAX_SUM_TERMS:
            raise TooLarge(f"a {name} of {last - first + 1} terms")
        terms = [value(substitute(node.args[0], variable, Fraction(k)), trial) for k in range(first, last + 1)]
        return _mp().fsum(terms) if name == "sum" else _mp().fprod(terms)
    return _opaque(f"{name}_{lower}^{upper}", [value(node.args[0], trial)], trial)


def substitute(node: Node, name: str, replacement: Fraction | Node) -> Node:
    """The tree with a symbol replaced."""
    if node.op == "sym":
        if node.value != name:
            return node
        return replacement if isinstance(replacement, Node) else Node("num", (), replacement)
    if not node.args:
        return node
    return Node(node.op, tuple(substitute(arg, name, replacement) for arg in node.args), node.value)


@lru_cache(maxsize=4096)
def _unit_interval(key: str) -> Fraction:
    digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=16).digest()
    return Fraction(int.from_bytes(digest, "big"), 2**128)


def _symbol_value(name: str, trial: int) -> Any:
    mp = _mp()
    low, high = RANGES[trial]
    share = _unit_interval(f"{name}#{trial}")
    return mp.mpf(low) + (mp.mpf(high) - mp.mpf(low)) * mp.mpf(share.numerator) / share.denominator


def _constant(name: str) -> Any:
    if name == "oo":
        raise _Undefined
    return {"pi": +_mp().pi, "e": +_mp().e, "i": _mp().mpc(0, 1)}[name]


@lru_cache(maxsize=1)
def _mp() -> Any:
    import mpmath  # not at the top: `import rewards` and the exact paths do without it

    return mpmath.mp
