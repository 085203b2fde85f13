"""Whether an answer says what the reference says, by the kind of the reference (the policy is in rewards/README.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rewards.mathematics.evaluate import equal, sample, substitute, symbols
from rewards.mathematics.interpret import FALSE, expand, interpret
from rewards.mathematics.nodes import INFINITY, Node, Unreadable, add, neg, num
from rewards.mathematics.scalars import SCALARS, scalars_match

MAX_MEMBERS = 64
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


@dataclass(frozen=True, slots=True)
class Piece:
    """One interval of the real line; a point where both ends are the same."""

    low: Node
    high: Node
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True, slots=True)
class Region:
    """Intervals, and the variable that lies in them if one was named."""

    variable: str | None
    pieces: tuple[Piece, ...]


def matches(gold: Node, answer: Node, bare_tuples: bool = False) -> bool:
    """Whether the answer says what the reference says.

    ``bare_tuples``: ``1, 2`` may stand for ``(1, 2)``. Raises `Unreadable` for an answer that has no value.
    """
    return Comparison(bare_tuples).matches(interpret(gold), interpret(answer))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rules, by the kind of the reference."""

    bare_tuples: bool = False

    def matches(self, gold: Node, answer: Node) -> bool:
        """Both sides interpreted."""
        if answer.op == FALSE:
            raise Unreadable(f"a statement that is false: {answer.value}")
        if gold == answer:
            return True
        if gold.op == "label" or answer.op == "label":
            return self._labelled(gold, answer)
        if gold.op in ("list", "set"):
            return self._collections(gold, answer)
        if gold.op == "tuple" and self._tuples(gold, answer):
            return True
        if gold.op == "matrix":
            return self._matrices(gold, answer)
        if gold.op == "rel" and self._relations(gold, answer):
            return True
        region, other = to_region(gold), to_region(answer)
        if region is not None and other is not None:
            return (gold.op, answer.op) != ("tuple", "tuple") and self._regions(region, other)
        if len(values := expand(gold)) > 1:
            return self._collections(Node("list", values), answer)
        if gold.op in SCALARS and answer.op in SCALARS:
            return scalars_match(gold, answer)
        return False

    # -- labels ------------------------------------------------------------------------------------------------------

    def _labelled(self, gold: Node, answer: Node) -> bool:
        if gold.op == answer.op == "label":
            (value, label), (other, other_label) = gold.args, answer.args
            if label.op == other_label.op == "fn":  # f(n) = n + 1 and f(m) = m + 1 are one function
                variable = other_label.args[0].value
                return self.matches(value, substitute(other, variable, label.args[0]))
            if gold.value == answer.value:
                return self.matches(value, other)
            return self._relations(_as_relation(gold), _as_relation(answer))
        if gold.op == "label":
            if answer.op == "rel":
                return self._relations(_as_relation(gold), answer)
            if gold.args[1].op == "tuple" and gold.args[0].op == "tuple" and answer.op == "list":
                return self._by_labels(_spread(gold), answer.args)
            return self.matches(gold.args[0], answer)
        if gold.op == "rel":
            return self._relations(gold, answer)
        if gold.op in ("list", "set") and answer.args[0].op != "tuple":
            return self._collections(gold, answer)
        return self.matches(gold, answer.args[0])

    # -- collections -------------------------------------------------------------------------------------------------

    def _collections(self, gold: Node, answer: Node) -> bool:
        if gold.op == "list" and gold.value == "or":
            region, other = to_region(gold), to_region(answer)
            if region is not None and other is not None:
                return self._regions(region, other)
        golds = expand(gold)
        if answer.op == "tuple" and len(expand(answer)) == 1:
            if gold.op == "set" or any(item.op == "tuple" for item in golds) or len(golds) != len(answer.args):
                return False
            ordered = len(golds) > 2 or _distinct_labels(golds)
            return ordered and self._in_order([_value(item) for item in golds], answer.args)
        answers = expand(answer)
        if gold.op == "set" or answer.op == "set":
            golds, answers = tuple(dict.fromkeys(golds)), tuple(dict.fromkeys(answers))
        if len(golds) != len(answers) or len(golds) > MAX_MEMBERS:
            return False
        if _distinct_labels(golds) or _distinct_labels(answers):
            return self._by_labels(golds, answers)
        if any(item.op == "label" for item in (*golds, *answers)):
            golds, answers = tuple(map(_value, golds)), tuple(map(_value, answers))
        return self._in_any_order(golds, answers)

    def _by_labels(self, golds: Sequence[Node], answers: Sequence[Node]) -> bool:
        """Labels that differ within one side name their values; without them the order does."""
        if len(golds) != len(answers):
            return False
        named = {item.value: item for item in answers if item.op == "label"}
        names = [item.value for item in golds if item.op == "label"]
        if len(named) == len(names) == len(golds):
            if set(names) == set(named):
                return all(self.matches(item, named[item.value]) for item in golds)
            return False
        return self._in_order([_value(item) for item in golds], [_value(item) for item in answers])

    def _in_order(self, golds: Sequence[Node], answers: Sequence[Node]) -> bool:
        return len(golds) == len(answers) and all(map(self.matches, golds, answers))

    def _in_any_order(self, golds: Sequence[Node], answers: Sequence[Node]) -> bool:
        left = list(answers)
        for item in golds:
            partner = next((other for other in left if self.matches(item, other)), None)
            if partner is None:
                return False
            left.remove(partner)
        return not left

    def _tuples(self, gold: Node, answer: Node) -> bool:
        if len(expand(gold)) > 1 or (answer.op == "tuple" and len(expand(answer)) > 1):
            return self._collections(Node("list", expand(gold)), Node("list", expand(answer)))
        members = answer.args
        if answer.op == "tuple":
            if len(members) == 2 and gold.value != answer.value:
                return False
        elif answer.op == "matrix":
            if answer.value[1] != 1:
                return False
        elif answer.op == "list" and (self.bare_tuples or _distinct_labels(members)):
            members = tuple(map(_value, members))
        else:
            return False
        return self._in_order(gold.args, members)

    def _matrices(self, gold: Node, answer: Node) -> bool:
        if answer.op == "tuple":
            return gold.value[1] == 1 and self._in_order(gold.args, answer.args)
        return answer.op == "matrix" and gold.value == answer.value and self._in_order(gold.args, answer.args)

    # -- relations and regions -----------------------------------------------------------------------------------------

    def _regions(self, gold: Region, answer: Region) -> bool:
        if gold.variable and answer.variable and gold.variable != answer.variable:
            return False
        left = list(answer.pieces)
        for piece in gold.pieces:
            partner = next((other for other in left if _same_piece(piece, other)), None)
            if partner is None:
                return False
            left.remove(partner)
        return not left

    def _relations(self, gold: Node, answer: Node) -> bool:
        if answer.op == "label":
            if gold.value == ("=",) and answer.args[1].op == "sym" and answer.args[0].op in SCALARS:
                name = answer.args[1].value
                if name in symbols(gold) and _solves(gold, answer.args[0], (name,)):
                    return True
            answer = _as_relation(answer)
        if answer.op == "list":  # b < a < d may be written as the list b, a, d
            plain = all(member.op == "sym" for member in gold.args) and len(gold.args) > 2
            return plain and gold.args == answer.args
        if answer.op != "rel":
            return (
                gold.value == ("=",)
                and answer.op in SCALARS
                and _solves(gold, answer, sorted(symbols(gold) - symbols(answer)))
            )
        if len(gold.args) != len(answer.args):
            return False
        flipped = tuple(FLIPPED.get(operator, "") for operator in reversed(answer.value))
        for members, operators in ((answer.args, answer.value), (answer.args[::-1], flipped)):
            if operators == gold.value and all(map(_same, gold.args, members)):
                return True
        if len(gold.args) != 2 or symbols(gold) != symbols(answer):
            return False
        for members, operators in ((answer.args, answer.value), (answer.args[::-1], flipped)):
            if operators == gold.value and _proportional(gold.args, members, gold.value[0] not in ("=", "!=")):
                return True
        return False


