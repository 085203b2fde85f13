r"""Families of numbers with an integer parameter: ``\frac\pi4 + k\pi``, ``n = 4k + 3``, ``n \equiv 3 \pmod 4``."""

from __future__ import annotations

from fractions import Fraction

from rewards.mathematics.evaluate import equal, exact, substitute, symbols
from rewards.mathematics.interpret import expand, interpret
from rewards.mathematics.nodes import MINUS_ONE, Node, Unreadable, add, mul, neg, num, power

PARAMETERS = frozenset("klmnt")
Domain = tuple[str, str] | None


def unlabelled(node: Node) -> Node:
    """The right side of ``x = ...``, where the left side is a name."""
    if node.op == "rel" and node.value == ("=",) and node.args[0].op == "sym":
        return node.args[1]
    return node


def same_family(gold: Node, domain: Domain, answer: Node, other_domain: Domain) -> bool:
    """Whether both are one arithmetic progression, whatever their parameters are called and wherever they begin."""
    modulus = "mod" in (domain or ()) or "mod" in (other_domain or ())
    if not modulus and not (domain or other_domain or _is_labelled(gold)):
        return False
    first, second = _progression(gold, domain), _progression(answer, other_domain)
    if first is None or second is None or len(first) != len(second):
        return False
    if not modulus and {each[1] for each in ((domain or ("", "Z")), (other_domain or ("", "Z")))} != {"Z"}:
        return False
    known = modulus or "Z" in ((domain or ("", ""))[1], (other_domain or ("", ""))[1])
    try:
        left = list(second)
        for start, step in first:
            partner = next((pair for pair in left if _is_same(start, step, *pair, anywhere=known)), None)
            if partner is None:
                return False
            left.remove(partner)
    except Unreadable:
        return False
    return not left


def _is_labelled(node: Node) -> bool:
    return node.op == "rel" and node.value == ("=",) and node.args[0].op == "sym"


def _progression(node: Node, domain: Domain) -> list[tuple[Node, Node]] | None:
    """Beginning and step of each of the progressions that an answer lists; None for anything else."""
    if domain is not None and domain[0] == "mod":
        if not domain[1].isdigit():
            return None
        return [(unlabelled(node), num(int(domain[1])))]
    node = unlabelled(node)
    meaning = interpret(node)
    items = meaning.args if meaning.op in ("list", "set") else (meaning,)
    found = []
    for item in items:
        for value in expand(item.args[0] if item.op == "label" else item):
            names = symbols(value)
            name = domain[0] if domain else next(iter(names)) if len(names) == 1 else ""
            if not name or name not in names or (not domain and name not in PARAMETERS):
                return None
            zero, one, two = (substitute(value, name, Fraction(k)) for k in (0, 1, 2))
            step = add(one, neg(zero))
            try:
                if symbols(step) or not equal(add(two, neg(one)), step) or equal(step, num(0)):
                    return None
            except Unreadable:
                return None
            found.append((zero, step))
    return found or None


def _is_same(start: Node, step: Node, other: Node, other_step: Node, anywhere: bool) -> bool:
    if not (equal(step, other_step) or (anywhere and equal(step, neg(other_step)))):
        return False
    if equal(start, other):
        return True
    if not anywhere:
        return False
    steps = exact(mul(add(start, neg(other)), power(step, MINUS_ONE)))
    if steps is not None:
        return steps.denominator == 1
    return any(equal(add(start, neg(other)), mul(num(k), step)) for k in range(-4, 5))
