"""The process in which verifiers run: it reads jobs, answers verdicts, and may be killed at any instant.

Started by `rewards.pool` as a fresh interpreter (never a fork of the trainer, which holds locks, threads and
gigabytes). Frames in both directions are a 4-byte length and JSON: nothing that verifier code made is unpickled by
the parent.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO

from rewards.spec import VerifierSpec, VerifierSpecError
from rewards.verdict import BadReference, Outcome, Verdict, Verifier

PR_SET_PDEATHSIG = 1  # linux/prctl.h
HEADER = struct.Struct("<I")
KINDS = ("grade", "answer", "check")
"""What a job may ask: grade(completion, reference), grade_answer(answer, reference), check_reference(reference)."""
_JSON = json.JSONEncoder(default=repr, separators=(",", ":"))
DETAIL_LIMIT = 20_000
"""Characters of JSON that a reply may take before its `Verdict.detail` is cut."""


def encode(message: Any) -> bytes:
    """A message as JSON; a value that JSON does not have is sent as its repr (a key cannot be: `TypeError`)."""
    return _JSON.encode(message).encode("ascii")


def frame(body: bytes) -> bytes:
    """A message with its length before it."""
    return HEADER.pack(len(body)) + body


def encode_frame(message: Any) -> bytes:
    """A message as length and JSON."""
    return frame(encode(message))


def main() -> int:
    """Serve jobs until the parent closes the pipe; the exit status is 1 when the verifiers could not be built."""
    requests, replies = _take_private_pipes()
    bell = int(sys.argv[2])
    os.set_inheritable(bell, False)
    hello = _read_frame(requests)
    if hello is None:
        return 0
    _die_with_parent(hello["parent"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path[:] = hello["sys_path"]
    try:
        verifiers = {name: VerifierSpec(**spec).load() for name, spec in hello["specs"].items()}
        for verifier in verifiers.values():
            warm_up = getattr(verifier, "warm_up", None)  # optional: slow imports before any clock runs
            if warm_up is not None:
                warm_up()
        lowest = {name: float(getattr(verifier, "lowest_score", 0.0)) for name, verifier in verifiers.items()}
        needs = {name: float(getattr(verifier, "needs_seconds", 0.0)) for name, verifier in verifiers.items()}
    except VerifierSpecError as error:
        _send(replies, encode_frame({"failed": str(error)}))
        return 1
    except Exception as error:  # foreign code may raise anything; the run ends with it
        reason = f"a verifier could not be built: {type(error).__name__}: {error}"
        _send(replies, encode_frame({"failed": f"{reason}\n\n{user_traceback(error)}"}))
        return 1
    _limit_memory(hello["memory_mb"])
    _send(replies, encode_frame({"ready": lowest, "needs_seconds": needs}))
    news = select.poll()
    news.register(requests, select.POLLIN)
    while (batch := _read_frame(requests)) is not None:
        number, jobs = batch
        for done, (kind, name, completion, reference) in enumerate(jobs):
            if done and news.poll(0):  # the parent speaks in the middle of a batch: it takes the rest of it back
                break
            reply = _run(verifiers[name], lowest[name], kind, completion, reference)
            _send(replies, _encode_reply(reply))
            if reply["outcome"] == Outcome.CRASHED:
                return 0  # memory or stack ran out inside foreign code: what is left of this process is not trusted
        if not jobs:
            _send(replies, encode_frame({"skipped": number}))
        elif len(jobs) > 1:
            os.write(bell, bytes([number]))
    return 0


BEFORE = (*(str(Path(__file__).with_name(name)) for name in ("worker.py", "spec.py", "names.py", "functions.py")),
          str(importlib.__file__), "<frozen ")  # fmt: skip
"""Beginnings of the names of files whose frames stand before those of the user's verifier."""


