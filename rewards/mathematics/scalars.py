"""Comparing single values: units, percents, degrees, bases, ratios, and what rounding may stand for."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.mathematics.evaluate import based_value, contains, equal, number_of, sample, symbols
from rewards.mathematics.exact import exact
from rewards.mathematics.nodes import PI, Node, Unreadable, divide, mul, num
from rewards.mathematics.tokens import UNITS

SCALAR_OPS = "num dec sym const add mul pow fn big based percent deg unit ratio"
SCALARS = frozenset(SCALAR_OPS.split())
CLOCK = re.compile(r"\d{1,2}:[0-5]\d(?::[0-5]\d)?\Z")
KNOWN_UNITS = frozenset(UNITS.values())
OPPOSITES = [
    frozenset(group.split())
    for group in (
        "north south east west", "left right", "up down", "above below", "profit gain loss", "increase decrease",
        "more less fewer", "clockwise counterclockwise anticlockwise", "red blue green", "boys girls", "men women",
        "won lost", "deep high", "wide long tall",
    )
]  # fmt: skip
"""Words that may be left out behind a number, but not be exchanged for each other."""
MIN_SIGNIFICANT = {True: 3, False: 4}
"""Significant digits that a rounded reference needs to accept an exact rational (True) or irrational answer."""
MIN_DECIMALS = 4
"""Digits after the point from which a rounded answer may stand for an exact, non-terminating fraction."""


def scalars_match(gold: Node, answer: Node) -> bool:
    """Whether two single values are the same by the policy. Raises `Unreadable` for what has no value."""
    gold, gold_unit = _split_unit(gold)
    answer, answer_unit = _split_unit(answer)
    if not _units_agree(gold_unit, answer_unit):
        return False
    if gold.op == "percent" or answer.op == "percent":
        return _percents(gold, answer)
    if gold.op == "deg" and answer_unit == "rad":
        return equal(mul(gold.args[0], divide(PI, num(180))), answer)
    if gold.op == "deg" or answer.op == "deg":
        return _degrees(gold, answer)
    if gold.op == "based" or answer.op == "based":
        return _based(gold, answer)
    if gold.op == "ratio" or answer.op == "ratio":
        return _ratios(gold, answer)
    return equal(gold, answer) or _rounded(gold, answer)


def check_value(node: Node) -> None:
    """Raises `Unreadable` for a number that has no value, or one too large to compute."""
    if node.op not in SCALARS or node.op == "ratio" or symbols(node) or contains(node, "const", "oo"):
        return
    if exact(node) is None and sample(node, 0) is None:
        raise Unreadable("it has no value")


def _split_unit(node: Node) -> tuple[Node, str]:
    return (node.args[0], node.value) if node.op == "unit" else (node, "")


def _units_agree(gold: str, answer: str) -> bool:
    """A unit may be left out; two units that we know must be the same one."""
    if not gold or not answer or gold == answer:
        return True
    said = [set(re.findall(r"[a-z]+", unit.lower())) for unit in (gold, answer)]
    if any(said[0] & group and said[1] & group and not said[0] & said[1] & group for group in OPPOSITES):
        return False
    if " " in gold or " " in answer:  # km east, cm long
        heads = [UNITS.get(re.split(r"[ ^/]", unit)[0], "") for unit in (gold, answer)]
        return not all(heads) or heads[0] == heads[1] or "in" in heads
    known = [unit.partition("^")[0].partition("/")[0] in KNOWN_UNITS for unit in (gold, answer)]
    return not all(known)


def _percents(gold: Node, answer: Node) -> bool:
    if gold.op == answer.op:
        return scalars_match(gold.args[0], answer.args[0])
    if answer.op == "percent":  # 0.75 is 75 %; 75 is not, and whole numbers are not meant in percents
        return gold.op != "num" and equal(gold, answer)
    bare = gold.args[0]  # the question asked for percents: the sign may be left out, or the value given
    return scalars_match(bare, answer) or equal(gold, answer) or _rounded(bare, mul(num(100), answer))


def _degrees(gold: Node, answer: Node) -> bool:
    if gold.op == answer.op:
        return scalars_match(gold.args[0], answer.args[0])
    degrees, other = (gold.args[0], answer) if gold.op == "deg" else (answer.args[0], gold)
    if contains(other, "const", "pi"):
        in_degrees = mul(other, divide(num(180), PI))
        return equal(degrees, in_degrees)
    return scalars_match(degrees, other) if gold.op == "deg" else scalars_match(other, degrees)


def _based(gold: Node, answer: Node) -> bool:
    if gold.op == answer.op:
        return gold.value[1] == answer.value[1] and based_value(gold) == based_value(answer)
    based, other = (gold, answer) if gold.op == "based" else (answer, gold)
    if based is gold and gold.value[1] != 10:
        return False  # a reference in base 3 asks for digits in base 3
    return equal(num(based_value(based)), other)


def _ratios(gold: Node, answer: Node) -> bool:
    if gold.op == "ratio" and CLOCK.match(str(gold.value)):  # it may be a time of day
        return answer.op == "ratio" and str(gold.value).lstrip("0") == str(answer.value).lstrip("0")
    if gold.op == answer.op:
        if len(gold.args) != len(answer.args):
            return False
        first = divide(gold.args[0], answer.args[0])
        return all(equal(first, divide(a, b)) for a, b in zip(gold.args, answer.args, strict=True))
    ratio, other = (gold, answer) if gold.op == "ratio" else (answer, gold)
    if len(ratio.args) != 2 or other.op == "num" or CLOCK.match(str(ratio.value)):
        return False  # 5:1 is no way to say 5
    quotient = divide(*ratio.args)
    return scalars_match(gold, quotient) if ratio is answer else scalars_match(quotient, other)


def _rounded(gold: Node, answer: Node) -> bool:
    """A reference of two decimals or more stands for what rounds to it, if that is written exactly; and a decimal
    of four places or more may stand for a fraction that no decimal equals. Between two decimals nothing is rounded."""
    if symbols(gold) or symbols(answer):
        return False
    if gold.op == "dec" and not _terminates(answer):
        digits = gold.value[1]
        value = exact(answer)
        significant = len(str(abs(gold.value[0].numerator * 10**digits // gold.value[0].denominator)))
        if digits < 2 or significant < MIN_SIGNIFICANT[value is not None]:
            return False
        if value is None and contains(answer, "dec"):
            return False
        return _within(gold.value[0], value if value is not None else _real(answer), digits)
    if answer.op == "dec" and answer.value[1] >= MIN_DECIMALS:
        value = exact(gold)
        return value is not None and gold.op != "dec" and _within(answer.value[0], value, answer.value[1])
    return False


def _terminates(node: Node) -> bool:
    """Whether a number is written so that a decimal could have said the same: no rounding is meant then."""
    if node.op != "num":
        return node.op == "dec"
    rest = node.value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return bool(rest == 1)


def _real(node: Node) -> Fraction | None:
    number = number_of(node)
    return number if number is not None and abs(number) <= 10**15 else None


def _within(rounded: Fraction, value: Fraction | None, digits: int) -> bool:
    return value is not None and abs(rounded - value) <= Fraction(1, 2 * 10**digits)
