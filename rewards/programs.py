"""ProgramVerifier: the marks of a program, by tests that it cannot see and in a sandbox that it cannot leave.

Expected outputs stay out of the candidate's process. Standard output and returned values are compared here, after
decoding into exact built-in types; asserts run in a sandbox apart and reach the candidate by calls only
(`rewards.sandbox.referee`). The judge's words, in ``detail["judge"]``:

====  =====================  ===================================================
word  outcome                meaning
====  =====================  ===================================================
AC    CORRECT                every test passed, on positive evidence
WA    WRONG (or PARTIAL)     a test ran to its end and the result is not right
RE    WRONG (or PARTIAL)     the program raised, crashed or left before its end
TLE   WRONG (or PARTIAL)     processor time or time on the clock ran out
MLE   WRONG (or PARTIAL)     memory ran out
OLE   WRONG (or PARTIAL)     too much output
CE    WRONG, or NO_ANSWER    no program: it does not compile, or there is none
IE    ERROR                  the sandbox failed: the program was not judged
====  =====================  ===================================================
"""

from __future__ import annotations

import importlib.util
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rewards.checkers import CHECKERS, outputs_agree, values_agree
from rewards.program_tests import (
    AssertTests,
    CallTests,
    StreamTests,
    check_runnable,
    read_reference,
    wanted_of,
)
from rewards.program_text import LANGUAGES, extract_code, looks_like_code, with_prompt
from rewards.sandbox import CaseResult, Job, Limits, Sandbox, SandboxError, codec
from rewards.sandbox.client import BACK_ENDS
from rewards.sandbox_fusion import PATIENCE_SECONDS, RemoteSandbox, calls_of, check_tests
from rewards.verdict import BadReference, Outcome, Verdict

_COMPILERS = {
    "c": ("main.c", [["/usr/bin/gcc", "-O2", "-o", "{program}", "{source}", "-lm"]]),
    "cpp": (
        "main.cpp",
        [["/usr/bin/g++", "-O2", f"-std={standard}", "-o", "{program}", "{source}"] for standard in ("c++17", "c++20")],
    ),
}
"""Language -> file name, and the commands to try, one after another."""
PREAMBLE = """
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from typing import *
import bisect, collections, copy, datetime, functools, heapq, io, itertools, json, math, operator, random, re
import statistics, string, sys
sys.setrecursionlimit(50000)
"""
"""The imports of LiveCodeBench's harness (lcb_runner/evaluation/testing_util.py), and its recursion limit."""
_COMPILE_LIMITS = Limits(cpu_seconds=20, wall_seconds=40, memory_mb=1024, processes=16)
_MESSAGE_KEPT = 600


@dataclass(frozen=True, slots=True)
class _Judgement:
    """What was found of one test, or of a run of asserts: `passed` of `total` marks."""

    word: str
    passed: float = 0.0
    total: int = 1
    message: str = ""
    weak: tuple[str, ...] = ()


