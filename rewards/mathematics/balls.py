"""The value of an expression as a ball: a number in many digits and a bound on its error, proved at every step.

The arithmetic is Arb's (Johansson, "Arb: efficient arbitrary-precision midpoint-radius interval arithmetic", IEEE
Transactions on Computers 66, 2017), by python-flint. A ball that does not hold 0 is not 0, whatever the size of the
numbers on the way. Symbols have sample values, which depend on their names alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.mathematics.exact import exact
from rewards.mathematics.nodes import Node, TooLarge, Unreadable

MAX_EXPONENT_BITS = 2**34
"""The largest binary exponent of a number: towers of powers end here."""
MAX_SUM_TERMS = 2_000
MAX_ARGUMENT_BITS = 4_000
"""The largest binary exponent of an argument of sin, exp and the like."""
MIN_ACCURACY = 40
"""Bits of a ball that are known, relative to its size or to 1; a vaguer one is no value."""
OWN_NAMES = "sin cos tan cot sec csc sinh cosh tanh coth exp gamma"
RANGES = [(0.1, 0.9), (0.15, 0.85), (1.1, 3.0), (-2.0, -0.2), (2.0, 5.0)]
"""Where the symbols' sample values lie, a range a trial."""


class Undefined(Exception):
    """There is no value at this point (a pole, an infinity), or none in this precision."""


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Within it, balls are computed with this many bits."""
    context = _flint().ctx
    before, context.prec = context.prec, bits
    try:
        yield
    finally:
        context.prec = before


def ball(node: Node, trial: int) -> Any:
    """The value of a tree at a sample point as an `acb`, in the present precision. Raises `Undefined`, `Unreadable`."""
    flint = _flint()
    match node.op:
        case "num":
            return flint.acb(_rational(node.value))
        case "dec":
            return flint.acb(_rational(node.value[0]))
        case "sym":
            return flint.acb(_rational(_symbol_value(node.value, trial)))
        case "const":
            return _constant(node.value)
        case "add":
            return sum((ball(arg, trial) for arg in node.args), flint.acb(0))
        case "mul":
            result = flint.acb(1)
            for arg in node.args:
                result *= ball(arg, trial)
            return _checked(result)
        case "pow":
            return _power(node, trial)
        case "percent":
            return ball(node.args[0], trial) / 100
        case "unit":
            return ball(node.args[0], trial)
        case "deg":
            return ball(node.args[0], trial) * flint.acb.pi() / 180
        case "fn":
            return _function(node, trial)
        case "big":
            return _big(node, trial)
        case "based":
            return flint.acb(based_value(node))
        case "cases":
            return _piece(node, trial)
    raise Unreadable(f"{node.op} has no value")


def is_accurate(number: Any) -> bool:
    """Whether a ball is finite and small beside its value, or beside 1."""
    return bool(number.is_finite()) and max(number.rel_accuracy_bits(), number.rel_one_accuracy_bits()) >= MIN_ACCURACY


def is_real(number: Any) -> bool:
    """Whether a ball holds a real number, and its imaginary part is small beside it."""
    imaginary = number.imag
    return bool(imaginary.contains(0)) and bool(
        imaginary.is_zero() or abs(imaginary) <= abs(number).abs_upper() * 2**-(MIN_ACCURACY) + 2.0**-100
    )


def fraction_of(number: Any) -> Fraction:
    """The middle of a real ball."""
    mantissa, exponent = (int(part) for part in number.mid().man_exp())
    return Fraction(mantissa) * Fraction(2) ** exponent


def based_value(node: Node) -> int:
    """The integer that digits in a base stand for; raises `Unreadable` for a digit that the base does not have."""
    digits, base = node.value
    if not 2 <= base <= 36:
        raise Unreadable(f"{base} is no base")
    try:
        return int(digits, base)
    except ValueError:
        raise Unreadable(f"{digits} has a digit that base {base} does not have") from None


def substitute(node: Node, name: str, replacement: Fraction | Node) -> Node:
    """The tree with a symbol replaced, also in the bounds of sums."""
    if node.op == "sym":
        if node.value != name:
            return node
        return replacement if isinstance(replacement, Node) else Node("num", (), replacement)
    if not node.args:
        return node
    value = node.value
    if node.op == "big" and value[2] == name and isinstance(replacement, Fraction) and replacement.denominator == 1:
        value = (value[0], value[1], str(replacement))
    return Node(node.op, tuple(substitute(arg, name, replacement) for arg in node.args), value)


def _checked(number: Any) -> Any:
    if not number.is_finite():
        raise Undefined
    return number


def _bits(number: Any) -> float:
    """The binary logarithm of a ball's largest absolute value."""
    upper = abs(number).abs_upper()
    if upper.is_zero():
        return -math.inf
    logarithm = upper.log()
    return float(logarithm.mid()) / math.log(2) if logarithm.is_finite() else math.inf


def _power(node: Node, trial: int) -> Any:
    flint = _flint()
    base, exponent = ball(node.args[0], trial), ball(node.args[1], trial)
    if base.is_zero():
        if not exponent.real > 0:
            if exponent.is_zero():
                return flint.acb(1)
            raise Undefined
        return flint.acb(0)
    if abs(exponent).abs_upper() * abs(_bits(base)) > MAX_EXPONENT_BITS or _bits(exponent) > 62:
        raise TooLarge("a power too large to compute")
    whole = exact(node.args[1])
    if whole is not None and whole.denominator == 1:
        return _checked(base ** flint.fmpz(whole.numerator))
    if base.imag.contains(0) and not base.imag.is_zero() and not base.real > 0:
        raise Undefined  # on the cut of the root, and not known on which side
    if whole is not None and abs(whole) == Fraction(1, 2):
        return base.sqrt() if whole > 0 else _checked(1 / base.sqrt())
    return _checked(base**exponent)


