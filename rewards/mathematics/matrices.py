"""Arithmetic of matrices that are written out: sums, multiples, products, transposes, determinants."""

from __future__ import annotations

from itertools import pairwise, permutations

from rewards.mathematics.nodes import MINUS_ONE, Node, add, mul, neg, num

MAX_DETERMINANT = 4
"""The largest matrix whose determinant is written out (24 products)."""


def matrix_arithmetic(node: Node) -> Node:
    """The matrix or number that an expression of matrices stands for; everything else as it is."""
    if node.op == "pow" and node.args[0].op == "tuple" and node.args[1] == Node("sym", (), "T"):
        return Node("matrix", node.args[0].args, (len(node.args[0].args), 1))
    if (vector := _of_basis(node)) is not None:
        return vector
    if not _holds_matrix(node):
        return node
    args = tuple(matrix_arithmetic(arg) for arg in node.args)
    matrices = [arg for arg in args if arg.op == "matrix"]
    match node.op:
        case "add" if len(matrices) == len(args) and len({matrix.value for matrix in matrices}) == 1:
            sums = (add(*cells) for cells in zip(*(matrix.args for matrix in matrices), strict=True))
            return Node("matrix", tuple(sums), matrices[0].value)
        case "mul":
            return _multiplied(args)
        case "pow" if matrices == [args[0]] and args[1] == Node("sym", (), "T"):
            rows, columns = args[0].value
            cells = [args[0].args[row * columns + column] for column in range(columns) for row in range(rows)]
            return Node("matrix", tuple(cells), (columns, rows))
        case "fn" if node.value == "det" and len(args) == 1 and matrices:
            return _determinant(args[0])
    return Node(node.op, args, node.value)


BASIS = tuple(Node("sym", (), f"\\basis{name}") for name in "ijk")


def _of_basis(node: Node) -> Node | None:
    """``i + 2j`` of unit vectors as the point (1, 2), with k as (1, 2, 0); None for anything else."""
    found: dict[Node, Node] = {}
    waiting = [(node, 1)]
    while waiting:
        term, sign = waiting.pop()
        factors = term.args if term.op == "mul" else (term,)
        if term.op == "add":
            waiting += [(arg, sign) for arg in term.args]
            continue
        if term.op == "mul" and len(factors) == 2 and factors[0] == MINUS_ONE and factors[1].op in ("add", "mul"):
            waiting.append((factors[1], -sign))
            continue
        units = [factor for factor in factors if factor in BASIS]
        if len(units) != 1 or units[0] in found:
            return None
        rest = tuple(factor for factor in factors if factor not in BASIS)
        found[units[0]] = neg(mul(*rest)) if sign < 0 and rest else mul(*rest) if rest else num(sign)
    size = 3 if BASIS[2] in found else 2
    return Node("tuple", tuple(found.get(unit, num(0)) for unit in BASIS[:size]), "()")


def _holds_matrix(node: Node) -> bool:
    return node.op == "matrix" or any(_holds_matrix(arg) for arg in node.args)


def _multiplied(args: tuple[Node, ...]) -> Node:
    matrices = [arg for arg in args if arg.op == "matrix"]
    factors = tuple(arg for arg in args if arg.op != "matrix")
    if any(left.value[1] != right.value[0] for left, right in pairwise(matrices)):
        return Node("mul", args)
    result = matrices[0]
    for matrix in matrices[1:]:
        result = _product(result, matrix)
    if not factors:
        return result
    return Node("matrix", tuple(Node("mul", (*factors, cell)) for cell in result.args), result.value)


def _product(left: Node, right: Node) -> Node:
    rows, inner = left.value
    columns = right.value[1]
    cells = [
        add(*(mul(left.args[row * inner + k], right.args[k * columns + column]) for k in range(inner)))
        for row in range(rows)
        for column in range(columns)
    ]
    return Node("matrix", tuple(cells), (rows, columns))


def _determinant(matrix: Node) -> Node:
    rows, columns = matrix.value
    if rows != columns or rows > MAX_DETERMINANT:
        return Node("fn", (matrix,), "det")
    terms = []
    for order in permutations(range(rows)):
        product = mul(*(matrix.args[row * columns + column] for row, column in enumerate(order)))
        swaps = sum(order[i] > order[j] for i in range(rows) for j in range(i + 1, rows))
        terms.append(neg(product) if swaps % 2 else product)
    return add(*terms)