class ProgramVerifier:
    """Grades programs by tests; see `rewards.program_tests` for the forms of a reference.

    Args: cpu_seconds, wall_seconds, memory_mb, processes for each test; total_seconds for all the tests of one
    program; extract ("auto", "fenced" or "whole": `extract_code`); language ("python", "c", "cpp") unless the reference
    says; checker for standard output, with rel_tol and abs_tol for "tokens" and for returned floats (by default the
    noise of floating point); preamble: Python whose names programs may use without importing them ("": none);
    libraries: what they may import besides the standard library (None: numpy, where it is installed); partial_credit:
    the share of tests passed instead of all or nothing; weak: "refuse" counts a pass as wrong when the candidate's own
    objects answered for themselves (see `rewards.sandbox.referee`); min_level: the least isolation under which it
    runs; force_level, back_end: see `rewards.sandbox.Sandbox`; or back_end "sandbox_fusion" with the server's address
    as url (`rewards.sandbox_fusion`: isolation is then the server's, and the limits are the clock and the memory).
    """

    lowest_score = 0.0
    needs_seconds: float = 42.0
    """Seconds that one whole `grade` may take, for whoever holds the clock; each instance's follow from its limits."""

    def __init__(
        self,
        *,
        cpu_seconds: float = 4.0,
        wall_seconds: float = 8.0,
        total_seconds: float = 30.0,
        memory_mb: int = 512,
        processes: int = 32,
        output_bytes: int = 4 << 20,
        extract: str = "auto",
        language: str = "python",
        checker: str = "tokens",
        rel_tol: float = 1e-12,
        abs_tol: float = 0.0,
        preamble: str = PREAMBLE,
        libraries: Sequence[str] | None = None,
        partial_credit: bool = False,
        weak: str = "accept",
        min_level: str = "full",
        force_level: str | None = None,
        back_end: str = "any",
        url: str | None = None,
    ) -> None:
        choices = {
            "back_end": (back_end, (*BACK_ENDS, "sandbox_fusion")),
            "extract": (extract, ("auto", "fenced", "whole")),
            "language": (language, tuple(LANGUAGES)),
            "checker": (checker, CHECKERS),
            "weak": (weak, ("accept", "refuse")),
        }
        for key, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{key}: {value!r} is not one of {', '.join(map(repr, allowed))}")
        for key, number in (("rel_tol", rel_tol), ("abs_tol", abs_tol)):
            if not 0 <= number < 1:
                raise ValueError(f"{key}: {number!r} must be at least 0 and below 1")
        self._limits = Limits(cpu_seconds, wall_seconds, memory_mb, processes, output_bytes)
        if total_seconds < wall_seconds:
            raise ValueError(f"total_seconds: {total_seconds!r} must not be below wall_seconds, {wall_seconds!r}")
        self._total_seconds = total_seconds
        self.needs_seconds = total_seconds + 12.0
        self._extract, self._language, self._checker = extract, language, checker
        self._rel_tol, self._abs_tol = rel_tol, abs_tol
        try:
            compile(preamble, "preamble", "exec")
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"preamble: {preamble!r:.80} is not Python: {error}") from error
        self._preamble = preamble
        self._partial_credit, self._refuse_weak = partial_credit, weak == "refuse"
        if libraries is None:
            libraries = ["numpy"] if importlib.util.find_spec("numpy") is not None else []
        self._libraries = tuple(libraries)
        self._sandbox: Sandbox | RemoteSandbox
        if back_end == "sandbox_fusion":
            self._sandbox = _remote(url, min_level, force_level)
            self.needs_seconds += PATIENCE_SECONDS
        elif url is not None:
            raise ValueError(f"url: {url!r} is for back_end 'sandbox_fusion', not for {back_end!r}")
        else:
            self._sandbox = Sandbox(
                self._limits,
                min_level=min_level,
                libraries=self._libraries,
                force_level=force_level,
                back_end=back_end,
            )

    def warm_up(self) -> None:
        """Start the sandbox. Raises `SandboxError` where the machine does not offer `min_level`."""
        self._sandbox.report()

    def close(self) -> None:
        """End the sandbox; it starts again when needed."""
        self._sandbox.close()

    def check_reference(self, reference: Any) -> None:
        """Raise `BadReference` if nothing could be tested by this reference."""
        tests, language = self._read(reference)
        if isinstance(self._sandbox, RemoteSandbox):
            check_tests(tests, language)
        if isinstance(tests, AssertTests) and not tests.undecided:
            raise BadReference("tests: every assert is decided by functions that the tests do not define, which the "
                               "candidate would define as it likes: define them in the tests")  # fmt: skip

    def _read(self, reference: Any) -> tuple[AssertTests | StreamTests | CallTests, str]:
        tests, language = read_reference(reference, self._language)
        check_runnable(reference, self._libraries)
        return tests, language

    def grade(self, completion: str, reference: Any) -> Verdict:
        """Run the program in a completion against the reference's tests."""
        return self._grade(completion, reference, self._extract)

    def grade_answer(self, answer: str, reference: Any) -> Verdict:
        """Run a bare program: the whole of the text, unless it holds fenced blocks."""
        return self._grade(answer, reference, "auto")

    def _grade(self, completion: str, reference: Any, extract: str) -> Verdict:
        tests, language = self._read(reference)
        code = extract_code(completion, language, extract, wanted_of(tests))
        if code is None:
            return Verdict(self.lowest_score, Outcome.NO_ANSWER, {"judge": "CE", "message": "no code in the text"})
        try:
            judgement = self._judge(code, tests, language)
            level = self._sandbox.report().level.label
        except SandboxError as error:
            return Verdict(None, Outcome.ERROR, {"judge": "IE", "reason": str(error)})
        if judgement.word == "CE" and "```" not in completion and not looks_like_code(code):
            return Verdict(self.lowest_score, Outcome.NO_ANSWER, {"judge": "CE", "message": "no code in the text"})
        return self._verdict(judgement, level)

    def _verdict(self, judgement: _Judgement, level: str) -> Verdict:
        detail: dict[str, Any] = {
            "judge": judgement.word,
            "passed": judgement.passed,
            "total": judgement.total,
            "level": level,
        }
        if judgement.message:
            detail["message"] = _printable(judgement.message[:_MESSAGE_KEPT])
        if judgement.weak:
            detail["weak"] = list(judgement.weak)
            if self._refuse_weak:
                detail |= {"judge": "WA", "message": "passed only by tests that the candidate's own objects answered"}
                return Verdict(0.0, Outcome.WRONG, detail)
        if judgement.word == "AC":
            return Verdict(1.0, Outcome.CORRECT, detail)
        share = judgement.passed / judgement.total if self._partial_credit else 0.0
        # all tests passed and yet no AC: what happened after the last test spoils it
        share = min(share, 1 - 1 / (judgement.total + 1))
        return Verdict(share, Outcome.PARTIAL if share > 0 else Outcome.WRONG, detail)

    # -- the three forms of tests --------------------------------------------------------------------------------

    def _judge(self, code: str, tests: AssertTests | StreamTests | CallTests, language: str) -> _Judgement:
        is_remote = isinstance(self._sandbox, RemoteSandbox)
        if isinstance(self._sandbox, RemoteSandbox):
            check_tests(tests, language)
            self._sandbox.report()
            self._sandbox.begin(self._total_seconds)
        deadline = self._clock() + self._total_seconds
        if isinstance(tests, AssertTests) and is_remote:
            whole = with_prompt(code, tests.prompt, tests.entry_point)
            return self._judge_all([partial(self._judge_call, whole, *call) for call in calls_of(tests)], deadline)
        if isinstance(tests, AssertTests):
            return self._judge_asserts(with_prompt(code, tests.prompt, tests.entry_point), tests)
        if isinstance(tests, CallTests):
            return self._judge_all(
                [partial(self._judge_call, code, tests.function, case) for case in tests.cases], deadline
            )
        if language == "python" or is_remote:
            preamble = self._preamble if language == "python" else ""
            job = Job({"mode": "script", "code": code, "language": language, "preamble": preamble})
        else:
            compiled = self._compile(code, language)
            if isinstance(compiled, _Judgement):
                return compiled
            job = Job({"mode": "exec"}, blob=compiled)
        return self._judge_all(
            [partial(self._judge_stream, job, tests.checker, case) for case in tests.cases], deadline
        )

    def _clock(self) -> float:
        return self._sandbox.clock() if isinstance(self._sandbox, RemoteSandbox) else time.monotonic()

    def _judge_all(self, runs: list[Callable[[Limits], _Judgement]], deadline: float) -> _Judgement:
        """Run the tests one after another; all or nothing stops at the first that fails."""
        passed, worst = 0.0, None
        for index, run in enumerate(runs):
            left = deadline - self._clock()
            if left <= 0:
                found = _Judgement("TLE", message=f"the {self._total_seconds} s for all tests were over")
            else:
                found = run(replace(self._limits, wall_seconds=min(self._limits.wall_seconds, max(left, 0.1))))
            passed += found.passed
            if found.word != "AC" and worst is None:
                worst = replace(found, message=f"test {index + 1} of {len(runs)}: {found.message}")
            if worst is not None and (not self._partial_credit or worst.word == "CE" or left <= 0):
                break
        return replace(worst or _Judgement("AC"), passed=passed, total=len(runs))

    def _judge_stream(self, job: Job, checker: str | None, case: tuple[str, str], limits: Limits) -> _Judgement:
        stdin, expected = case
        result = self._sandbox.run(replace(job, stdin=stdin.encode("utf-8", "surrogatepass")), limits)
        for message in result.messages:
            if isinstance(message, dict) and message.get("kind") == "compile_error":
                return _Judgement("CE", message=str(message.get("message")))
        if (broken := self._broken(result, limits)) is not None:
            return broken
        if checker is not None:
            return self._ask_checker(checker, stdin, result.stdout, expected, limits)
        if outputs_agree(self._checker, result.stdout, expected, self._rel_tol, self._abs_tol):
            return _Judgement("AC", 1.0)
        return _Judgement("WA", message=f"wrote {result.stdout[:200]!r}")

    def _ask_checker(self, checker: str, stdin: str, stdout: bytes, expected: str, limits: Limits) -> _Judgement:
        """The user's checker, in a sandbox of its own. An output on which it fails is wrong, unless the checker could
        not have worked on any."""
        payload = _call_payload(checker, "check", [stdin, stdout.decode("utf-8", "replace"), expected], {})
        result = self._sandbox.run(Job(payload), limits)
        value = _returned(result, payload["nonce"])
        if isinstance(value, _Judgement):
            if value.word == "CE" or value.message.startswith(("NameError", "ImportError", "ModuleNotFoundError")):
                raise BadReference(f"checker: it cannot run: {value.message}")
            why = f"ended by its limit of {result.killed}" if result.killed else value.message
            return _Judgement("WA", message=f"the checker failed on the output: {why}")
        if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
            return _Judgement("WA", message=f"the checker gave no truth value or share of 1: {_preview(value)}")
        return _Judgement("AC" if value == 1 else "WA", float(value), message="" if value == 1 else "says the checker")

    def _judge_call(self, code: str, function: str, case: dict[str, Any], limits: Limits) -> _Judgement:
        payload = _call_payload(code, function, case["args"], case.get("kwargs", {})) | {"preamble": self._preamble}
        result = self._sandbox.run(Job(payload), limits)
        value = _returned(result, payload["nonce"], in_place=case["expected"] is not None and "compare" not in case)
        if isinstance(value, _Judgement) and value.word in ("CE", "MLE"):
            return value
        if (broken := self._broken(result, limits)) is not None:
            return broken
        if isinstance(value, _Judgement):
            return value
        if "compare" in case:  # an assert's own ==, between exact built-in types
            agree = value == case["expected"]
        else:
            agree = values_agree(value, case["expected"], self._rel_tol, self._abs_tol)
        if agree:
            return _Judgement("AC", 1.0)
        return _Judgement("WA", message=f"returned {_preview(value)}")

    def _judge_asserts(self, code: str, tests: AssertTests) -> _Judgement:
        payload = {
            "mode": "tests",
            "tests": tests.source,
            "prompt": tests.prompt,
            "entry_point": tests.entry_point,
            "call_check": tests.call_check,
            "continue_on_failure": self._partial_credit,
            "link": 0,
        }
        assert isinstance(self._sandbox, Sandbox)
        candidate = {"mode": "serve", "code": code, "preamble": self._preamble, "needed": next(iter(tests.asked), None)}
        ran, judged = self._sandbox.run_linked(Job(candidate), Job(payload))
        findings = judged.messages[0] if judged.messages else None
        if findings is None:
            broken = self._broken(ran, self._limits) or self._broken(judged, self._limits)
            return broken or _Judgement("RE", message="the tests did not come to an end")
        return self._from_findings(findings, ran)

    def _from_findings(self, findings: dict[str, Any], ran: CaseResult) -> _Judgement:
        passed, total, error = findings["passed"], findings["total"], findings["error"]
        if error is not None and error["kind"] == "tests_broken":
            raise BadReference(f"tests: they cannot run: {error['message']}")
        if findings["completed"] and not findings["reached"]:
            raise BadReference("the tests came to their end without calling the candidate: they define what they test")
        if findings["completed"] and not findings["failed"] and passed > 0:
            return _Judgement("AC", total, total, weak=tuple(findings["weak"]))
        found = _Judgement("WA", message="an assert does not hold")
        if not passed and not findings["failed"]:
            found = replace(found, message="not one assert was reached")
            if findings["decided_by_candidate"]:
                found = replace(found, message="every assert is decided by a function that the tests do not define")
        if error is not None:
            kind, message = error["kind"], error["message"]
            types = error.get("types", [])
            found = _Judgement("WA", message=f"{types[0]}: {message}" if types else message)
            if kind in ("gone", "exit"):
                found = self._broken(ran, self._limits) or replace(found, word="RE")
            elif kind == "raised":
                found = replace(found, word="MLE" if "MemoryError" in types else "RE")
            elif kind == "compile_error":
                found = replace(found, word="CE")
        return replace(found, passed=passed, total=total)

    # -- evidence ------------------------------------------------------------------------------------------------

    def _broken(self, result: CaseResult, limits: Limits) -> _Judgement | None:
        """What ended a run early, by its keeper's report; None for one that came to its end with status 0."""
        if result.overflow is not None:
            return _Judgement("OLE", message=f"more than {limits.output_bytes} bytes of {result.overflow}")
        if result.killed in ("wall", "cpu") or result.exit == -signal.SIGXCPU:
            return _Judgement("TLE", message=f"{result.cpu:.2f} s of processor, {result.wall:.2f} s on the clock")
        said = result.stderr.rstrip().rpartition(b"\n")[2]
        starved = result.exit == -signal.SIGKILL and result.memory_mb > 0.7 * limits.memory_mb
        if result.killed == "memory" or starved or said.startswith(b"MemoryError") or b"std::bad_alloc" in said:
            return _Judgement("MLE", message=f"{result.memory_mb:.0f} MiB resident")
        if result.exit == -signal.SIGXFSZ:
            return _Judgement("OLE", message="a file grew too large")
        if result.exit != 0 or result.killed is not None:
            how = f"exit status {result.exit}" if result.exit >= 0 else f"signal {-result.exit}"
            return _Judgement("RE", message=f"{how}: {said.decode('utf-8', 'replace')}")
        return None

    def _compile(self, code: str, language: str) -> bytes | _Judgement:
        file_name, commands = _COMPILERS[language]
        refused = None
        for command in commands:
            payload = {"mode": "compile", "code": code, "file_name": file_name, "command": command}
            result = self._sandbox.run(Job(payload), _COMPILE_LIMITS)
            message = result.messages[0] if result.messages else {}
            if message.get("kind") == "program" and result.exit == 0:
                return b"".join(bytes.fromhex(part["part"]) for part in result.messages)
            if not message and result.exit == 127:
                said = result.stderr.rstrip().rpartition(b"\n")[2].decode("utf-8", "replace")
                raise SandboxError(f"the compiler {command[0]} did not start: {said}")
            ended = f"the compiler was ended: {result.killed or result.overflow}"
            refused = refused or _Judgement("CE", message=str(message.get("message", ended)))
        assert refused is not None
        return refused


