"""What a parsed answer asserts: labels split from values, chains of equations checked, plus-minus spelled out."""

from __future__ import annotations

from fractions import Fraction
from itertools import product as cartesian

from rewards.mathematics.evaluate import equal, number_of, sample, symbols
from rewards.mathematics.matrices import matrix_arithmetic
from rewards.mathematics.nodes import MINUS_ONE, Node, Unreadable, mul, neg, num, power

FALSE = "false"
"""The op of an answer that contradicts itself, such as ``3 = 5``; its value says how."""
MAX_VARIANTS = 16
APPROXIMATION = 0.01
"""How far, relatively, the number after an approximation sign may lie from the value before it."""


def interpret(node: Node) -> Node:
    """The answer with relations read: ``x = 2 + 3 = 5`` becomes 5 with the label x, ``3 = 5`` becomes `FALSE`."""
    match node.op:
        case "list":
            items: list[Node] = []
            for arg in node.args:
                item = interpret(arg)
                items += item.args if item.op == "list" else (item,)
            false = next((item for item in items if item.op == FALSE), None)
            return false or Node("list", tuple(items), node.value)
        case "set" | "tuple":
            return Node(node.op, tuple(interpret(arg) for arg in node.args), node.value)
        case "union" if all(arg.op == "set" for arg in node.args):
            return Node("set", tuple(dict.fromkeys(member for arg in node.args for member in arg.args)))
        case "rel":
            return _relation(node)
        case "add" | "mul" | "pow" | "fn" | "sym":
            return matrix_arithmetic(node)
    return node


def reference_meaning(node: Node) -> Node:
    """`interpret` for a reference, which is taken at its word: ``\\log(0.01) = -2`` says -2, to base 10."""
    meaning = interpret(node)
    if meaning.op == FALSE and node.op == "list":  # y = c x^2 and y = -x, each at its word
        meaning = Node("list", tuple(map(reference_meaning, node.args)), node.value)
    if meaning.op != FALSE or node.op != "rel" or set(node.value) != {"="} or len(node.args) != 2:
        return meaning
    left, right = node.args
    if right.op in ("num", "dec", "mul", "add", "pow", "fn") and (
        left.op in ("matrix", "tuple") or _in_base_ten(left, right) or _close(left, right)
    ):
        return right
    return meaning


def _in_base_ten(left: Node, right: Node) -> bool:
    if not any(arg.op == "fn" and arg.value == "ln" for arg in (left, *left.args)):
        return False
    return _all_equal([mul(left, power(Node("fn", (num(10),), "ln"), MINUS_ONE)), right])


def last_side(node: Node, as_equation: bool = False) -> Node:
    """What stands behind the last equals sign, how sloppy work ends in its answer; or the first side equated with it.

    As an equation, one with two sides stays as it is.
    """
    if node.op != "rel" or not set(node.value) <= {"=", "~"}:
        return node
    first, last = node.args[0], node.args[node.value.index("~")] if "~" in node.value else node.args[-1]
    return Node("rel", (first, last), ("=",)) if as_equation else last


def names_value(node: Node) -> bool:
    """Whether an equation's last side is its answer: ``a = b = 3``, ``ab = 5``; a sum or a power asks to be solved."""
    if node.op != "rel" or set(node.value) != {"="}:
        return False
    return len(node.args) > 2 or (node.args[0].op not in ("add", "pow") and not symbols(node.args[-1]))


