"""Tests written as asserts, run apart from the candidate: the referee's side.

The test code (trusted, but kept in a sandbox like everything else) runs unchanged in a process that holds no line of
the candidate's. The names it does not define stand for the candidate's and are reached over a channel; what comes
back is data of exact built-in types, so every comparison is Python's own between values that cannot lie, and the
candidate sees arguments only. Each assert statement becomes a counted check. The run counts as passed when the test
code came to its end, at least one check ran, and none failed.

Where a test looks into an object that is no data (a method of a returned instance, its length, an item), the
candidate's code answers the question itself: such a run is marked weak. An object that is no data equals no data, may
not be said to differ from any (but from None), orders with nothing, is neither true nor false, and contains nothing but
what its iteration yields. Two of them are compared by the candidate itself. A StopIteration of the candidate's is a
RuntimeError here, as in a generator: it must not end an iteration of the tests'.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import operator
import os
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from . import codec, frames, instances, pytest_part, test_names

CHECK = "__rewards_check__"
FAILED = "__rewards_failed__"
DIFFERS = "__rewards_differs__"
_TEXT_KEPT = 500
TEST_MODULES = (
    "math cmath random itertools functools collections string re copy operator heapq bisect statistics datetime "
    "decimal fractions json typing numbers time sys os io array struct hashlib"
)
"""Modules of the standard library that tests need not import."""


class Stop(BaseException):
    """The judgement is made; no `except Exception` of the tests may hold it up."""


class CandidateGone(Stop):
    """The candidate's process ended, or left its protocol."""


def count_asserts(tree: ast.AST) -> int:
    """The number of assert statements in a piece of code."""
    return sum(isinstance(node, ast.Assert) for node in ast.walk(tree))


def calls_check(tree: ast.Module) -> bool:
    """True where the module itself calls its function `check`."""
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check"
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
    )


_NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Eq: ast.NotEq, ast.In: ast.NotIn, ast.Is: ast.IsNot}
_DIFFERENCES: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.NotEq: operator.ne,
    ast.NotIn: lambda left, right: left not in right,
    ast.IsNot: operator.is_not,
}


class _Counted(ast.NodeTransformer):
    """`assert x` -> `CHECK(index, x)`; with `continue_on_failure` an exception fails the one check and no more.

    `a != b`, `not a == b` and their kin -> `DIFFERS(operator, a, b)`.
    """

    def __init__(self, continue_on_failure: bool, no_evidence: set[ast.Assert]) -> None:
        self._guard, self._no_evidence = continue_on_failure, no_evidence
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        index = ast.Constant(self.count)
        self.count += 1
        counts = ast.Constant(node not in self._no_evidence)
        self.generic_visit(node)
        call: ast.stmt = ast.Expr(ast.Call(ast.Name(CHECK, ast.Load()), [index, node.test, counts], []))
        if self._guard:
            failed = ast.Expr(ast.Call(ast.Name(FAILED, ast.Load()), [index], []))
            handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [failed])
            call = ast.Try([call], [handler], [], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) > 1 or type(node.ops[0]) not in _DIFFERENCES:
            return node
        arguments = [ast.Constant(type(node.ops[0]).__name__), node.left, node.comparators[0]]
        call = ast.Call(ast.Name(DIFFERS, ast.Load()), arguments, [])
        return ast.fix_missing_locations(ast.copy_location(call, node))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        inner = node.operand
        if isinstance(node.op, ast.Not) and isinstance(inner, ast.Compare) and len(inner.ops) == 1:
            negated = _NEGATED.get(type(inner.ops[0]))
            if negated is not None:
                return self.visit_Compare(ast.Compare(inner.left, [negated()], inner.comparators, **_place_of(node)))
        return self.generic_visit(node)


