"""Whether an answer says what the reference says, by the kind of the reference (the policy is in rewards/README.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from rewards.mathematics.evaluate import equal, proportional, substitute, symbols
from rewards.mathematics.interpret import FALSE, expand, interpret, named_value, reference_meaning
from rewards.mathematics.nodes import INFINITY, Node, Unreadable, add, neg, num
from rewards.mathematics.regions import FLIPPED, Piece, Region, joined, to_region
from rewards.mathematics.scalars import SCALARS, Signs, scalars_match

MAX_MEMBERS = 64
CONSTANTS = frozenset(("a", "A", "b", "B", "c", "C", "d", "D", "k", "K", "m", r"\lambda", r"\alpha"))
"""Names that are given to the arbitrary constant of a family of functions."""


def matches(gold: Node, answer: Node, bare_tuples: bool = False, signs: Signs = Signs()) -> bool:  # noqa: B008  # frozen
    """Whether the answer says what the reference says.

    ``bare_tuples``: brackets are loose, ``1, 2`` and ``{1, 2}`` may stand for ``(1, 2)``. ``signs``: see `Signs`.
    Raises `Unreadable` for an answer that has no value.
    """
    return Comparison(bare_tuples, signs).matches(reference_meaning(gold), interpret(answer))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rules, by the kind of the reference."""

    bare_tuples: bool = False
    signs: Signs = Signs()  # noqa: RUF009  # frozen

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
        if gold.op == "tuple" and answer.op == "rel" and answer.args[0].op in ("matrix", "tuple"):
            answer = answer.args[-1]
        if gold.op == "matrix":
            return self._matrices(gold, answer)
        if gold.op == "rel" and self._relations(gold, answer):
            return True
        region, other = to_region(gold), to_region(answer)
        if region is not None and other is not None:
            return (gold.op, answer.op) != ("tuple", "tuple") and self._regions(region, other)
        if len(values := expand(gold)) > 1:
            return self._collections(Node("list", values), answer)
        if gold.op in SCALARS and answer.op == "rel" and (value := named_value(answer)) is not None:
            answer = value
        if gold.op in SCALARS and answer.op in SCALARS:
            return scalars_match(gold, answer, self.signs)
        return False

    # -- labels ------------------------------------------------------------------------------------------------------

    def _labelled(self, gold: Node, answer: Node) -> bool:
        if gold.op == answer.op == "label":
            (value, label), (other, other_label) = gold.args, answer.args
            if _is_function(label) and _is_function(other_label) and len(label.args) == len(other_label.args):
                return label.value == other_label.value and self._functions(value, label, other, other_label)
            if gold.value == answer.value or _head(label) == _head(other_label) != "":
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

    def _functions(self, value: Node, label: Node, other: Node, other_label: Node) -> bool:
        """f(n) = n + 1 and f(m) = m + 1 are one function; so are f(x) = cx and f(x) = kx, for any constant."""
        if label != other_label and all(
            str(arg.value).isupper() and arg.value not in symbols(value) for arg in label.args
        ):
            return False  # P(A) and P(B) are not one function with two names for its variable
        names = [arg.value for arg in label.args]
        for theirs, ours in zip(other_label.args, label.args, strict=True):
            if theirs != ours and ours.value in symbols(other):
                return False  # f(y) = 2x is a constant
            other = substitute(other, theirs.value, ours)
        free, others = symbols(value) - set(names), symbols(other) - set(names)
        if len(free) == len(others) <= 2 and not free & others and free | others <= CONSTANTS:
            for order in permutations(sorted(others)):
                renamed = other
                for constant, name in zip(order, sorted(free), strict=True):
                    renamed = substitute(renamed, constant, Node("sym", (), name))
                if self.matches(value, renamed):
                    return True
        return self.matches(value, other)

    # -- collections -------------------------------------------------------------------------------------------------

    def _collections(self, gold: Node, answer: Node) -> bool:
        if gold.op == "list":
            region, other = to_region(gold), to_region(answer)
            if region is not None and other is not None:
                return self._regions(region, other)
        golds = expand(gold)
        if answer.op == "tuple" and len(expand(answer)) == 1:
            if len(golds) == 1 and golds[0].op == "tuple":
                return self.matches(golds[0], answer)
            if any(item.op == "tuple" for item in golds) or len(golds) != len(answer.args):
                return False
            if gold.op == "set":
                return self.bare_tuples and self._in_any_order(golds, answer.args)
            ordered = self.bare_tuples or len(golds) > 2 or _distinct_labels(golds)
            return ordered and self._in_order([_value(item) for item in golds], answer.args)
        answers = expand(answer)
        if answers and all(item.op == "tuple" for item in answers):
            golds = _grouped(golds, len(answers[0].args))
        if self.bare_tuples or gold.op == "set" or answer.op == "set":
            golds, answers = tuple(dict.fromkeys(golds)), tuple(dict.fromkeys(answers))
        if len(golds) != len(answers) or len(golds) > MAX_MEMBERS:
            return False
        calls = _only_call(golds), _only_call(answers)
        if all(calls) and calls[0] != calls[1]:
            return False
        names = _only_name(golds), _only_name(answers)
        if all(names):
            if names[0] != names[1]:
                return False
            if not (_distinct_labels(golds) and _distinct_labels(answers)):
                return self._in_any_order(tuple(map(_value, golds)), tuple(map(_value, answers)))
        if _distinct_labels(golds) or _distinct_labels(answers):
            return self._by_labels(golds, answers)
        if any(item.op == "label" for item in (*golds, *answers)):
            golds, answers = tuple(map(_value, golds)), tuple(map(_value, answers))
        return self._in_any_order(golds, answers)

    def _by_labels(self, golds: Sequence[Node], answers: Sequence[Node]) -> bool:
        """Labels that differ within one side name their values; without them the order does."""
        if len(golds) != len(answers):
            return False
        names, theirs = (sorted(item.value for item in items if item.op == "label") for items in (golds, answers))
        if len(names) == len(theirs) == len(golds):
            return names == theirs and self._in_any_order(golds, answers)
        return self._in_order([_value(item) for item in golds], [_value(item) for item in answers])

    def _in_order(self, golds: Sequence[Node], answers: Sequence[Node]) -> bool:
        return len(golds) == len(answers) and all(map(self.matches, golds, answers))

    def _in_any_order(self, golds: Sequence[Node], answers: Sequence[Node]) -> bool:
        left = list(answers)
        for item in golds:
            same_kind = (other for other in left if (other.op == "set") == (item.op == "set"))
            partner = next((other for other in same_kind if self.matches(item, other)), None)
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
        elif answer.op == "set" and self.bare_tuples:
            return len(members) == len(gold.args) and self._in_any_order(gold.args, members)
        else:
            return False
        return self._in_order(gold.args, members)

    def _matrices(self, gold: Node, answer: Node) -> bool:
        if answer.op == "tuple" and answer.args and all(row.op == "tuple" for row in answer.args):  # [[1,2],[3,4]]
            cells = [cell for row in answer.args for cell in row.args]
            sizes = (len(answer.args), len(answer.args[0].args))
            return gold.value == sizes and self._in_order(gold.args, cells)
        if answer.op == "tuple":
            return gold.value[1] == 1 and self._in_order(gold.args, answer.args)
        return answer.op == "matrix" and gold.value == answer.value and self._in_order(gold.args, answer.args)

    # -- relations and regions -----------------------------------------------------------------------------------------

    def _regions(self, gold: Region, answer: Region) -> bool:
        if gold.variable and answer.variable and gold.variable != answer.variable:
            return False
        gold, answer = joined(gold), joined(answer)
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
        if set(gold.value) == set(answer.value) == {"="} and len(gold.args) > 2:
            return set(gold.args) == set(answer.args)  # a = b = c, in any order
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


