"""Programs run by a SandboxFusion server (ByteDance), for machines that have no isolation of their own, such as macOS.

Only ``POST {url}/run_code`` is used, with a program and its standard input; what is expected never leaves this machine
and is compared here. So whatever would need it there is refused when the references are read: checkers that are code,
and asserts that are not a plain ``assert f(values) == value``. How far programs are isolated is the server's affair
(its default isolates nothing): the level is reported as "remote".

A server that does not answer, answers with an error or with what is no answer is a `SandboxError` after some
attempts: nothing is known of the program then. Time spent waiting for the server is not the program's.
"""

from __future__ import annotations

import ast
import http.client
import json
import math
import secrets
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rewards.program_tests import AssertTests, CallTests, StreamTests
from rewards.sandbox import CaseResult, Job, Limits, SandboxError, codec, stdio
from rewards.verdict import BadReference

LANGUAGES = ("python", "cpp")
"""The languages that have the same name and compiler there; C has none."""
COMPILE_SECONDS = 40.0
PATIENCE_SECONDS = 120.0
"""Seconds for queues and compilers, over all tests of one program, after which it is given up unjudged."""
TRIAL_SECONDS = 30.0
ATTEMPTS = 3
CAPTURED_BYTES = 1 << 20
"""What the server keeps of an output; it says nothing of the rest."""
_LARGEST_REPLY = 1 << 24
_SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")


@dataclass(frozen=True, slots=True)
class RemoteLevel:
    """What is known of the isolation: where it is."""

    label: str = "remote"


@dataclass(frozen=True, slots=True)
class RemoteReport:
    """The counterpart of `rewards.sandbox.Report`."""

    level: RemoteLevel = RemoteLevel()


