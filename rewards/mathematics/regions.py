"""The parts of the real line that intervals, unions, inequalities and set-builders describe."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from rewards.mathematics.evaluate import number_of, symbols
from rewards.mathematics.interpret import expand
from rewards.mathematics.nodes import INFINITY, Node, add, neg
from rewards.mathematics.scalars import SCALARS

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


def to_region(node: Node) -> Region | None:
    """The part of the real line that an interval, a union, or an inequality in one variable describes, or None."""
    match node.op:
        case "tuple" if len(node.args) == 2:
            low, high = node.value
            return Region(None, (Piece(*node.args, low == "[", high == "]"),))
        case "reals":
            return Region(None, (Piece(neg(INFINITY), INFINITY, False, False),))
        case "minus":
            return _minus(to_region(node.args[0]), node.args[1])
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
            parts = [_part(arg) for arg in node.args]
            if None in parts or len({part.variable for part in parts if part}) != 1:
                return None
            return Region(
                next(part.variable for part in parts if part),
                tuple(piece for part in parts if part for piece in part.pieces),
            )
        case "list" if len(node.args) > 1 and all(arg.op == "rel" for arg in node.args):
            return _all_of([to_region(arg) for arg in node.args])
        case "rel":
            return _region_of_relation(node.args, node.value)
    return None


def _part(node: Node) -> Region | None:
    """A relation, or a label as a point: ``x < 0 or x = 1/2``."""
    if node.op == "label" and node.args[1].op == "sym" and node.args[0].op in SCALARS:
        return Region(node.args[1].value, tuple(Piece(point, point, True, True) for point in expand(node.args[0])))
    return to_region(node) if node.op == "rel" else None


def _all_of(regions: list[Region | None]) -> Region | None:
    r"""``x > 1 and x < 3``, ``x \in (0, 2), x \ne 1``: what lies in all regions; None where that is nothing."""
    first, *others = regions
    for other in others:
        if first is None or other is None or first.variable != other.variable:
            return None
        first = Region(first.variable, _common(first.pieces, other.pieces))
    return first if first is not None and first.pieces else None


def _common(first: tuple[Piece, ...], second: tuple[Piece, ...]) -> tuple[Piece, ...]:
    found = []
    for one in first:
        for other in second:
            lows = sorted(((_place(p.low), not p.low_closed, p) for p in (one, other)), key=lambda end: end[:2])
            highs = sorted(((_place(p.high), p.high_closed, p) for p in (one, other)), key=lambda end: end[:2])
            low, high = lows[-1], highs[0]
            if low[0] < high[0] or (low[0] == high[0] and low[2].low_closed and high[2].high_closed):
                found.append(Piece(low[2].low, high[2].high, low[2].low_closed, high[2].high_closed))
    return tuple(found)


def _minus(region: Region | None, taken: Node) -> Region | None:
    """A region without points, or without an interval or a union."""
    if region is None or any(_place(end) is None for piece in region.pieces for end in (piece.low, piece.high)):
        return None
    if taken.op == "set":
        outside = _without_points(expand(taken))
    else:
        outside = Region(None, (Piece(neg(INFINITY), INFINITY, False, False),))
        inner = to_region(taken)
        for piece in inner.pieces if inner else ():
            around = _outside(Region(None, (piece,)))
            outside = Region(None, _common(outside.pieces, around.pieces)) if around else outside
        outside = outside if inner else None
    return Region(region.variable, _common(region.pieces, outside.pieces)) if outside else None


def joined(region: Region) -> Region:
    r"""The region with pieces that overlap or touch made one: ``[0, 1) \cup [1, 2)`` as ``[0, 2)``."""
    placed = [(_place(piece.low), _place(piece.high), piece) for piece in region.pieces]
    if len(placed) < 2 or any(low is None or high is None or low > high for low, high, _ in placed):
        return region
    placed.sort(key=lambda each: (each[0], not each[2].low_closed))
    merged = [placed[0]]
    for low, high, piece in placed[1:]:
        _, end, last = merged[-1]
        if low > end or (low == end and not (last.high_closed or piece.low_closed)):
            merged.append((low, high, piece))
        elif high > end or (high == end and piece.high_closed):
            merged[-1] = merged[-1][0], high, Piece(last.low, piece.high, last.low_closed, piece.high_closed)
    return Region(region.variable, tuple(piece for _, _, piece in merged))


def _place(end: Node) -> Any:
    """Where an end lies on the real line, or None for what is no real number."""
    if end in (INFINITY, neg(INFINITY)):
        return float("inf") if end == INFINITY else float("-inf")
    place = number_of(end) if end.op in SCALARS and not symbols(end) and end.op != "ratio" else None
    return None if place is None else place if place.denominator < 2**64 else round(place * 2**128) / Fraction(2**128)


def _without_points(points: tuple[Node, ...]) -> Region | None:
    """The real line without some points."""
    placed = [(_place(point), point) for point in points]
    if any(at is None for at, _ in placed):
        return None
    ends = [neg(INFINITY), *(point for _, point in sorted(placed, key=lambda pair: pair[0])), INFINITY]
    return Region(None, tuple(Piece(low, high, False, False) for low, high in pairwise(ends)))


def _outside(region: Region | None) -> Region | None:
    """The real line without an interval."""
    if region is None:
        return None
    (piece,) = region.pieces
    below = Piece(neg(INFINITY), piece.low, False, not piece.low_closed)
    above = Piece(piece.high, INFINITY, not piece.high_closed, False)
    return Region(None, tuple(part for part in (below, above) if part.low != part.high))


def _region_of_relation(members: tuple[Node, ...], operators: tuple[str, ...]) -> Region | None:
    if operators[0] in (">", ">="):
        members, operators = members[::-1], tuple(FLIPPED.get(operator, "") for operator in reversed(operators))
    if operators == ("in",) and members[0].op == "sym":
        inner = to_region(members[1])
        return Region(members[0].value, inner.pieces) if inner else None
    distances = [at for at, member in enumerate(members) if _is_distance(member)]
    if len(distances) == 1:
        at = distances[0]
        inside = members[at].args[0]
        unknown = inside if inside.op == "sym" else inside.args[0]
        inner = _region_of_relation((*members[:at], unknown, *members[at + 1 :]), operators)
        return _shifted(_mirrored(inner), inside.args[1:]) if inner else None
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
    """|x|, or |x - 3| with the variable first."""
    if node.op != "fn" or node.value != "abs":
        return False
    inside = node.args[0]
    first, rest = (inside.args[0], inside.args[1:]) if inside.op == "add" else (inside, ())
    return first.op == "sym" and not any(symbols(term) for term in rest)


def _shifted(region: Region, terms: tuple[Node, ...]) -> Region:
    """Where x lies when x plus these terms lies in a region."""
    if not terms:
        return region

    def moved(end: Node) -> Node:
        return end if end in (INFINITY, neg(INFINITY)) else add(end, *map(neg, terms))

    pieces = [Piece(moved(p.low), moved(p.high), p.low_closed, p.high_closed) for p in region.pieces]
    return Region(region.variable, tuple(pieces))


def _mirrored(region: Region) -> Region:
    """What x may be where |x| lies in a region of one interval."""
    (piece,) = region.pieces[:1]
    if piece.low == neg(INFINITY):
        return Region(region.variable, (Piece(neg(piece.high), piece.high, piece.high_closed, piece.high_closed),))
    left = Piece(neg(piece.high), neg(piece.low), piece.high_closed, piece.low_closed)
    return Region(region.variable, (left, piece))