def _remote(url: str | None, min_level: str, force_level: str | None) -> RemoteSandbox:
    if url is None:
        raise ValueError("url: back_end 'sandbox_fusion' needs the server's address, such as 'http://localhost:8080'")
    if min_level != "full" or force_level is not None:
        raise ValueError(
            "min_level, force_level: they are for this machine's sandbox; on a server, isolation is its own"
        )
    return RemoteSandbox(url)


def _printable(text: str) -> str:
    """Text of a program's for logs and terminals: control characters and halves of surrogate pairs as escapes."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )


def _preview(value: Any) -> str:
    try:
        return repr(value)[:200]
    except ValueError:  # an integer of more digits than the interpreter writes
        return f"a {type(value).__name__} too long to show"


def _call_payload(code: str, function: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    forms = {name: codec.encode(value) for name, value in kwargs.items()}
    payload = {"mode": "call", "code": code, "fn": function, "args": codec.encode(args), "kwargs": forms}
    return payload | {"nonce": secrets.token_hex(16)}


def _returned(result: CaseResult, nonce: str, in_place: bool = False) -> Any:
    """The value that a call returned, or a `_Judgement` on why there is none.

    in_place: a call that returned None gives what it left in its first argument instead.
    """
    message = result.messages[0] if result.messages else None
    if not isinstance(message, dict):
        return _Judgement("RE", message="it ended before it returned")
    kind = message.get("kind")
    if kind == "value" and message.get("nonce") == nonce:
        try:
            is_in_place = in_place and message.get("value") is None and "first" in message
            return codec.decode(message["first"] if is_in_place else message.get("value"))
        except codec.Undecodable as error:
            return _Judgement("WA", message=str(error))
    text = str(message.get("message"))
    names = message.get("types")
    if kind == "too_long":
        return _Judgement("OLE", message=text)
    if kind == "opaque":
        return _Judgement("WA", message=text)
    if kind == "compile_error":
        return _Judgement("CE", message=text)
    if isinstance(names, list) and names:
        return _Judgement("MLE" if "MemoryError" in names else "RE", message=f"{str(names[0])[:80]}: {text}")
    return _Judgement("RE", message=f"an answer of kind {str(kind)[:40]!r}")
