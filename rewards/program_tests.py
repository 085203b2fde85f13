"""The reference of a programming problem, read and checked.

A reference is ``{"tests": ...}`` with one of

- a string of Python with asserts; ``check(candidate)`` as in HumanEval works with the key ``entry_point``, the name of
  the candidate's function (``Solution().method`` too), and ``prompt``, the code that precedes the completion;
- a list of ``{"stdin": text, "stdout": text}``;
- ``{"fn": name, "cases": [{"args": [...], "kwargs": {...}, "expected": value}, ...]}``, ``kwargs`` optional.

and optionally ``checker`` (Python that defines ``check(stdin, stdout, expected)``, true or a share of the marks) and
``language``.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from rewards.program_text import LANGUAGES, Wanted
from rewards.sandbox import pytest_part, referee, test_names
from rewards.verdict import BadReference

KEYS = ("tests", "entry_point", "prompt", "checker", "language")
_NAME = re.compile(r"[A-Za-z_]\w*(\(\))?(\.[A-Za-z_]\w*)*\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class AssertTests:
    """Tests that are code."""

    source: str
    asserts: int
    call_check: bool
    entry_point: str | None
    prompt: str
    undecided: int
    """How many asserts something of the tests' own decides (`test_names.decided_by_candidate`)."""
    asked: tuple[str, ...]
    """The names that the candidate must define."""


@dataclass(frozen=True, slots=True)
class StreamTests:
    """Tests that are pairs of standard input and output."""

    cases: list[tuple[str, str]]
    checker: str | None


@dataclass(frozen=True, slots=True)
class CallTests:
    """Tests that are calls of one function."""

    function: str
    cases: list[dict[str, Any]] = field(default_factory=list)


def read_reference(reference: Any, language: str) -> tuple[AssertTests | StreamTests | CallTests, str]:
    """The tests of a reference and the language of its programs. Raises `BadReference`, naming key, value and rule."""
    if not isinstance(reference, dict) or "tests" not in reference:
        raise BadReference(f"a program's reference is an object with the key 'tests', got {reference!r:.200}")
    for key in reference:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            raise BadReference(f"unknown key {key!r} in a reference{f', did you mean {near[0]!r}?' if near else ''}")
    language = reference["language"] if reference.get("language") is not None else language
    if language not in LANGUAGES:
        raise BadReference(f"language: {language!r} is not one of {', '.join(LANGUAGES)}")
    tests, checker = reference["tests"], reference.get("checker")
    if checker is not None and not isinstance(tests, list):
        raise BadReference("checker: only tests of the form [{'stdin', 'stdout'}] take a checker")
    if language != "python" and not isinstance(tests, list):
        raise BadReference(f"language: {language!r} programs are tested by [{{'stdin', 'stdout'}}] only")
    if isinstance(tests, str):
        return _asserts(tests, reference.get("entry_point"), reference.get("prompt")), language
    if isinstance(tests, list):
        return _streams(tests, checker), language
    if isinstance(tests, dict):
        return _calls(tests), language
    raise BadReference(f"tests: {tests!r:.200} is neither a string of asserts, nor a list, nor an object")


def _parsed(what: str, source: Any) -> ast.Module:
    if not isinstance(source, str):
        raise BadReference(f"{what}: {source!r:.100} is not text")
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadReference(f"{what}: not Python: {error}") from error


def _asserts(source: str, entry_point: Any, prompt: Any) -> AssertTests:
    tree = _parsed("tests", source)
    asserts = referee.count_asserts(tree)
    if not asserts:
        raise BadReference("tests: no assert statement in it, so nothing could fail")
    if entry_point is not None and not (isinstance(entry_point, str) and _NAME.match(entry_point)):
        raise BadReference(f"entry_point: {entry_point!r:.100} is not a name")
    defines_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    calls_check = referee.calls_check(tree)
    if defines_check and not calls_check and entry_point is None:
        raise BadReference("tests define check(candidate) and never call it: give the name of the candidate's function "
                           "as entry_point, or add the call")  # fmt: skip
    prompt = "" if prompt is None else _complete_prompt(prompt)
    known = test_names.bound_names(ast.parse(prompt)) | set(referee.TEST_MODULES.split())
    asked = test_names.left_to_candidate(tree, known)
    if entry_point is not None:
        asked = {entry_point.replace("()", "").split(".")[0]}
    decided = test_names.decided_by_candidate(tree, known, asked if entry_point is not None else set())
    calls_check_later = defines_check and not calls_check
    undecided = asserts - len(decided)
    return AssertTests(source, asserts, calls_check_later, entry_point, prompt, undecided, tuple(sorted(asked)))