def to_region(node: Node) -> Region | None:
    """The part of the real line that an interval, a union, or an inequality in one variable describes, or None."""
    match node.op:
        case "tuple" if len(node.args) == 2:
            low, high = node.value
            return Region(None, (Piece(*node.args, low == "[", high == "]"),))
        case "reals":
            return Region(None, (Piece(neg(INFINITY), INFINITY, False, False),))
        case "minus" if node.args[0].op == "reals" and node.args[1].op == "set":
            return _without_points(expand(node.args[1]))
        case "union":
            pieces: list[Piece] = []
            for arg in node.args:
                if arg.op == "set":
                    pieces += [Piece(point, point, True, True) for value in arg.args for point in expand(value)]
                elif (region := to_region(arg)) is not None:
                    pieces += region.pieces
                else:
                    return None
            return Region(None, tuple(pieces))
        case "list" if node.value == "or":
            parts = [to_region(arg) for arg in node.args if arg.op == "rel"]
            if len(parts) < len(node.args) or None in parts or len({part.variable for part in parts if part}) != 1:
                return None
            return Region(
                next(part.variable for part in parts if part),
                tuple(piece for part in parts if part for piece in part.pieces),
            )
        case "rel":
            return _region_of_relation(node.args, node.value)
    return None


def _without_points(points: tuple[Node, ...]) -> Region | None:
    """The real line without some points."""
    placed = [(sample(point, 0), point) for point in points if point.op in SCALARS and not symbols(point)]
    if len(placed) < len(points) or any(at is None for at, _ in placed):
        return None
    ends = [neg(INFINITY), *(point for _, point in sorted(placed, key=lambda pair: pair[0].real)), INFINITY]
    return Region(None, tuple(Piece(low, high, False, False) for low, high in pairwise(ends)))


