"""Comparing single values: units, percents, degrees, bases, ratios, and what rounding may stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations

from rewards.mathematics.evaluate import (
    based_value,
    contains,
    equal,
    is_constant,
    number_of,
    sample,
    substitute,
    symbols,
)
from rewards.mathematics.exact import exact
from rewards.mathematics.nodes import PI, Node, Unreadable, add, divide, mul, neg, num
from rewards.mathematics.tokens import UNITS, compound_unit

SCALAR_OPS = "num dec sym const add mul pow fn big based percent deg unit ratio cases"
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


@dataclass(frozen=True, slots=True)
class Signs:
    """Which signs an answer may put down or leave out beside the reference."""

    percent: bool = True
    """``25\\%`` for 25: the question asked for a percentage."""
    base: bool = True
    """``52`` for ``52_8``: the question named the base."""


def scalars_match(gold: Node, answer: Node, signs: Signs = Signs()) -> bool:
    """Whether two single values are the same by the policy. Raises `Unreadable` for what has no value."""
    gold, gold_unit = _split_unit(gold)
    answer, answer_unit = _split_unit(answer)
    if not _units_agree(gold_unit, answer_unit):
        return False
    if gold.op == "percent" or answer.op == "percent":
        return _percents(gold, answer, signs)
    if gold.op == "deg" and answer_unit == "rad":
        return equal(mul(gold.args[0], divide(PI, num(180))), answer)
    if gold.op == "deg" or answer.op == "deg":
        return _degrees(gold, answer)
    if gold.op == "based" or answer.op == "based":
        return _based(gold, answer, signs)
    if gold.op == "ratio" or answer.op == "ratio":
        return _ratios(gold, answer)
    if equal(gold, answer) or _rounded(gold, answer):
        return True
    if contains(gold, "deg") != contains(answer, "deg") and symbols(gold) and symbols(gold) == symbols(answer):
        return equal(_without_degrees(gold), _without_degrees(answer))  # 180 - 2 alpha
    return _up_to_a_constant(gold, answer)


def _without_degrees(node: Node) -> Node:
    if node.op == "deg":
        return _without_degrees(node.args[0])
    return Node(node.op, tuple(map(_without_degrees, node.args)), node.value) if node.args else node


def _up_to_a_constant(gold: Node, answer: Node) -> bool:
    """Whether two antiderivatives, both with a constant of integration, differ by a constant, or name it otherwise."""
    mine, theirs = _constant_of(gold), _constant_of(answer)
    if mine is None or theirs is None:
        return _same_but_for_constants(gold, answer)
    left, right = (substitute(side, name, num(0)) for side, name in ((gold, mine), (answer, theirs)))
    names = symbols(left) | symbols(right)
    return bool(names) and not {mine, theirs} & names and is_constant(add(left, neg(right)), left)


def _constant_of(node: Node) -> str | None:
    """The constant of integration: C, c or K, alone as a term of a sum."""
    terms = node.args if node.op == "add" else ()
    return next(
        (term.value for term in terms if term.op == "sym" and term.value in ("C", "c", "K", "C_1", "c_1")), None
    )


def _same_but_for_constants(gold: Node, answer: Node) -> bool:
    """``C_1 e^x + C_2 e^{-x}`` with its constants named c_1 and c_2, or A and B."""
    free, others = symbols(gold), symbols(answer)
    mine, theirs = free - others, others - free
    if not mine or len(mine) != len(theirs) or len(mine) > 3 or not all(map(_is_constant_name, mine | theirs)):
        return False
    for order in permutations(sorted(theirs)):
        renamed = answer
        for name, new in zip(order, sorted(mine), strict=True):
            renamed = substitute(renamed, name, Node("sym", (), new))
        if equal(gold, renamed):
            return True
    return False


def _is_constant_name(name: str) -> bool:
    return re.fullmatch(r"[CcKk](?:_?\d)?", name) is not None


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
    compounds = [compound_unit(_spelt(unit)) or unit for unit in (gold, answer)]
    if compounds[0] == compounds[1]:
        return True
    if all("*" in unit or re.search(r"\^-", unit) for unit in compounds):
        return False
    said = [set(re.findall(r"[a-z]+", unit.lower())) for unit in (gold, answer)]
    if any(said[0] & group and said[1] & group and not said[0] & said[1] & group for group in OPPOSITES):
        return False
    if " " in gold or " " in answer:  # km east, cm long
        heads = [UNITS.get(re.split(r"[ ^/]", unit)[0], "") for unit in (gold, answer)]
        return not all(heads) or heads[0] == heads[1] or "in" in heads
    known = [re.split(r"[\^/*]", unit)[0] in KNOWN_UNITS for unit in (gold, answer)]
    return not all(known)


def _spelt(unit: str) -> str:
    """A unit's parts with spaces between them, as `compound_unit` reads them: ``m/s^-2``."""
    return unit.replace("*", " ")


def _percents(gold: Node, answer: Node, signs: Signs) -> bool:
    if gold.op == answer.op:
        return scalars_match(gold.args[0], answer.args[0])
    if answer.op == "percent":  # 0.75 is 75 %; a number above 1 may be meant in percents, and is never a share
        if signs.percent and gold.op in ("num", "dec") and abs(exact(gold) or Fraction(0)) >= 1:
            return equal(gold, answer.args[0])
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


def _based(gold: Node, answer: Node, signs: Signs) -> bool:
    if gold.op == answer.op:
        return gold.value[1] == answer.value[1] and based_value(gold) == based_value(answer)
    based, other = (gold, answer) if gold.op == "based" else (answer, gold)
    if based is gold and gold.value[1] != 10:
        digits = str(other.value) if other.op == "num" and other.value.denominator == 1 else ""
        return signs.base and digits != "" and digits == gold.value[0].lstrip("0")  # the same digits, without the base
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
        if digits < 1 or significant < MIN_SIGNIFICANT[value is not None]:
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
