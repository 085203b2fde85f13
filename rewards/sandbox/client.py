"""The caller's side of a sandbox: start it, run payloads in it, collect what they did.

A sandbox has one jail (`lane`), and a second one as soon as a candidate and its referee must run at the same time. The
zygote in a jail takes one message a case, with the descriptors of its payload, its streams and its report.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from . import frames
from .lane import Lane
from .libraries import locate
from .limits import Level, Limits, Report, SandboxError

BACK_ENDS = ("any", "own", "bubblewrap")
GRACE_SECONDS = 10.0
"""How much later than its limit a case may report before the sandbox itself is taken for broken."""


@dataclass(slots=True)
class CaseResult:
    """What one run did, told by its keeper (`killed` ... `memory_mb`) and by itself (the rest, so unproven)."""

    killed: str | None = None
    """Why the keeper ended it: "wall", "cpu", "memory", "caller"; None if it ended by itself."""
    exit: int = 0
    """Exit status; negative: the signal that ended it."""
    cpu: float = 0.0
    wall: float = 0.0
    memory_mb: float = 0.0
    overflow: str | None = None
    """The stream that went over `Limits.output_bytes`."""
    stdout: bytes = b""
    stderr: bytes = b""
    messages: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a payload for `runner.run` and its standard input."""

    payload: dict[str, Any]
    stdin: bytes = b""
    blob: bytes = b""
    """Bytes that follow the payload's line."""


class Sandbox:
    """A jail that runs untrusted programs, each in isolation; started at its first use, by each process its own.

    Example::

        with Sandbox(min_level="full") as sandbox:
            result = sandbox.run(Job({"mode": "script", "code": "print(6 * 7)"}))

    Args: limits for every run; min_level, below which it refuses to run ("full", "landlock", "rlimit-only");
    libraries: what programs may import besides the standard library; force_level, to try a lower level; back_end:
    "own", "bubblewrap", or "any" of them that gives the highest level.
    Raises `NotInstalled` for a library that is not there, and `SandboxError` when the machine does not offer
    `min_level`, with what was tried and why it failed.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        min_level: str = "full",
        libraries: Sequence[str] = (),
        force_level: str | None = None,
        back_end: str = "any",
    ) -> None:
        if back_end not in BACK_ENDS:
            raise ValueError(f"back_end: {back_end!r} is not one of {', '.join(map(repr, BACK_ENDS))}")
        self.limits = limits or Limits()
        self._min_level = Level.named(min_level)
        self._force = Level.named(force_level) if force_level is not None else None
        self._back_end, self._bubblewrap = back_end, None  # type: str, str | None
        self._import_paths, self._readable = locate(libraries)
        self._lock = threading.Lock()
        self._owner = 0
        self._lanes: list[Lane] = []
        self._report: Report | None = None
        self.restarts = 0
        """How often the jail was started anew because it had failed."""

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a Sandbox belongs to its process and cannot be pickled")

    def report(self) -> Report:
        """The level and the layers of isolation in force; starts the sandbox if need be."""
        with self._lock:
            self._ensure_lanes(1)
            assert self._report is not None
            return self._report

    def run(self, job: Job, limits: Limits | None = None) -> CaseResult:
        """Run one job. Raises `SandboxError` when the sandbox fails twice: then nothing is known of the program."""
        return self._run_retrying([job], limits or self.limits)[0]

    def run_linked(self, candidate: Job, referee: Job, limits: Limits | None = None) -> tuple[CaseResult, CaseResult]:
        """Run a candidate and its referee at the same time, each in its own isolation, with a channel between them.

        The channel takes the place of the candidate's result channel and of the referee's standard input.
        """
        first, second = self._run_retrying([candidate, referee], limits or self.limits)
        return first, second

    def close(self) -> None:
        """End the jail and everything in it. Safe to call twice."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        for lane in self._lanes:
            lane.stop()
        self._lanes, self._report = [], None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    # -- starting ------------------------------------------------------------------------------------------------

    def _ensure_lanes(self, count: int) -> None:
        """Have at least this many jails: one for each case that runs at the same time."""
        if self._owner != os.getpid():  # never started, or inherited over a fork: those jails are the parent's
            self._owner, self._lanes, self._report = os.getpid(), [], None
        if not self._lanes:
            self._report = self._find_level()
        while len(self._lanes) < count:
            assert self._report is not None
            self._lanes.append(self._new_lane(self._report.level))

    def _find_level(self) -> Report:
        """Start a jail at the highest level that this machine offers. Raises `SandboxError`."""
        if not sys.platform.startswith("linux"):
            raise SandboxError(
                f"programs run in a sandbox of Linux, and this is {sys.platform}: use a machine with Linux, or a "
                "SandboxFusion server: back_end 'sandbox_fusion' with its address as 'url'"
            )
        tried = [] if self._candidates() else [f"no way to it by the back end {self._back_end!r}"]
        for level, bubblewrap in self._candidates():
            self._bubblewrap = bubblewrap
            try:
                self._lanes = [self._new_lane(level)]
                trial = self._run_locked([Job({"mode": "script", "code": "print(6 * 7)"})], Limits())[0]
                if trial.stdout == b"42\n":
                    return Report(level, self._lanes[0].layers)
                reason = f"a trial program failed: {trial.stderr[-300:]!r}"
            except SandboxError as error:
                reason = str(error)
            tried.append(f"{level.label}{' by bubblewrap' if bubblewrap else ''}: {reason}")
            self._stop()
        raise SandboxError(
            f"this machine does not offer the isolation level {self._min_level.label!r} ({'; '.join(tried)}); allow "
            "user namespaces, or accept a lower level with min_level"
        )

    def _candidates(self) -> list[tuple[Level, str | None]]:
        """The levels to try, best first; bubblewrap (its path) is the second way to the full one."""
        bubblewrap = shutil.which("bwrap")
        ways: list[tuple[Level, str | None]] = []
        if self._back_end != "bubblewrap":
            ways += [(level, None) for level in sorted(Level, reverse=True)]
        if self._back_end != "own" and bubblewrap is not None:
            ways.insert(1, (Level.FULL, bubblewrap))
        return [way for way in ways if way[0] >= self._min_level and self._force in (None, way[0])]

    def _new_lane(self, level: Level) -> Lane:
        # what the zygote itself needs is added; the program's own limits come before the group's
        memory = (self.limits.memory_mb + self.limits.files_mb + 128) << 20
        return Lane(level, self._bubblewrap, memory, self.limits.processes + 8, self._import_paths, self._readable)

    # -- running -------------------------------------------------------------------------------------------------

    def _run_retrying(self, jobs: Sequence[Job], limits: Limits) -> list[CaseResult]:
        with self._lock:
            self._ensure_lanes(len(jobs))
            try:
                return self._run_locked(jobs, limits)
            except SandboxError:
                self._stop()
                self.restarts += 1
                self._ensure_lanes(len(jobs))
                return self._run_locked(jobs, limits)

    def _run_locked(self, jobs: Sequence[Job], limits: Limits) -> list[CaseResult]:
        """Run one job, or a candidate and its referee."""
        running = [_Running(job, limits) for job in jobs]
        ends = socket.socketpair() if len(jobs) == 2 else ()
        try:
            for index, case in enumerate(running):
                link = ends[index].detach() if ends else None
                case.launch(
                    self._lanes[index].control, channel=link if index == 0 else None, stdin=link if index == 1 else None
                )
            _collect(running, time.monotonic() + limits.wall_seconds + GRACE_SECONDS)
        except OSError as error:
            raise SandboxError(f"the sandbox failed: {error}") from error
        finally:
            for case in running:
                case.close()
            for end in ends:
                end.close()
        return [case.result for case in running]


