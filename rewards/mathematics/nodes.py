"""The tree that answers are read into, and why a text is not one."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple


class Unreadable(ValueError):
    """The text is no mathematics that this reader knows; the message says where it stopped."""


class TooLarge(Unreadable):
    """Reading or computing it would take more room or time than an answer deserves."""


class Node(NamedTuple):
    r"""One node of an answer; equal trees are equal values, and trees can be keys.

    ============  ==========================================  =========================================
    op            args                                        value
    ============  ==========================================  =========================================
    num           -                                           Fraction
    dec           -                                           (Fraction, digits after the point)
    sym           -                                           name, subscript included
    const         -                                           "pi", "e", "i", "oo"
    add, mul      two or more nodes                           -
    pow           base, exponent                              -
    pm            the node behind the sign                    +1 for ``\pm``, -1 for ``\mp``
    fn            arguments                                   name
    big           body                                        (name, lower, upper) of a sum, integral, limit
    based         -                                           (digits, base)
    percent, deg  the number before the mark                  -
    unit          the number before the unit                  the unit's name
    ratio         the members of a : b : c                    the text, for times of day
    tuple         members                                     "()", "[]", "(]" or "[)"
    list, set     members                                     -
    union         intervals and sets                          -
    minus         a region, a set                             -
    reals         -                                           -
    matrix        cells, row by row                           (rows, columns)
    rel           members of a chain                          the operators between them
    label         the answer behind the label                 the label's text
    text          -                                           words
    cases         value and condition, row by row             -
    else          -                                           -
    ============  ==========================================  =========================================
    """

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None


@lru_cache(maxsize=4096)
def num(value: int | Fraction) -> Node:
    """A number node."""
    return Node("num", (), Fraction(value))


MINUS_ONE = num(-1)
PI, E, IMAGINARY, INFINITY = (Node("const", (), name) for name in ("pi", "e", "i", "oo"))


def add(*args: Node) -> Node:
    """A sum."""
    return args[0] if len(args) == 1 else Node("add", args)


def mul(*args: Node) -> Node:
    """A product."""
    return args[0] if len(args) == 1 else Node("mul", args)


def neg(node: Node) -> Node:
    """The negative, folded into number literals."""
    if node.op == "num":
        return num(-node.value)
    if node.op == "dec":
        return Node("dec", (), (-node.value[0], node.value[1]))
    return Node("mul", (MINUS_ONE, node))


def power(base: Node, exponent: Node) -> Node:
    """A power."""
    return Node("pow", (base, exponent))


def divide(left: Node, right: Node) -> Node:
    """A quotient."""
    return Node("mul", (left, Node("pow", (right, MINUS_ONE))))


def multiply(left: Node, right: Node) -> Node:
    """A product, one node for any number of factors."""
    return Node("mul", (*left.args, right)) if left.op == "mul" else mul(left, right)


def plus_minus(node: Node) -> Node:
    r"""The node behind ``\pm``."""
    return Node("pm", (node,), 1)


def minus_plus(node: Node) -> Node:
    r"""The node behind ``\mp``."""
    return Node("pm", (node,), -1)


def double_factorial(node: Node) -> Node:
    """``7!!`` = 7 * 5 * 3 * 1, which is not (7!)!; raises `Unreadable` for a number that is none from 0 to 300."""
    if node.op not in ("num", "dec"):
        return Node("fn", (node,), "doublefactorial")
    if node.op != "num" or node.value.denominator != 1 or not 0 <= node.value <= 300:
        raise Unreadable("a double factorial of something else than an integer from 0 to 300")
    return num(Fraction(math.prod(range(int(node.value), 0, -2))))
