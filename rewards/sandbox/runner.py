"""Inside the confined process: run one payload of foreign code and send what it returned.

Modes of a payload: ``script`` (a program on standard input and output), ``call`` (one function call), ``serve``
(answer the calls of a referee in another sandbox, see `referee`), ``tests`` (be that referee), ``compile`` and
``exec`` (other languages). Everything here may be tampered with by the foreign code in the same process: whatever
leaves it is data about which the caller decides.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import subprocess
import sys
import threading
import traceback
import types
from typing import Any

from . import codec, frames, referee, remote

CHANNEL = 3
_LARGEST_STACK = 64 << 20
_PROGRAM_PART = frames.LIMIT // 4
_TEXT_KEPT = 2000
_OWN_MODULES = [
    __package__ or "",
    *(
        f"{__package__}.{name}"
        for name in (
            "bubblewrap",
            "case",
            "cgroup",
            "client",
            "codec",
            "frames",
            "instances",
            "jail",
            "landlock",
            "lane",
            "libraries",
            "limits",
            "linux",
            "pytest_part",
            "referee",
            "remote",
            "runner",
            "seccomp",
            "test_names",
            "zygote",
        )
    ),
]


def run(payload: dict[str, Any], scratch: str) -> int:
    """Run one payload; returns the exit status of the process."""
    mode = payload["mode"]
    if mode == "exec":
        return _execute(payload, scratch)
    if mode == "compile":
        return _compile_binary(payload, scratch)
    _fresh_standard_streams()
    if mode == "tests":
        frames.send(CHANNEL, referee.run(payload, scratch, payload_descriptor=4))
        return 0
    os.close(4)
    path = os.path.join(scratch, "code", "solution.py")
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(payload["code"])
    try:
        code = compile(payload["code"], path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        frames.send(CHANNEL, {"kind": "compile_error", "message": f"{type(error).__name__}: {error}"[:_TEXT_KEPT]})
        return 1
    remote.add_names(payload.get("preamble", ""))
    threading.stack_size = _stack_size
    for name in _OWN_MODULES:
        sys.modules.pop(name, None)
    sys.argv[:] = [path]
    if mode == "script":
        os.close(CHANNEL)
        return _run_script(code, path)
    module = types.ModuleType("solution")
    module.__file__ = path
    sys.modules["solution"] = module
    if mode == "call":
        answer = remote.call(code, module, payload)
        try:
            frames.send(CHANNEL, answer)
        except codec.Unencodable as error:
            frames.send(CHANNEL, {"kind": "too_long", "message": str(error)})
    else:
        remote.serve(CHANNEL, code, module, payload.get("needed"))
    _flush()
    return 0


def _fresh_standard_streams() -> None:
    """Text streams over this process's own descriptors: the zygote's are gone."""
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "closefd": False}
    sys.stdin = open(0, **options)  # noqa: SIM115
    sys.stdout = open(1, "w", **options)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, **options)  # noqa: SIM115
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)


def _stack_size(size: int = 0) -> int:
    """`threading.stack_size`, no larger than the program's own: what is reserved counts as memory here."""
    return _thread.stack_size(min(size, _LARGEST_STACK))


def _run_script(code: types.CodeType, path: str) -> int:
    """A program as `python FILE` runs it, with its exit status."""
    module = types.ModuleType("__main__")
    module.__file__ = path
    sys.modules["__main__"] = module
    status = 0
    try:
        exec(code, module.__dict__)
    except SystemExit as error:
        status = _exit_status(error.code)
    except BaseException:
        _print_error()
        status = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter does at its end
        atexit._run_exitfuncs()
    except BaseException:
        _print_error()
        status = status or 1
    return status if _flush() else 120


def _exit_status(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _print_error() -> None:
    try:
        traceback.print_exc()
    except BaseException:
        os.write(2, b"an exception whose traceback cannot be printed\n")


def _flush() -> bool:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        return False
    return True


def _execute(payload: dict[str, Any], scratch: str) -> int:
    """Become a compiled program, whose bytes follow the payload's first line."""
    path = os.path.join(scratch, "code", "program")
    with open(4, "rb") as file:
        file.seek(payload["offset"])
        binary = file.read()
    with open(path, "wb") as file:
        file.write(binary)
    os.chmod(path, 0o700)
    os.closerange(3, 8)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the interpreter ignores it; another program does not expect that
    os.execv(path, [path])


def _compile_binary(payload: dict[str, Any], scratch: str) -> int:
    """Run a compiler over the source and send the program that it made, in hexadecimal, in parts."""
    directory = os.path.join(scratch, "code")
    source, program = os.path.join(directory, payload["file_name"]), os.path.join(directory, "program")
    with open(source, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(payload["code"])
    command = [part.format(source=source, program=program) for part in payload["command"]]
    os.set_inheritable(CHANNEL, False)
    with open(os.path.join(directory, "errors"), "w+b") as errors:  # a file has a limit, which memory would not have
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, check=False)
        errors.seek(max(errors.seek(0, os.SEEK_END) - _TEXT_KEPT, 0))
        message = errors.read().decode("utf-8", "replace")
    if done.returncode == 0 and os.path.isfile(program):
        with open(program, "rb") as file:
            while part := file.read(_PROGRAM_PART):
                frames.send(CHANNEL, {"kind": "program", "part": part.hex()})
        return 0
    frames.send(CHANNEL, {"kind": "compile_error", "message": message or f"exit status {done.returncode}"})
    return 1