class _Running:
    """The caller's descriptors of one case."""

    def __init__(self, job: Job, limits: Limits) -> None:
        self._limits, self._job = limits, job
        self.result = CaseResult()
        self.status = bytearray()
        self._given: list[int] = []
        self._owned: list[int] = []
        self._life = -1
        self.streams: dict[int, tuple[str, bytearray]] = {}

    def launch(self, control: socket.socket, channel: int | None, stdin: int | None) -> None:
        """Make the descriptors, taking over `channel` and `stdin` if given, and hand the case to the zygote."""
        self._given.append(self._file(json.dumps(self._job.payload).encode() + b"\n" + self._job.blob))
        self._given.append(self._file(self._job.stdin) if stdin is None else stdin)
        self._given += [self._stream("stdout"), self._stream("stderr")]
        self._given.append(self._stream("channel") if channel is None else channel)
        self._given.append(self._stream("status"))
        life, self._life = os.pipe()
        self._owned.append(self._life)
        self._given.append(life)
        socket.send_fds(control, [json.dumps(asdict(self._limits)).encode()], self._given)
        self._drop_given()

    def _file(self, content: bytes) -> int:
        descriptor = os.memfd_create("rewards", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        read_only = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, read_only)
        return descriptor

    def _stream(self, name: str) -> int:
        read, write = os.pipe()
        os.set_blocking(read, False)
        self._owned.append(read)
        self.streams[read] = (name, bytearray())
        return write

    def _drop_given(self) -> None:
        for descriptor in self._given:
            os.close(descriptor)
        self._given = []

    def readable(self, descriptor: int) -> bool:
        """Take what a stream has; False at its end. A stream over its limit ends the case."""
        name, content = self.streams[descriptor]
        try:
            chunk = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        limit = self._limits.output_bytes
        if name == "channel" and self._job.payload["mode"] == "compile":  # the program, in hexadecimal
            limit = (2 * self._limits.files_mb + 1) << 20
        if len(content) < limit:
            content += chunk
        if len(content) >= limit and self.result.overflow is None:
            self.result.overflow = name
            self.end()
        return True

    def end(self) -> None:
        """Tell the keeper to kill the case."""
        if self._life in self._owned:
            self._owned.remove(self._life)
            os.close(self._life)

    def finish(self) -> None:
        """Read the report. Raises `SandboxError` when there is none."""
        content = {name: bytes(data) for name, data in self.streams.values()}
        reports = frames.parse(content["status"])
        if len(reports) != 1:
            raise SandboxError("a case ended without a report")
        report = reports[0]
        if "setup_error" in report:
            raise SandboxError(f"a case could not be set up: {report['setup_error']}")
        for key, value in report.items():
            setattr(self.result, key, value)
        self.result.stdout, self.result.stderr = content["stdout"], content["stderr"]
        self.result.messages = frames.parse(content.get("channel", b""))

    def close(self) -> None:
        """Let go of every descriptor; a case that still runs is killed by its keeper."""
        self._drop_given()
        for descriptor in self._owned:
            os.close(descriptor)
        self._owned = []


def _collect(running: Sequence[_Running], deadline: float) -> None:
    """Read all streams of all cases to their ends; when one case is over, so are the others a moment later."""
    poll = select.poll()
    owners: dict[int, _Running] = {}
    for case in running:
        for descriptor in case.streams:
            owners[descriptor] = case
            poll.register(descriptor, select.POLLIN)
    while owners:
        events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not events:
            raise SandboxError("a case did not report within its limit: the sandbox hangs")
        for descriptor, _ in events:
            if not owners[descriptor].readable(descriptor):
                poll.unregister(descriptor)
                del owners[descriptor]
    for case in running:
        case.finish()