def _place_of(node: ast.expr) -> dict[str, Any]:
    return {name: getattr(node, name) for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")}


def differs(operation: str, left: Any, right: Any) -> Any:
    """A comparison that holds where two values differ. Whether an object that is no data differs from data is not
    known, unless they are None: raises `TypeError`."""
    result = _DIFFERENCES[getattr(ast, operation)](left, right)
    both_handles = isinstance(left, Handle) and isinstance(right, Handle)
    found_by_iteration = operation == "NotIn" and isinstance(right, Handle) and not _holds_handle(left)
    if left is None or right is None or both_handles or found_by_iteration:
        return result
    if _holds_handle(left) or _holds_handle(right):
        raise TypeError("whether an object of the candidate's differs from a value is not known")
    return result


def _holds_handle(value: Any, depth: int = 0) -> bool:
    """Whether a value is an object of the candidate's, or a container with one in it."""
    if isinstance(value, Handle):
        return True
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    return (
        depth < codec.MAX_DEPTH
        and isinstance(value, list | tuple | set | frozenset | deque)
        and any(_holds_handle(item, depth + 1) for item in value)
    )


def run(payload: dict[str, Any], scratch: str, payload_descriptor: int) -> dict[str, Any]:
    """Judge the candidate at the other end of the channel; returns the referee's findings."""
    os.close(payload_descriptor)
    tree = ast.parse(payload["tests"])
    known, asked = set(TEST_MODULES.split()), set()
    if payload["prompt"]:
        known |= test_names.bound_names(ast.parse(payload["prompt"]))
    if payload["entry_point"] is not None:
        asked = {payload["entry_point"].replace("()", "").split(".")[0]}
    no_evidence = test_names.decided_by_candidate(tree, known, asked)
    functions = test_functions(tree)
    counted = _Counted(payload["continue_on_failure"], no_evidence)
    code = compile(counted.visit(tree), "<tests>", "exec")
    judge = Judge(counted.count, len(no_evidence), payload["continue_on_failure"])
    scope = Scope()
    link = scope.link = Link(payload["link"], scope)
    scope.update({"__name__": "__main__", "__builtins__": builtins})
    scope.update({CHECK: judge.check, FAILED: judge.failed_by_error, DIFFERS: differs})
    solution = types.ModuleType(test_names.SOLUTION)
    solution.__dict__["__getattr__"] = link.member
    sys.modules.update(__main__=types.ModuleType("__main__"), solution=solution, pytest=pytest_part.module())
    random.seed(0)
    findings: dict[str, Any] = {"kind": "findings", "completed": False, "error": None}
    try:
        link.wait_loaded()
        if payload["prompt"]:
            exec(compile(payload["prompt"], "<prompt>", "exec"), scope)
        entry = payload["entry_point"]
        if entry is not None:
            scope[entry.replace("()", "").split(".")[0]] = target = link.name(entry)
        exec(code, scope)
        if entry is not None and payload["call_check"]:
            scope["check"](target)
        for test in pytest_part.collect(scope, functions):
            judge.run(test)
        findings["completed"] = link.fault is None  # else the tests caught what must not be caught
        findings["error"] = link.fault or judge.raised
    except Stop as stop:
        findings["error"] = link.fault or (stop.args[0] if stop.args else None)
    except BaseException as error:
        findings["error"] = link.fault or link.fault_of(error) or fault_of_tests(error)
    return findings | judge.findings() | {"weak": sorted(link.weak), "reached": link.reached}


def test_functions(tree: ast.Module) -> list[str]:
    """The functions `test...` and classes `Test...` that nothing in the tests calls: they are left to a runner."""
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.name.startswith("test" if isinstance(node, ast.FunctionDef) else "Test")
        and node.name not in called
    ]


def fault_of_tests(error: BaseException) -> dict[str, Any]:
    """What is said of an exception that the tests raised themselves. An import that fails is no answer's fault."""
    return {
        "kind": "tests_broken" if isinstance(error, ImportError) else "test_raised",
        "types": [cls.__name__ for cls in type(error).__mro__],
        "message": str(error)[:_TEXT_KEPT],
    }


class Judge:
    """Counts the checks.

    Args: total, of which without_evidence say nothing when they pass; continue_on_failure: count on after a failure.
    """

    def __init__(self, total: int, without_evidence: int, continue_on_failure: bool) -> None:
        self._total, self._continue = total, continue_on_failure
        self._without_evidence = without_evidence
        self._passed: set[int] = set()
        self._failed: set[int] = set()
        self.raised: dict[str, Any] | None = None
        """The first exception that ended a test function while others were still to run."""

    def check(self, index: int, value: Any, counts: bool) -> None:
        """One assert, evaluated."""
        if not value:
            self._fail(index)
        elif counts:
            self._passed.add(index)

    def failed_by_error(self, index: int) -> None:
        """One assert whose expression raised."""
        self._fail(index)

    def run(self, test: Callable[[], None]) -> None:
        """One test function; its exception is the last word unless the others count too."""
        try:
            test()
        except Exception as error:  # foreign code: the data's tests may raise anything
            if not self._continue or isinstance(error, ImportError):
                raise
            self._failed.add(-1)
            self.raised = self.raised or fault_of_tests(error)

    def _fail(self, index: int) -> None:
        self._failed.add(index)
        if not self._continue:
            raise Stop({"kind": "failed", "message": f"assert number {index + 1} of {self._total} does not hold"})

    def findings(self) -> dict[str, Any]:
        total = max(self._total - self._without_evidence, 1)
        return {
            "passed": len(self._passed - self._failed),
            "failed": sorted(self._failed),
            "total": total,
            "decided_by_candidate": self._without_evidence > 0,
        }