def user_traceback(error: BaseException) -> str:
    """The traceback from the first frame of the verifier on, without ours and those of an import before it."""
    told = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = told
    while part is not None:
        frames = list(part.stack)
        while frames and frames[0].filename.startswith(BEFORE):
            frames.pop(0)
        part.stack = traceback.StackSummary.from_list(frames)
        part = part.__cause__ or part.__context__
    return "".join(told.format())


def _run(verifier: Verifier, lowest: float, kind: str, completion: str, reference: Any) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        if kind == "check":
            verifier.check_reference(reference)
            verdict = Verdict(0.0, Outcome.CORRECT)
        else:
            verdict = _grader(verifier, kind)(completion, reference)
            if not isinstance(verdict, Verdict):
                raise TypeError(f"grade returned {type(verdict).__name__} ({verdict!r:.200}), it must return a Verdict")
            if type(verdict.detail) is not dict or type(verdict.score) not in (float, NoneType):
                score = None if verdict.score is None else float(verdict.score)  # NumPy's numbers are no JSON
                verdict = Verdict(score, verdict.outcome, dict(verdict.detail))
    except BadReference as error:
        verdict = Verdict(None, Outcome.BAD_REFERENCE, {"reason": str(error)})
    except (MemoryError, RecursionError) as error:
        verdict = Verdict(lowest, Outcome.CRASHED, {"reason": f"{type(error).__name__}: {error}"})
    except Exception as error:  # foreign code may raise anything; never a reward of 0
        detail = {"reason": f"{type(error).__name__}: {error}", "traceback": user_traceback(error)}
        verdict = Verdict(None, Outcome.ERROR, detail)
    seconds = time.perf_counter() - start
    return {
        "score": verdict.score,
        "outcome": verdict.outcome,
        "detail": verdict.detail,
        "seconds": round(seconds, 6),
    }


def _grader(verifier: Verifier, kind: str) -> Callable[[str, Any], Verdict]:
    if kind == "grade":
        return verifier.grade
    grade_answer = getattr(verifier, "grade_answer", None)
    if grade_answer is None:
        raise TypeError(f"{type(verifier).__name__} has no grade_answer(answer, reference): it grades completions only")
    answer: Callable[[str, Any], Verdict] = grade_answer
    return answer


def _encode_reply(reply: dict[str, Any]) -> bytes:
    try:
        body = encode(reply)
    except Exception as error:  # foreign values: a key that is no string, a circle, a `__repr__` that raises
        detail = {"reason": f"the detail of the verdict is no JSON: {type(error).__name__}: {error}", "traceback": ""}
        body = encode({**reply, "score": None, "outcome": Outcome.ERROR, "detail": detail})
    if len(body) <= DETAIL_LIMIT:
        return frame(body)
    plain: dict[str, Any] = json.loads(body)["detail"]
    share = DETAIL_LIMIT // max(1, len(plain))
    kept = {key: value if len(text := json.dumps(value)) <= share else text[:share] for key, value in plain.items()}
    return encode_frame({**reply, "detail": kept})


def _take_private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the protocol's descriptors for ourselves: whatever verifier code prints goes to standard error."""
    requests = os.fdopen(os.dup(0), "rb", buffering=0)  # what a poll does not see, nobody has read
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies


def _read_frame(stream: BinaryIO) -> Any:
    header = _read(stream, HEADER.size)
    return None if header is None else json.loads(_read(stream, HEADER.unpack(header)[0]) or b"null")


def _read(stream: BinaryIO, size: int) -> bytearray | None:
    """Exactly so many bytes; None where the stream ends before."""
    got = bytearray()
    while len(got) < size:
        chunk = stream.read(min(size - len(got), 2**20))
        if not chunk:
            return None
        got += chunk
    return got


def _send(stream: BinaryIO, data: bytes) -> None:
    while data:
        data = data[stream.write(data) :]


def _die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends; the closed pipe does the same where there is no prctl."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)


def _limit_memory(megabytes: int) -> None:
    """Allow the address space to grow by so much beyond what the loaded verifiers take already."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[0])
    except FileNotFoundError:  # not Linux: count from nothing
        pages = 0
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
