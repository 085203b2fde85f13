"""What a parsed answer asserts: labels split from values, chains of equations checked, plus-minus spelled out."""

from __future__ import annotations

from itertools import product as cartesian

from rewards.mathematics.evaluate import equal, exact, sample, symbols
from rewards.mathematics.nodes import Node, Unreadable, neg

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
        case "add" | "mul":
            return _matrix_arithmetic(node)
    return node


def _matrix_arithmetic(node: Node) -> Node:
    """Sums of matrices of one shape and multiples of a matrix, done cell by cell; everything else as it is."""
    args = tuple(_matrix_arithmetic(arg) for arg in node.args)
    matrices = [arg for arg in args if arg.op == "matrix"]
    if not matrices:
        return node
    shape = matrices[0].value
    if node.op == "add" and len(matrices) == len(args) and all(matrix.value == shape for matrix in matrices):
        return Node(
            "matrix", tuple(Node("add", cells) for cells in zip(*(m.args for m in matrices), strict=True)), shape
        )
    if node.op == "mul" and len(matrices) == 1:
        factors = tuple(arg for arg in args if arg.op != "matrix")
        return Node("matrix", tuple(Node("mul", (*factors, cell)) for cell in matrices[0].args), shape)
    return node


def _relation(node: Node) -> Node:
    members, operators = list(node.args), list(node.value)
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
    first, rest = members[0], members[1:]
    if _is_label(first) and (first.op == "fn" or not any(symbols(first) & symbols(member) for member in rest)):
        if not _all_equal(rest):
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


def _is_label(node: Node) -> bool:
    match node.op:
        case "sym":
            return True
        case "tuple" | "ratio":
            return all(_is_label(arg) for arg in node.args)
        case "mul":  # AB, the length of a segment; xy stays a product
            return all(arg.op == "sym" and arg.value[:1].isupper() for arg in node.args)
        case "fn":
            return len(node.value) == 1 and len(node.args) == 1 and node.args[0].op == "sym"
    return False


def _all_equal(members: list[Node]) -> bool:
    try:
        return all(member == members[-1] or equal(member, members[-1]) for member in members[:-1])
    except Unreadable:
        return False


def _close(left: Node, right: Node) -> bool:
    try:
        a, b = exact(left), exact(right)
        if a is None or b is None:
            a, b = sample(left, 0), sample(right, 0)
        return a is not None and b is not None and bool(abs(a - b) <= APPROXIMATION * abs(a))
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
        return tuple(variant for arg in node.args for variant in expand(arg))
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