def _head(label: Node) -> str:
    """u of u and of u(x, y), or ""."""
    return label.value if label.op == "sym" or _is_function(label) else ""


def _is_function(label: Node) -> bool:
    return label.op == "fn" and label.value != "abs"


def _only_call(items: Sequence[Node]) -> str:
    """f of ``f(x) = x, f(x) = 2x``, or ""."""
    names = {item.args[1].value for item in items if item.op == "label" and item.args[1].op == "fn"}
    return names.pop() if len(names) == 1 else ""


def _only_name(items: Sequence[Node]) -> str:
    """x of ``x = 1, x = 2`` and of ``x_1 = 1, x_2 = 2``, or ""."""
    names = {item.args[1].value for item in items if item.op == "label" and item.args[1].op == "sym"}
    heads = names if len(names) == 1 else {name.partition("_")[0] for name in names}
    return heads.pop() if len(heads) == 1 else ""


def _spread(node: Node) -> tuple[Node, ...]:
    """``(p, q) = (3, 2)`` as p = 3, q = 2."""
    values, labels = node.args
    return tuple(
        Node("label", (value, label), label.value) for value, label in zip(values.args, labels.args, strict=False)
    )


def _grouped(items: tuple[Node, ...], size: int) -> tuple[Node, ...]:
    """``a=1, b=2, a=3, b=4`` as the points (1,2), (3,4), where the labels repeat with this period."""
    names = [item.value for item in items if item.op == "label"]
    if size < 2 or len(names) != len(items) or len(set(names)) != size or names != names[:size] * (len(names) // size):
        return items
    values = [item.args[0] for item in items]
    return tuple(Node("tuple", tuple(values[at : at + size]), "()") for at in range(0, len(values), size))


def _distinct_labels(items: Sequence[Node]) -> bool:
    names = [item.value for item in items if item.op == "label"]
    return len(names) == len(items) > 1 and len(set(names)) == len(names)


def _sides(members: Sequence[Node]) -> Node:
    return add(members[0], neg(members[1]))


def _proportional(gold: Sequence[Node], answer: Sequence[Node], positive: bool) -> bool:
    """Whether left minus right of both differ by one constant factor, so that they vanish together."""
    if any(member.op not in SCALARS for member in (*gold, *answer)):
        return False
    sign = proportional(_sides(gold), _sides(answer))
    return sign > 0 if positive else sign != 0


def _solves(gold: Node, answer: Node, names: Sequence[str]) -> bool:
    """Whether an equation says "name = answer" for one of the names that it is linear in: ``6/x`` for ``xy = 6``."""
    if any(member.op not in SCALARS for member in gold.args):
        return False
    difference = _sides(gold.args)
    return any(_linear_in(difference, name) and _vanishes(substitute(difference, name, answer)) for name in names)


def _linear_in(node: Node, name: str) -> bool:
    points = [substitute(node, name, num(k)) for k in (-1, 0, 1, 2)]
    bends = [add(a, Node("mul", (num(-2), b)), c) for a, b, c in zip(points, points[1:], points[2:], strict=False)]
    slope = add(points[1], neg(points[0]))
    return all(map(_vanishes, bends)) and not _vanishes(slope)


def _vanishes(node: Node) -> bool:
    try:
        return equal(node, num(0))
    except Unreadable:
        return False