def check_runnable(reference: dict[str, Any], libraries: Collection[str]) -> None:
    """Raise `BadReference` where tests, prompt or checker could not run: by what they import, or use of pytest.

    Args: libraries: what can be imported besides the standard library.
    """
    for key in ("tests", "prompt", "checker"):
        source = reference.get(key)
        if not isinstance(source, str):
            continue
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a prompt may end before its function's body
            continue
        for name in _imported(tree):
            if name not in sys.stdlib_module_names and name not in libraries:
                if key == "tests" and name in (test_names.SOLUTION, "pytest"):
                    continue
                raise BadReference(f"{key}: they import {name!r}, which no program has here: list it in the verifier's "
                                   "'libraries', or leave these rows out")  # fmt: skip
        if key == "tests":
            _check_pytest(tree)


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in test_names.imports(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        else:
            yield (node.module or "").split(".")[0]


def _check_pytest(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            whole, known = ast.unparse(node.value), {"pytest": pytest_part.NAMES, "pytest.mark": pytest_part.MARKS}
            if node.attr not in known.get(whole, (node.attr,)):
                raise BadReference(f"tests: {whole}.{node.attr} is not among {', '.join(known[whole])}")


def wanted_of(tests: AssertTests | StreamTests | CallTests) -> Wanted:
    """What a program must have to be the one that is tested."""
    if isinstance(tests, CallTests):
        return Wanted((tests.function.replace("()", "").split(".")[0],))
    if isinstance(tests, AssertTests):
        return Wanted(tests.asked)
    return Wanted(input=any(stdin.strip() for stdin, _ in tests.cases))


def _complete_prompt(prompt: Any) -> str:
    """The prompt as a module: one that ends before a function's body gets an empty body."""
    if not isinstance(prompt, str):
        raise BadReference(f"prompt: {prompt!r:.100} is not text")
    try:
        ast.parse(prompt)
        return prompt
    except SyntaxError:
        completed = prompt.rstrip() + "\n    pass\n"
        _parsed("prompt", completed)
        return completed


def _streams(tests: list[Any], checker: Any) -> StreamTests:
    if not tests:
        raise BadReference("tests: an empty list, so nothing could fail")
    cases = []
    for index, case in enumerate(tests):
        if not isinstance(case, dict) or set(case) != {"stdin", "stdout"}:
            raise BadReference(f"tests[{index}]: {case!r:.100} is not an object with the keys 'stdin' and 'stdout'")
        if not all(isinstance(text, str) for text in case.values()):
            raise BadReference(f"tests[{index}]: stdin and stdout must be text")
        cases.append((case["stdin"], case["stdout"]))
    if checker is not None:
        tree = _parsed("checker", checker)
        if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
            raise BadReference("checker: it must define check(stdin, stdout, expected)")
    elif not any(expected.strip() for _, expected in cases):
        raise BadReference("tests: every expected output is empty, so a program that does nothing would pass")
    return StreamTests(cases, checker)


def _calls(tests: dict[str, Any]) -> CallTests:
    if set(tests) != {"fn", "cases"}:
        raise BadReference(f"tests: an object of tests has the keys 'fn' and 'cases', not {sorted(map(str, tests))}")
    name, cases = tests["fn"], tests["cases"]
    if not (isinstance(name, str) and _NAME.match(name)):
        raise BadReference(f"tests.fn: {name!r:.100} is not a name")
    if not isinstance(cases, list) or not cases:
        raise BadReference("tests.cases: must be a list with at least one case")
    for index, case in enumerate(cases):
        if not isinstance(case, dict) or not {"args", "expected"} <= set(case) <= {"args", "kwargs", "expected"}:
            raise BadReference(f"tests.cases[{index}]: {case!r:.100} needs the keys 'args' and 'expected'")
        if not isinstance(case["args"], list) or not isinstance(case.get("kwargs", {}), dict):
            raise BadReference(f"tests.cases[{index}]: args must be a list and kwargs an object")
    return CallTests(name, cases)