def _region_of_relation(members: tuple[Node, ...], operators: tuple[str, ...]) -> Region | None:
    if operators[0] in (">", ">="):
        members, operators = members[::-1], tuple(FLIPPED.get(operator, "") for operator in reversed(operators))
    if operators == ("in",) and members[0].op == "sym":
        inner = to_region(members[1])
        return Region(members[0].value, inner.pieces) if inner else None
    distances = [at for at, member in enumerate(members) if _is_distance(member)]
    if len(distances) == 1:
        at = distances[0]
        inner = _region_of_relation((*members[:at], members[at].args[0], *members[at + 1 :]), operators)
        return _mirrored(inner) if inner else None
    variables = [at for at, member in enumerate(members) if member.op == "sym"]
    if not variables or any(operator not in ("<", "<=", "!=") for operator in operators):
        return None
    at = variables[0] if len(members) == 2 else 1
    variable = members[at].value if members[at].op == "sym" else None
    if variable is None or any(variable in symbols(member) for i, member in enumerate(members) if i != at):
        return None
    if operators == ("!=",):
        point = members[1 - at]
        both = Piece(neg(INFINITY), point, False, False), Piece(point, INFINITY, False, False)
        return Region(variable, both)
    if "!=" in operators or len(members) > 3:
        return None
    low, low_closed = (members[at - 1], operators[at - 1] == "<=") if at else (neg(INFINITY), False)
    high, high_closed = (members[at + 1], operators[at] == "<=") if at + 1 < len(members) else (INFINITY, False)
    return Region(variable, (Piece(low, high, low_closed, high_closed),))


def _is_distance(node: Node) -> bool:
    return node.op == "fn" and node.value == "abs" and node.args[0].op == "sym"


def _mirrored(region: Region) -> Region:
    """What x may be where |x| lies in a region of one interval."""
    (piece,) = region.pieces[:1]
    if piece.low == neg(INFINITY):
        return Region(region.variable, (Piece(neg(piece.high), piece.high, piece.high_closed, piece.high_closed),))
    left = Piece(neg(piece.high), neg(piece.low), piece.high_closed, piece.low_closed)
    return Region(region.variable, (left, piece))


def _same_piece(gold: Piece, answer: Piece) -> bool:
    def ends(a: Node, b: Node, closed: bool, other: bool) -> bool:
        infinite = a == b and a in (INFINITY, neg(INFINITY))
        return (infinite or closed == other) and _scalar_or_same(a, b)

    return ends(gold.low, answer.low, gold.low_closed, answer.low_closed) and ends(
        gold.high, answer.high, gold.high_closed, answer.high_closed
    )


def _scalar_or_same(gold: Node, answer: Node) -> bool:
    return gold == answer or (gold.op in SCALARS and answer.op in SCALARS and scalars_match(gold, answer))


def _same(gold: Node, answer: Node) -> bool:
    return gold == answer or (gold.op in SCALARS and answer.op in SCALARS and equal(gold, answer))


def _as_relation(node: Node) -> Node:
    return Node("rel", (node.args[1], node.args[0]), ("=",)) if node.op == "label" else node


def _value(node: Node) -> Node:
    return node.args[0] if node.op == "label" else node


def _spread(node: Node) -> tuple[Node, ...]:
    """``(p, q) = (3, 2)`` as p = 3, q = 2."""
    values, labels = node.args
    return tuple(
        Node("label", (value, label), label.value) for value, label in zip(values.args, labels.args, strict=False)
    )


def _distinct_labels(items: Sequence[Node]) -> bool:
    names = [item.value for item in items if item.op == "label"]
    return len(names) == len(items) > 1 and len(set(names)) == len(names)


def _sides(members: Sequence[Node]) -> Node:
    return add(members[0], neg(members[1]))


def _proportional(gold: Sequence[Node], answer: Sequence[Node], positive: bool) -> bool:
    """Whether left minus right of both differ by one constant factor, so that they vanish together."""
    if any(member.op not in SCALARS for member in (*gold, *answer)):
        return False
    ratios = _ratios(_sides(gold), _sides(answer))
    if len(ratios) < 3 or any(abs(ratio - ratios[0]) > abs(ratios[0]) * 1e-25 for ratio in ratios):
        return False
    return bool(ratios[0].real > 0) if positive else True


def _ratios(gold: Node, answer: Node) -> list[Any]:
    found = []
    for trial in range(5):
        a, b = sample(gold, trial), sample(answer, trial)
        if a is not None and b is not None and abs(b) > 1e-30 and abs(a) > 1e-30:
            found.append(a / b)
    return found


def _solves(gold: Node, answer: Node, names: Sequence[str]) -> bool:
    """Whether an equation says "name = answer" for one of the names that it is linear in: ``6/x`` for ``xy = 6``."""
    if any(member.op not in SCALARS for member in gold.args):
        return False
    difference = _sides(gold.args)
    return any(_linear_in(difference, name) and _vanishes(substitute(difference, name, answer)) for name in names)


def _linear_in(node: Node, name: str) -> bool:
    points = [substitute(node, name, num(k)) for k in (0, 1, 2)]
    second = add(points[0], Node("mul", (num(-2), points[1])), points[2])
    slope = add(points[1], neg(points[0]))
    return _vanishes(second) and not _vanishes(slope)


def _vanishes(node: Node) -> bool:
    values = [sample(node, trial) for trial in range(5)]
    known = [value for value in values if value is not None]
    return len(known) >= 2 and all(abs(value) < 1e-35 for value in known)