def _relation(node: Node) -> Node:
    members, operators = [matrix_arithmetic(member) for member in node.args], list(node.value)
    if operators == ["~"] and _is_label(members[0]):
        operators = ["="]
    if operators == ["in"] and members[1].op == "set" and _is_label(members[0]):
        return _labels(members[0], members[1])
    if "~" in operators:
        cut = operators.index("~")
        if not _close(members[cut], members[cut + 1]):
            return Node(FALSE, (), "an approximation that is far off")
        members, operators = members[: cut + 1], operators[:cut]
        if not operators:
            return members[0]
    if set(operators) != {"="}:
        if "=" in operators:
            return Node(FALSE, (), "equality and inequality in one chain")
        if all(not symbols(member) for member in members) and "in" not in operators and members[0].op in NUMERIC:
            return Node(FALSE, (), "a statement about numbers alone")
        return Node("rel", tuple(members), tuple(operators))
    if members[-1].op == "dec" and len(members) > 1 and not symbols(members[-2]) and _rounds(members[-2], members[-1]):
        members, operators = members[:-1], operators[:-1]  # = 3464.1 behind 2000 sqrt 3
        if not operators:
            return members[0]
    first, rest = members[0], members[1:]
    if first.op == "matrix" or _is_inverse(first):
        last = matrix_arithmetic(rest[-1])
        return (
            _labels(first, last)
            if last.op == "matrix" or first.op == "matrix"
            else Node("rel", tuple(members), tuple(operators))
        )
    numbers = [member for member in members if not symbols(member)]
    if len(members) > 2 and len(numbers) < len(rest):  # a = b = c, x = y = 3
        if not _all_equal(numbers):
            return Node(FALSE, (), "its sides differ")
        if numbers == members[-1:] and not all(_is_label(member) for member in members[:-1]):
            if _is_label(first):
                return _labels(first, members[-1])  # A = pi r^2 = 49 pi
            return Node("rel", (first, members[-1]), ("=",))
        if numbers == members[-1:] and all(_is_label(member) for member in members[:-1]):
            return Node("list", tuple(_labels(member, members[-1]) for member in members[:-1]))
        if all(member.op == "sym" for member in members):
            return Node("rel", tuple(members), tuple(operators))
    if _is_label(first) and (
        (first.op == "fn" and _is_call(first)) or not any(symbols(first) & symbols(member) for member in rest)
    ):
        if not _all_equal([member for member in rest if not symbols(member)] or rest):
            return Node(FALSE, (), "its sides differ")
        return _labels(first, rest[-1])
    if all(not symbols(member) for member in members):
        return members[-1] if _all_equal(members) else Node(FALSE, (), "its sides differ")
    if len(rest) == 1 and _is_label(rest[0]) and not symbols(first) & symbols(rest[0]):
        return _labels(rest[0], first)  # 3 = x
    if len(members) > 2 and not _all_equal(members[1:]):
        return Node(FALSE, (), "its sides differ")
    return Node("rel", (members[0], members[-1]), ("=",))


NUMERIC = frozenset(("num", "dec", "const", "add", "mul", "pow", "fn", "percent"))


def _labels(left: Node, right: Node) -> Node:
    """``(p, q) = (3, 2)`` says p = 3 and q = 2."""
    return Node("label", (interpret(right), left), label_name(left))


def label_name(node: Node) -> str:
    """The text of a label, for comparing labels."""
    if node.op == "sym":
        return str(node.value)
    inner = ",".join(label_name(arg) for arg in node.args)
    return f"{node.value or ''}({inner})" if node.op in ("fn", "tuple", "ratio") else inner


def named_value(node: Node) -> Node | None:
    """The value that an equation ends in, where its left side names what was asked for: ``m + n = 7``, ``|S| = 7``.

    None for an equation in one unknown, which asks to be solved.
    """
    if node.op != "rel" or node.value != ("=",) or symbols(node.args[-1]):
        return None
    left = node.args[0]
    if left.op == "mul" and len(left.args) == 2 and left.args[0].op == "sym" and left.args[0].value in CALLED:
        return node.args[-1] if left.args[1].op == "rel" or not symbols(left.args[1]) else None  # f(2), P(X > 1)
    if left.op in ("big", "matrix") or (left.op == "fn" and (left.value not in NAMED_FUNCTIONS or _is_size(left))):
        return node.args[-1]
    names = symbols(left)
    return node.args[-1] if len(names) > 1 or (len(names) == 1 and _is_segment(left)) else None


CALLED = frozenset("fghpqFGHPQSTV")
EQUATED = "sin cos tan cot sec csc ln abs arcsin arccos arctan sqrt floor ceil factorial"
NAMED_FUNCTIONS = frozenset(EQUATED.split())