def _function(node: Node, trial: int) -> Any:
    args = [_checked(ball(arg, trial)) for arg in node.args]
    if any(_bits(arg) > MAX_ARGUMENT_BITS for arg in args):
        raise TooLarge(f"{node.value} of a number too large")
    function = _functions().get(node.value)
    if node.value == "doublefactorial":
        raise Undefined  # of integers only, which are exact
    if function is None:
        return _opaque(node.value, args, trial)
    if not all(map(is_accurate, args)):
        raise Undefined
    try:
        return _checked(function(*args))
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        raise Undefined from None


@lru_cache(maxsize=1)
def _functions() -> dict[str, Callable[..., Any]]:
    acb = _flint().acb

    def real(function: Callable[..., Any]) -> Callable[..., Any]:
        def of_reals(*args: Any) -> Any:
            if not all(map(is_real, args)):
                raise Undefined
            return acb(function(*(arg.real for arg in args)))

        return of_reals

    table: dict[str, Callable[..., Any]] = {name: getattr(acb, name) for name in OWN_NAMES.split()}
    table |= {
        "ln": acb.log, "arcsin": acb.asin, "arccos": acb.acos, "arctan": acb.atan, "arccot": lambda x: (1 / x).atan(),
        "arcsec": lambda x: (1 / x).acos(), "arccsc": lambda x: (1 / x).asin(), "arsinh": acb.asinh,
        "arcosh": acb.acosh, "artanh": acb.atanh, "Re": lambda x: acb(x.real), "Im": lambda x: acb(x.imag),
        "abs": lambda x: acb(abs(x)), "arg": lambda x: acb(x.arg()), "factorial": lambda x: (x + 1).gamma(),
        "binom": lambda n, k: (n + 1).gamma() * (k + 1).rgamma() * (n - k + 1).rgamma(), "sgn": acb.sgn,
        "floor": real(lambda x: x.floor()), "ceil": real(lambda x: x.ceil()),
        "max": real(lambda *args: _extreme(args, "max")), "min": real(lambda *args: _extreme(args, "min")),
    }  # fmt: skip
    return table


def _extreme(args: tuple[Any, ...], name: str) -> Any:
    result = args[0]
    for arg in args[1:]:
        result = getattr(result, name)(arg)
    return result


def _piece(node: Node, trial: int) -> Any:
    """The value of a piecewise function: of the first row whose condition holds."""
    for value, condition in zip(node.args[::2], node.args[1::2], strict=True):
        if condition.op == "else" or _holds(condition, trial):
            return ball(value, trial)
    raise Undefined


def _holds(condition: Node, trial: int) -> bool:
    numbers = [ball(member, trial) for member in condition.args]
    if not all(map(is_real, numbers)):
        raise Undefined
    verdicts = []
    for left, operator, right in zip(numbers, condition.value, numbers[1:], strict=False):
        a, b = left.real, right.real
        if operator not in ("<", "<=", ">", ">=", "=", "!="):
            raise Unreadable(f"a condition with {operator!r}")
        equal = bool((a - b).is_zero())
        if not equal and (a - b).contains(0):
            raise Undefined
        below = not equal and bool(a < b)
        verdicts.append(
            {
                "<": below,
                "<=": below or equal,
                ">": not below and not equal,
                ">=": not below,
                "=": equal,
                "!=": not equal,
            }[operator]
        )
    return all(verdicts)


def _opaque(name: str, args: list[Any], trial: int) -> Any:
    if not all(map(is_accurate, args)):
        raise Undefined
    key = "|".join([name, *(f"{arg.real.mid().str(20, radius=False)},{arg.imag.str(15)}" for arg in args)])
    return _flint().acb(_rational(_symbol_value(key, trial)))


def _big(node: Node, trial: int) -> Any:
    """A short finite sum or product is computed; everything else equals only what is written like it."""
    name, lower, upper = node.value
    variable, _, start = lower.partition("=")
    if name in ("sum", "prod") and start.lstrip("-").isdigit() and upper.lstrip("-").isdigit():
        first, last = int(start), int(upper)
        if last - first > MAX_SUM_TERMS:
            raise TooLarge(f"a {name} of {last - first + 1} terms")
        result = _flint().acb(0 if name == "sum" else 1)
        for k in range(first, last + 1):
            term = ball(substitute(node.args[0], variable, Fraction(k)), trial)
            result = result + term if name == "sum" else result * term
        return _checked(result)
    body = substitute(node.args[0], variable, Node("sym", (), "bound")) if start else node.args[0]
    return _opaque(f"{name}_{start or lower}^{upper}", [ball(body, trial)], trial)


@lru_cache(maxsize=4096)
def _unit_interval(key: str) -> Fraction:
    digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=16).digest()
    return Fraction(int.from_bytes(digest, "big"), 2**128)


@lru_cache(maxsize=4096)
def _symbol_value(name: str, trial: int) -> Fraction:
    low, high = (Fraction(end).limit_denominator(100) for end in RANGES[trial])
    return low + (high - low) * _unit_interval(f"{name}#{trial}")


def _constant(name: str) -> Any:
    acb = _flint().acb
    if name == "oo":
        raise Undefined
    return {"pi": acb.pi, "e": lambda: acb(1).exp(), "i": lambda: acb(0, 1)}[name]()


def _rational(value: Fraction) -> Any:
    return _flint().fmpq(value.numerator, value.denominator)


@lru_cache(maxsize=1)
def _flint() -> Any:
    import flint  # not at the top: `import rewards` and the exact paths do without it

    return flint
