"""The reference of a programming problem, read and checked; and the program in a completion.

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
import textwrap
from dataclasses import dataclass, field
from typing import Any

from rewards.sandbox import referee
from rewards.verdict import BadReference

KEYS = ("tests", "entry_point", "prompt", "checker", "language")
LANGUAGES = {"python": ("python", "py", "python3"), "c": ("c",), "cpp": ("cpp", "c++", "cc", "cxx")}
_NAME = re.compile(r"[A-Za-z_]\w*(\(\))?(\.[A-Za-z_]\w*)*\Z", re.ASCII)
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`~]*\Z")
_CODE_LINE = re.compile(
    r"(?m)^\s*(def |class |import |from \w+ import|for .*:$|while .*:$|print\(|#include|int main|\w+ = )"
)


@dataclass(frozen=True, slots=True)
class AssertTests:
    """Tests that are code."""

    source: str
    asserts: int
    call_check: bool
    entry_point: str | None
    prompt: str


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
    return AssertTests(source, asserts, defines_check and not calls_check, entry_point, prompt)


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


# -- the program in a completion -------------------------------------------------------------------------------------


def extract_code(completion: str, language: str, how: str) -> str | None:
    """The program in a completion, or None.

    Only what follows the last ``</think>`` counts (thinking that never ends holds no answer). ``fenced``: the last
    block marked with the language, else the last unmarked one; a block that is never closed runs to the end.
    ``whole``: all of the text. ``auto``: fenced, and where there is no fence at all, the whole text.
    """
    before, end, text = completion.rpartition("</think>")
    if not end and "<think>" in text:
        return None
    del before
    if how == "whole":
        return text if text.strip() else None
    marked, unmarked, any_fence = _blocks(text, LANGUAGES[language])
    code = marked if marked is not None else unmarked
    if code is None and not any_fence and how == "auto":
        code = text
    return code if code is not None and code.strip() else None


def _blocks(text: str, names: tuple[str, ...]) -> tuple[str | None, str | None, bool]:
    """The last block with one of these names, the last without a name, and whether there is any block."""
    marked = unmarked = None
    found, fence, name, lines = False, "", "", []  # type: bool, str, str, list[str]

    for line in [*text.split("\n"), None]:
        match = _FENCE.match(line) if line is not None else None
        closes = fence and (line is None or (match and match[1].startswith(fence) and not match[2]))
        if closes:
            if name in names:
                marked = "\n".join(lines)
            elif not name:
                unmarked = "\n".join(lines)
            fence = ""
        elif fence and line is not None:
            lines.append(line)
        elif match:
            found, fence, name, lines = True, match[1], match[2].lower(), []
    return marked, unmarked, found


def looks_like_code(text: str) -> bool:
    """True where a line of the text begins as code does: to tell a broken program from prose."""
    return _CODE_LINE.search(text) is not None


def with_prompt(code: str, tests: AssertTests) -> str:
    """The whole program: the prompt, then a completion that defines the function anew or goes on with its body."""
    if not tests.prompt:
        return code
    name = re.escape((tests.entry_point or "").replace("()", "").split(".")[0])
    if tests.entry_point is None or re.search(rf"(?m)^(async\s+def|def|class)\s+{name}\b|^{name}\s*=", code):
        return f"{tests.prompt}\n\n{code}"
    body = code.lstrip("\n")
    if body and not body[0].isspace():
        body = textwrap.indent(body, "    ")
    return f"{tests.prompt.rstrip()}\n{body}"