def _is_size(node: Node) -> bool:
    """|S|, the number of members of a set."""
    inner = node.args[0]
    return node.value == "abs" and inner.op == "sym" and inner.value[:1].isupper()


def _is_segment(node: Node) -> bool:
    return node.op == "mul" and all(arg.op == "sym" and arg.value.isupper() for arg in node.args)


def _is_inverse(node: Node) -> bool:
    """A^{-1} or A^T, the name of a matrix made from another."""
    return node.op == "pow" and node.args[0].op == "sym" and node.args[0].value.isupper() and node.args[1] in (
        MINUS_ONE, Node("sym", (), "T"),
    )  # fmt: skip


def _rounds(exact_value: Node, rounded: Node) -> bool:
    """Whether a decimal of one place or more is a number rounded, which it is not exactly."""
    value, digits = rounded.value
    try:
        number = number_of(exact_value)
    except Unreadable:
        return False
    return digits > 0 and number is not None and number != value and abs(number - value) <= Fraction(1, 2 * 10**digits)


def _is_call(node: Node) -> bool:
    """f(x) or f^-1(x), where the right side holds x; tan x = 5 is a label only where the right side does not."""
    return len(node.value.removesuffix("^-1").removesuffix("'")) == 1


def _is_label(node: Node) -> bool:
    match node.op:
        case "sym":
            return True
        case "tuple" | "ratio":
            return all(_is_label(arg) for arg in node.args)
        case "mul":  # AB, the length of a segment; xy stays a product; AB/BC
            parts = [arg.args[0] if arg.op == "pow" and arg.args[1] == MINUS_ONE else arg for arg in node.args]
            return all(
                part.value[:1].isupper() if part.op == "sym" else part.op == "mul" and _is_label(part) for part in parts
            )
        case "fn" if node.value == "abs":  # |AB|
            return node.args[0].op == "mul" and _is_label(node.args[0])
        case "fn":
            return all(arg.op == "sym" for arg in node.args)
    return False


def _all_equal(members: list[Node]) -> bool:
    try:
        return all(member == members[-1] or equal(member, members[-1]) for member in members[:-1])
    except Unreadable:
        return False


def _close(left: Node, right: Node) -> bool:
    try:
        if symbols(left) or symbols(right):
            numbers = sample(left, 0), sample(right, 0)
            return None not in numbers and bool(abs(numbers[0] - numbers[1]) <= APPROXIMATION * abs(numbers[0]))
        a, b = number_of(left), number_of(right)
        return a is not None and b is not None and abs(a - b) <= APPROXIMATION * abs(a)
    except Unreadable:
        return False


def expand(node: Node) -> tuple[Node, ...]:
    r"""The values that plus-minus signs stand for: linked within one expression, free between a tuple's members.

    Example: ``1 \pm \sqrt 2`` gives two values, ``(\pm 1, \pm 2)`` four points.
    """
    if node.op in ("tuple", "matrix"):
        columns = [expand(arg) for arg in node.args]
        if all(len(column) == 1 for column in columns):
            return (node,)
        variants = [Node(node.op, choice, node.value) for choice in cartesian(*columns)]
    elif node.op in ("list", "set"):
        return tuple(variant for arg in node.args for variant in ((arg,) if arg.op == "set" else expand(arg)))
    elif node.op == "label":
        return tuple(Node("label", (variant, node.args[1]), node.value) for variant in expand(node.args[0]))
    elif _has_sign(node):
        variants = [_signed(node, 1), _signed(node, -1)]
    else:
        return (node,)
    if len(variants) > MAX_VARIANTS:
        raise Unreadable(f"more than {MAX_VARIANTS} combinations of signs")
    return tuple(dict.fromkeys(variants))


def _has_sign(node: Node) -> bool:
    return node.op == "pm" or any(_has_sign(arg) for arg in node.args)


def _signed(node: Node, sign: int) -> Node:
    if node.op == "pm":
        inner = _signed(node.args[0], sign)
        return inner if node.value * sign > 0 else neg(inner)
    if not node.args:
        return node
    return Node(node.op, tuple(_signed(arg, sign) for arg in node.args), node.value)