class Scope(dict[str, Any]):
    """The tests' global names; one that is missing is a module of the standard library or the candidate's."""

    link: Link

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)  # the interpreter goes on to the built-in names
        value = importlib.import_module(name) if name in TEST_MODULES.split() else self.link.name(name)
        self[name] = value
        return value


class Link:
    """The channel to the candidate."""

    def __init__(self, descriptor: int, scope: dict[str, Any]) -> None:
        self._descriptor, self._scope = descriptor, scope
        self._functions: list[Callable[..., Any]] = []
        self.weak: set[str] = set()
        self.reached = False
        """True once the tests called something of the candidate's, looked into it, or read data of its."""
        self.fault: dict[str, Any] | None = None
        self._raised: list[tuple[BaseException, dict[str, Any]]] = []

    def wait_loaded(self) -> None:
        """Wait until the candidate's module is defined."""
        self._receive("loaded")

    def name(self, name: str) -> Any:
        """What the candidate calls `name`: data, or a `Remote`."""
        value = self._ask({"do": "name", "name": name})
        self.reached = self.reached or not isinstance(value, Handle)
        return value

    def member(self, name: str) -> Any:
        """`name` of the candidate's module, as the tests import it."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self.name(name)

    def fault_of(self, error: BaseException) -> dict[str, Any] | None:
        """The candidate's own description of an exception, if it was the candidate's."""
        return next((fault for raised, fault in self._raised if raised is error), None)

    def call(self, number: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call the candidate's object; its changes to mutable arguments are copied back."""
        self.reached = True
        answer = self._request(
            {
                "do": "call",
                "object": number,
                "args": [self._encode(argument) for argument in arguments],
                "kwargs": {name: self._encode(value) for name, value in keywords.items()},
                "classes": [name for name, value in self._scope.items() if self._is_shared_class(value)],
            }
        )
        for index, form in answer.get("changed", {}).items():
            _copy_back(arguments[int(index)], self._decode(form))
        return self._decode(answer["value"])

    def about(self, number: int, do: str, **more: Any) -> Any:
        """Ask about an attribute, an item, the length, the iteration of an object, or whether it equals another."""
        self.reached = True
        if do in ("attr", "item", "len", "equals"):
            self.weak.add(f"{do} of an object of the candidate's")
        encoded = {"key": self._encode(more["key"])} if "key" in more else more
        return self._ask({"do": do, "object": number, **encoded})

    def _ask(self, request: dict[str, Any]) -> Any:
        return self._decode(self._request(request)["value"])

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            frames.send(self._descriptor, request)
        except frames.Closed as error:
            self._lose(str(error))
        return self._receive("value", may_end=request["do"] == "next")

    def _receive(self, wanted: str, may_end: bool = False) -> dict[str, Any]:
        while True:
            try:
                answer: dict[str, Any] = frames.receive(self._descriptor)
                kind = answer["kind"]
                if kind == "callback":
                    frames.send(self._descriptor, self._answer_callback(answer))
                    continue
            except (frames.Closed, codec.Undecodable, LookupError, TypeError) as error:
                self._lose(f"{type(error).__name__}: {error}")
            if kind == wanted and (wanted == "loaded" or "value" in answer):
                return answer
            if kind == "end" and may_end:
                raise StopIteration
            if kind == "raised":
                self._raise(answer)
            if kind == "exit":
                self.fault = {"kind": "exit", "message": f"the candidate left by {str(answer.get('types'))[:80]}"}
                raise CandidateGone
            if kind == "compile_error":
                self.fault = {"kind": kind, "message": str(answer.get("message"))[:_TEXT_KEPT]}
                raise CandidateGone
            self._lose(f"an answer of kind {str(kind)[:40]!r}")

    def _raise(self, answer: dict[str, Any]) -> NoReturn:
        """Raise the nearest built-in exception, as the tests may expect it."""
        names = [str(name)[:80] for name in answer.get("types", [])]
        kinds = (getattr(builtins, name, None) for name in names)
        cls = next((k for k in kinds if isinstance(k, type) and issubclass(k, Exception)), Exception)
        if issubclass(cls, StopIteration | StopAsyncIteration):
            cls = RuntimeError
        message = str(answer.get("message"))[:_TEXT_KEPT]
        try:
            error: Exception = cls(message)
        except TypeError:  # UnicodeDecodeError and its like want other arguments
            error = Exception(message)
        self._raised.append((error, {"kind": "raised", "types": names, "message": message}))
        raise error

    def _lose(self, reason: str) -> NoReturn:
        self.fault = {"kind": "gone", "message": reason[:_TEXT_KEPT]}
        raise CandidateGone from None

    def _answer_callback(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            function = self._functions[request["function"]]
            value = function(*[self._decode(form) for form in request["args"]])
            return {"kind": "value", "value": self._encode(value)}
        except Exception as error:  # the tests' own function: what it raises, its caller gets
            return {"kind": "raised", "message": f"{type(error).__name__}: {error}"[:_TEXT_KEPT]}

    def _encode(self, value: Any) -> Any:
        return codec.encode(value, self._foreign)

    def _foreign(self, value: Any) -> Any:
        if isinstance(value, Handle):
            return {"object": [object.__getattribute__(value, "_number"), "object"]}
        if isinstance(value, Iterator):
            return codec.encode(list(value), self._foreign)
        if callable(value):
            self._functions.append(value)
            return {"function": len(self._functions) - 1}
        if self._is_shared_class(type(value)) or type(value) is object:
            return instances.encode(value, lambda other: self._is_shared_class(type(other)), self._foreign)
        self.fault = {"kind": "tests_broken", "message": f"a test passes {type(value).__name__}, which is no data"}
        raise Stop

    def _is_shared_class(self, value: Any) -> bool:
        """A class of the tests', whose instances travel as data; an enumeration is none, it has a class of its own."""
        return isinstance(value, type) and value.__module__ == "__main__" and type(value) is type

    def _class_of(self, name: str) -> type:
        cls = self._scope.get(name)
        if not isinstance(cls, type) or not self._is_shared_class(cls):
            raise codec.Undecodable(f"the tests have no class {name[:40]!r}")
        return cls

    def _decode(self, form: Any) -> Any:
        try:
            return codec.decode(form, self._tagged)
        except codec.Undecodable as error:
            self._lose(str(error))

    def _tagged(self, tag: str, body: Any) -> Any:
        if tag == "object" and isinstance(body, list) and len(body) == 2 and isinstance(body[0], int):
            return RemoteIterator(self, body[0]) if body[1] == "iterator" else Remote(self, body[0])
        if tag == "instances":
            return instances.decode(body, self._class_of, self._tagged)
        raise codec.Undecodable(f"unknown tag {tag[:40]!r}")


class Handle:
    """Names something of the candidate's; equals no data."""

    def __init__(self, link: Link, number: int) -> None:
        self._link, self._number = link, number

    def __bool__(self) -> bool:
        raise TypeError("an object of the candidate's is neither true nor false")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
            return False
        return self is other or self._link.about(self._number, "equals", key=other) is True

    def __hash__(self) -> int:
        raise TypeError("an object of the candidate's cannot be hashed here")


class Remote(Handle):
    """An object that is no data: it can be called, asked and iterated over."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._link.call(self._number, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        return self._link.about(self._number, "attr", name=name)

    def __getitem__(self, key: Any) -> Any:
        return self._link.about(self._number, "item", key=key)

    def __len__(self) -> int:
        length = self._link.about(self._number, "len")
        if type(length) is not int:
            raise TypeError("the length of the candidate's object is no integer")
        return length

    def __iter__(self) -> Iterator[Any]:
        iterator = self._link.about(self._number, "iter")
        if not isinstance(iterator, RemoteIterator):
            raise TypeError("the candidate's object cannot be iterated over")
        return iterator


class RemoteIterator(Handle):
    """A generator or iterator of the candidate's."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._link.about(self._number, "next")


def _copy_back(argument: Any, value: Any) -> None:
    """Give a mutable argument the content that the candidate left in it."""
    if type(argument) is not type(value):
        return
    if isinstance(argument, list | bytearray):
        argument[:] = value
    elif isinstance(argument, dict | set):
        argument.clear()
        argument.update(value)
    elif isinstance(argument, deque):
        argument.clear()
        argument.extend(value)
    else:
        instances.take_over(argument, value)
