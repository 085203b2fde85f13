"""What tests that are code ask of a candidate: names that they leave to it, and asserts that it alone would decide."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

SOLUTION = "solution"
"""The module by which tests may import from the candidate."""


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that must succeed: not those in a `try`."""
    if isinstance(tree, ast.Try):
        return
    if isinstance(tree, ast.Import | ast.ImportFrom):
        yield tree
    for child in ast.iter_child_nodes(tree):
        yield from imports(child)


def imported_from_solution(tree: ast.AST) -> set[str]:
    """The names that tests import from the candidate's module."""
    return {
        alias.name
        for node in imports(tree)
        if isinstance(node, ast.ImportFrom) and node.module == SOLUTION
        for alias in node.names
    }


def bound_names(tree: ast.AST) -> set[str]:
    """Every name that a piece of code binds somewhere."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found


def left_to_candidate(tree: ast.AST, known: set[str]) -> set[str]:
    """The names that tests use and leave to the candidate. known: names that are defined outside `tree`."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return used - bound_names(tree) - known - set(dir(builtins)) | imported_from_solution(tree)


def decided_by_candidate(tree: ast.Module, known: set[str], asked: set[str]) -> set[ast.Assert]:
    """The asserts whose truth is what a helper of the candidate's says of the candidate's own result.

    `assert is_close(add(2, 3), 5)`, where the tests define no `is_close`: every use of the name takes a result of the
    candidate's. Classes (names that begin with a capital) make no results.

    Args: known: names that are defined outside `tree`; asked: names that the candidate is asked for.
    """
    own = bound_names(tree) | known | set(dir(builtins))
    check = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"), None)
    asked = asked | imported_from_solution(tree) | ({check.args.args[0].arg} if check and check.args.args else set())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    theirs = {_name(call) for call in calls if not _name(call)[:1].isupper()} - own | asked
    results = _results(tree, theirs)
    uses: dict[str, list[bool]] = {}
    for call in calls:
        if _name(call) in theirs - asked:
            arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
            uses.setdefault(_name(call), []).append(any(_is_result(part, theirs, results) for part in arguments))
    helpers = {name for name, takes in uses.items() if all(takes)}
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return {node for node in asserts if helpers and _is_verdict(node.test, helpers)}


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _results(tree: ast.AST, theirs: set[str]) -> set[str]:
    """The variables that hold what the candidate returned."""
    found: set[str] = set()
    pairs = [
        (node.target if isinstance(node, ast.NamedExpr | ast.AnnAssign | ast.For) else node.targets, _value(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.NamedExpr | ast.AnnAssign | ast.For)
    ]
    while True:
        more = {
            part.id
            for targets, value in pairs
            if value is not None and _is_result(value, theirs, found)
            for target in (targets if isinstance(targets, list) else [targets])
            for part in ast.walk(target)
            if isinstance(part, ast.Name)
        }
        if more <= found:
            return found
        found |= more


def _value(node: ast.Assign | ast.NamedExpr | ast.AnnAssign | ast.For) -> ast.expr | None:
    return node.iter if isinstance(node, ast.For) else node.value


def _is_result(expression: ast.AST, theirs: set[str], results: set[str]) -> bool:
    return any(
        (isinstance(node, ast.Call) and _name(node) in theirs) or (isinstance(node, ast.Name) and node.id in results)
        for node in ast.walk(expression)
    )


def _is_verdict(test: ast.expr, helpers: set[str]) -> bool:
    """Whether an asserted expression is what a helper says: bare, negated, or compared with a truth value or bound."""
    if isinstance(test, ast.UnaryOp):
        return _is_verdict(test.operand, helpers)
    if isinstance(test, ast.BoolOp):
        return all(_is_verdict(value, helpers) for value in test.values)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        sides = [test.left, test.comparators[0]]
        is_bound = isinstance(test.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE | ast.NotEq)
        is_truth = any(isinstance(side, ast.Constant) and isinstance(side.value, bool) for side in sides)
        return (is_bound or is_truth) and any(_is_verdict(side, helpers) for side in sides)
    return isinstance(test, ast.Call) and _name(test) in helpers