class RemoteSandbox:
    """A SandboxFusion server, with the methods of `rewards.sandbox.Sandbox` that `ProgramVerifier` needs.

    Example: ``RemoteSandbox("http://sandbox.local:8080")``. Raises `ValueError` for what is no address.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ValueError(f"url: {url!r} is no address such as 'http://localhost:8080'")
        if parts.path.rstrip("/").endswith("/run_code"):
            raise ValueError(f"url: {url!r} must stop before '/run_code', which is added to it")
        self.url = url
        self._parts = parts
        self._driver = stdio.bootstrap()
        self._is_tried = False
        self._ran_seconds = 0.0
        self._give_up = math.inf

    def begin(self, total_seconds: float) -> None:
        """The tests of another program begin; they may take so long, and the server's lateness on top."""
        self._give_up = time.monotonic() + total_seconds + PATIENCE_SECONDS

    def clock(self) -> float:
        """Seconds that programs have run there, by the server's word; waiting for the server is not in it."""
        return self._ran_seconds

    def report(self) -> RemoteReport:
        """Try the server with two programs, once. Raises `SandboxError` when they do not give what they must."""
        if not self._is_tried:
            self._give_up = time.monotonic() + TRIAL_SECONDS
            script = self.run(Job({"mode": "script", "code": "print(int(input()) * 7)"}, b"6"), Limits())
            nonce = secrets.token_hex(16)
            call = {"mode": "call", "code": "def f(x): return x * 7,", "fn": "f", "args": [6], "kwargs": {}}
            called = self.run(Job(call | {"nonce": nonce}), Limits())
            value = {"kind": "value", "value": {"tuple": [42]}, "nonce": nonce}
            if script.stdout != b"42\n" or called.messages != [value]:
                raise SandboxError(
                    f"the server at {self.url} does not run Python 3.10 or newer as it should: print(int(input()) * 7) "
                    f"gave {script.stdout[:80]!r}, a call gave {called.messages}, {called.stderr[-300:]!r}"
                )
            self._is_tried = True
        return RemoteReport()

    def close(self) -> None:
        """Nothing is held between two requests."""

    def run(self, job: Job, limits: Limits) -> CaseResult:
        """Run a program on the server. Raises `SandboxError` when nothing is known of it."""
        payload = job.payload
        try:
            payload["code"].encode()
        except UnicodeEncodeError as error:
            return CaseResult(exit=1, messages=[{"kind": "compile_error", "message": f"the code is no text: {error}"}])
        request = {
            "code": _with_preamble(payload),
            "stdin": job.stdin.decode("utf-8", "surrogatepass"),
            "language": payload.get("language", "python"),
            "run_timeout": limits.wall_seconds,
            "compile_timeout": COMPILE_SECONDS,
            "memory_limit_MB": limits.memory_mb,
        }
        mark = ""
        if payload["mode"] == "call":
            mark = secrets.token_hex(16)
            request |= {"code": self._driver, "stdin": codec.dumps(payload | {"mark": mark}).decode() + "\n"}
        result = _read_reply(self._ask(request), limits)
        self._ran_seconds += result.wall
        if mark:
            result.messages = _marked(result.stdout, mark)
            result.stdout = b""
        elif request["language"] == "python" and _is_syntax_error(result):
            result.messages = [{"kind": "compile_error", "message": result.stderr.decode("utf-8", "replace")[-600:]}]
        return result

    # -- the connection ------------------------------------------------------------------------------------------

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The server's answer; what fails is asked again, as long as there is patience."""
        body = json.dumps(request).encode("ascii")
        longest = request["run_timeout"] + request["compile_timeout"] + PATIENCE_SECONDS
        reason = "there was no time left to ask it"
        for attempt in range(ATTEMPTS):
            left = min(longest, self._give_up - time.monotonic())
            if left <= 0:
                break
            try:
                return self._post(body, time.monotonic() + left)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
            if attempt < ATTEMPTS - 1:
                time.sleep(max(0.0, min(0.2 * 4**attempt, self._give_up - time.monotonic())))
        raise SandboxError(f"the server at {self.url} ran nothing: {reason}")

    def _post(self, body: bytes, deadline: float) -> dict[str, Any]:
        connect = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        assert self._parts.hostname is not None
        connection = connect(self._parts.hostname, self._parts.port, timeout=deadline - time.monotonic())
        try:
            path = self._parts.path.rstrip("/") + "/run_code"
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            sock = connection.sock
            response = connection.getresponse()
            text = bytearray()
            while chunk := response.read1(1 << 16):
                text += chunk
                if len(text) > _LARGEST_REPLY:
                    raise ValueError(f"a reply of more than {_LARGEST_REPLY} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError("the reply did not end in time")
                if sock is not None and sock.fileno() >= 0:
                    sock.settimeout(max(0.01, deadline - time.monotonic()))
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {bytes(text[:300])!r}")
        reply = json.loads(text)
        if not isinstance(reply, dict) or reply.get("status") not in ("Success", "Failed"):
            said = reply.get("message") if isinstance(reply, dict) else reply
            raise ValueError(f"its answer is no result of a program: {str(said)[:300]!r}")
        return reply


def _with_preamble(payload: dict[str, Any]) -> str:
    """The program, after its preamble unless it must begin by an import from the future."""
    code: str = payload["code"]
    preamble = payload.get("preamble", "")
    return code if not preamble or "from __future__" in code else f"{preamble}\n{code}"


def _read_reply(reply: dict[str, Any], limits: Limits) -> CaseResult:
    compiled, ran = reply.get("compile_result"), reply.get("run_result")
    if compiled is not None and ran is None:
        said = f"{compiled.get('stdout') or ''}{compiled.get('stderr') or ''}"
        if compiled.get("status") == "Finished" and compiled.get("return_code") in (0, 126, 127, None):
            raise SandboxError(f"the server's compiler did not start: {said[-300:]!r}")
        return CaseResult(exit=1, messages=[{"kind": "compile_error", "message": said[-2000:] or "it took too long"}])
    if not isinstance(ran, dict) or ran.get("status") not in ("Finished", "TimeLimitExceeded"):
        raise SandboxError(f"the server says nothing of the run: {str(reply)[:300]}")
    is_late, status, seconds = ran["status"] == "TimeLimitExceeded", ran.get("return_code"), ran.get("execution_time")
    is_whole = isinstance(status, int) and isinstance(ran.get("stdout"), str)
    if not (is_late or is_whole) or not isinstance(seconds, int | float):
        raise SandboxError(f"the server does not say how the run ended: {str(reply)[:300]}")
    result = CaseResult(
        killed="wall" if is_late else None,
        exit=status if isinstance(status, int) else -9,
        wall=float(seconds),
        stdout=(ran.get("stdout") or "").encode("utf-8", "surrogatepass"),
        stderr=(ran.get("stderr") or "").encode("utf-8", "surrogatepass"),
    )
    if len(result.stdout) >= min(CAPTURED_BYTES, limits.output_bytes):
        result.overflow = "stdout"
    return result


def _marked(stdout: bytes, mark: str) -> list[Any]:
    """The one answer, if standard output is that and nothing else."""
    start = mark.encode() + b" "
    if not (stdout.startswith(start) and stdout.endswith(b"\n") and stdout.count(b"\n") == 1):
        return []
    try:
        return [json.loads(stdout[len(start) :])]
    except (ValueError, RecursionError):
        return []


def _is_syntax_error(result: CaseResult) -> bool:
    """How the interpreter ends when it cannot read its own file: no traceback, and this at the end."""
    last = result.stderr.rstrip().rpartition(b"\n")[2].decode("utf-8", "replace")
    return result.exit == 1 and not result.stderr.startswith(b"Traceback") and last.startswith(_SYNTAX_ERRORS)


# -- which tests can be run there --------------------------------------------------------------------------------------


def check_tests(tests: AssertTests | StreamTests | CallTests, language: str) -> None:
    """Raise `BadReference` for tests that cannot be run without showing the server what is expected."""
    if language not in LANGUAGES:
        raise BadReference(
            f"language: a SandboxFusion server runs {', '.join(LANGUAGES)} here, not {language!r}; use the own back end"
        )
    if isinstance(tests, StreamTests) and tests.checker is not None:
        raise BadReference(
            "checker: code that is shown the expected output does not run on a SandboxFusion server, beside the "
            "programs that it checks; use the own back end, or one of the checkers by name"
        )
    if isinstance(tests, StreamTests) and any(not _is_text(stdin) for stdin, _ in tests.cases):
        raise BadReference("tests: a standard input with lone surrogates cannot be sent to a SandboxFusion server")
    if isinstance(tests, AssertTests):
        calls_of(tests)


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def calls_of(tests: AssertTests) -> list[tuple[str, dict[str, Any]]]:
    """Asserts as calls: name of the function, and a case with a literal `expected` that is compared by ``==``.

    Raises `BadReference` at the first statement that is no ``assert f(values) == value``.
    """
    body, renamed = ast.parse(tests.source).body, {}
    if tests.call_check:
        others = [node for node in body if not (isinstance(node, ast.FunctionDef) and node.name == "check")]
        (check,) = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == "check")
        for node in others:
            if not isinstance(node, ast.Assign) or _literal(node.value) is None:
                raise _no_call(node)
        body = check.body
        renamed = {check.args.args[0].arg: str(tests.entry_point)} if check.args.args else {}
    return [_call_of(node, renamed) for node in body if not _is_docstring(node)]


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _call_of(node: ast.stmt, renamed: dict[str, str]) -> tuple[str, dict[str, Any]]:
    test = node.test if isinstance(node, ast.Assert) else None
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        raise _no_call(node)
    call, expected = test.left, test.comparators[0]
    if not isinstance(call, ast.Call):
        call, expected = expected, call
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise _no_call(node)
    parts = [_literal(part) for part in call.args] + [_literal(keyword.value) for keyword in call.keywords]
    wanted = _literal(expected)
    if wanted is None or None in parts or any(keyword.arg is None for keyword in call.keywords):
        raise _no_call(node)
    values = [part[0] for part in parts if part is not None]
    keywords = zip((str(keyword.arg) for keyword in call.keywords), values[len(call.args) :], strict=True)
    case = {"args": values[: len(call.args)], "kwargs": dict(keywords), "expected": wanted[0], "compare": "=="}
    return renamed.get(call.func.id, call.func.id), case


def _literal(node: ast.expr) -> tuple[Any] | None:
    try:
        return (ast.literal_eval(node),)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _no_call(node: ast.stmt) -> BadReference:
    return BadReference(
        f"tests: line {node.lineno}: {ast.unparse(node)[:120]!r} is no 'assert f(values) == value'; on a SandboxFusion "
        "server only those run, because the rest would show the expected values there; use the own back end"
    )
