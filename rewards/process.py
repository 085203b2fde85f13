"""The parent's end of one worker process: start, send, receive with a deadline, kill."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewards.spec import VerifierSpec
from rewards.verdict import Outcome
from rewards.worker import HEADER, encode_frame, frame

STDERR_KEPT = 2_000
"""Characters from the end of a dead worker's standard error that go into the verdict's detail."""
STDERR_LIMIT = 2**20
"""Bytes of standard error after which the file is emptied."""
REPLY_LIMIT = 2**24
"""Bytes of a frame above which it is none of ours (a worker cuts its replies far below)."""
STARVED = 60.0
"""Seconds of wall clock beyond its limit after which an answer is given up that a busy machine holds up."""
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")
LAUNCHER_PREFIXES = ("MASTER_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "DEEPSPEED_")


class WorkerStartError(RuntimeError):
    """A worker could not be started or could not build its verifiers; the message holds the worker's reason.

    `is_final`: the verifiers themselves cannot be built, so that trying again is useless.
    """

    def __init__(self, message: str, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class WorkerDied(Exception):
    """The worker's process ended while an answer was due."""


class WorkerLate(Exception):
    """No answer came within the limit."""


class WorkerStarved(Exception):
    """No answer came, and the worker was not given the time on a core that its limit allows."""


class Stopwatch:
    """The seconds that a process has worked or slept; those it stood in line for a core are the machine's, not its own.

    One that computes for ever and one that hangs in a sleep both run out of their limit; one that a busy machine does
    not run does not. Elsewhere than on Linux it is the wall clock.
    """

    def __init__(self, pid: int) -> None:
        self._stat, self._schedstat = f"/proc/{pid}/stat", f"/proc/{pid}/schedstat"
        self._clock = (~pid << 3) | 2  # the number that clock_getcpuclockid(3) gives for a process on Linux
        self.start()

    def start(self) -> None:
        """Count from now."""
        self._begun, self._worked, self._stood = time.monotonic(), self._work(), self._line()

    def wall(self) -> float:
        """Seconds of wall clock since the start."""
        return time.monotonic() - self._begun

    def seconds(self) -> float:
        """The process's own seconds since the start.

        The kernel books time in line only when the line ends: of one that stands there just now, its work counts.
        """
        try:
            with open(self._stat, encoding="ascii") as stat:
                is_ready = stat.read().rpartition(")")[2].split()[0] == "R"
        except OSError:  # it has ended, or there is no /proc
            is_ready = False
        return min(self.wall(), self._work() - self._worked) if is_ready else self.wall() - (self._line() - self._stood)

    def _work(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return time.monotonic()

    def _line(self) -> float:
        """Seconds that its main thread was ready to run and did not (Linux, sched-stats.rst: the second figure)."""
        try:
            with open(self._schedstat, encoding="ascii") as schedstat:
                return int(schedstat.read().split()[1]) * 1e-9
        except OSError:
            return 0.0


class WorkerProcess:
    """A fresh interpreter that holds the verifiers; at most one thread talks to it at a time."""

    def __init__(self, specs: Mapping[str, VerifierSpec], memory_mb: int) -> None:
        self._stderr = tempfile.TemporaryFile(mode="ab+")  # noqa: SIM115  # lives as long as the worker
        self._bell, ringer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _ENTRY, str(Path(__file__).resolve().parent.parent), str(ringer)],
                pass_fds=[ringer],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                env=_environment(),
                start_new_session=True,  # Ctrl-C reaches the trainer, not the graders; kill() reaches their children
            )
        except OSError:
            os.close(self._bell)
            self._stderr.close()
            raise
        finally:
            os.close(ringer)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        self._readable, self._writable, self._rung = select.poll(), select.poll(), select.poll()
        self._readable.register(self._from, select.POLLIN)
        self._rung.register(self._bell, select.POLLIN)
        self._writable.register(self._to, select.POLLOUT)
        self._buffer, self._batch, self._is_garbled = bytearray(), 0, False
        self.stopwatch = Stopwatch(self.pid)
        self._ending = threading.Lock()
        self._hello = {
            "parent": os.getpid(),
            "sys_path": [entry or os.getcwd() for entry in ["", *sys.path]],
            "memory_mb": memory_mb,
            "specs": {name: asdict(spec) for name, spec in specs.items()},
        }

    def wait_ready(self, timeout: float) -> tuple[dict[str, float], dict[str, float]]:
        """Finish the start-up; returns each verifier's lowest score and the seconds it asks for.

        Raises `WorkerStartError`.
        """
        try:
            self.send(self._hello, timeout)
            answer = self.receive(timeout)
        except WorkerLate:
            self.kill()
            raise WorkerStartError(f"a grading worker was not ready within {timeout} s") from None
        except WorkerDied:
            raise WorkerStartError(f"a grading worker died while starting: {self.obituary()}") from None
        if "failed" in answer:
            self.kill()
            raise WorkerStartError(answer["failed"], is_final=True)
        return answer["ready"], answer["needs_seconds"]

    def send(self, message: Any, timeout: float) -> None:
        """Write one message; raises `WorkerDied` or `WorkerLate`. The worker must be idle, so that it reads."""
        self._write(encode_frame(message), timeout)

    def _write(self, data: bytes, timeout: float) -> None:
        left, deadline = memoryview(data), time.monotonic() + timeout
        while left:
            if not self._writable.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise WorkerLate
            try:
                left = left[os.write(self._to, left[:65536]) :]
            except BlockingIOError:  # the poll promised less room than we offered
                continue
            except BrokenPipeError:
                raise WorkerDied from None

    def send_batch(self, bodies: list[bytes], timeout: float) -> None:
        """Send jobs (each as JSON) as one frame with a number, by which the worker rings; raises as `send` does."""
        self._batch = (self._batch + 1) % 256
        self._write(frame(b"[%d,[%b]]" % (self._batch, b",".join(bodies))), timeout)

    def take_back(self) -> bool:
        """Ask the worker, at work in a batch, to begin no more of it; False when it cannot be asked now."""
        try:
            self.send((0, []), 0.0)
        except (WorkerDied, WorkerLate):
            return False
        return True

    def skip(self, patience: float) -> None:
        """After `take_back`: read past what it had begun; raises as `receive_fairly` does, each answer by itself."""
        self.stopwatch.start()
        while "skipped" not in self.receive_fairly(patience):
            self.stopwatch.start()

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next frame of the worker; raises `WorkerLate` after timeout seconds, `WorkerDied` when it ended."""
        deadline = time.monotonic() + timeout
        while (answer := self._next_frame()) is None:
            self._read(max(0.0, deadline - time.monotonic()))
        return answer

    def receive_fairly(self, limit: float) -> dict[str, Any]:
        """The next frame; raises `WorkerLate` when the stopwatch is at limit seconds, `WorkerStarved` at far more."""
        while (spent := self.stopwatch.seconds()) < limit:
            if self.stopwatch.wall() > limit + STARVED:
                raise WorkerStarved
            try:
                return self.receive(max(0.005, limit - spent))
            except WorkerLate:
                continue
        raise WorkerLate

    def receive_batch(self, timeout: float) -> list[dict[str, Any]]:
        """What the worker has answered when it rings for the last batch sent, or after timeout seconds.

        The answers stand in the pipe as soon as they are known, so that none is lost with a worker that is killed;
        but whoever waits for them is woken once a batch.
        """
        deadline, answers = time.monotonic() + timeout, list[dict[str, Any]]()
        while self._rung.poll(max(0.0, deadline - time.monotonic()) * 1000):
            rung = os.read(self._bell, 4096)
            if not rung or self._batch in rung:
                break
        try:
            while True:
                while (answer := self._next_frame()) is not None:
                    answers.append(answer)
                self._read(0.0)
        except (WorkerLate, WorkerDied):  # nothing more now; whoever waits for the next answer learns which
            return answers

    def _next_frame(self) -> dict[str, Any] | None:
        if len(self._buffer) < HEADER.size or self._is_garbled:
            return None
        end = HEADER.size + HEADER.unpack_from(self._buffer)[0]
        if end > REPLY_LIMIT:
            self._is_garbled = True
            return None
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        try:
            answer: dict[str, Any] = json.loads(body)
        except (ValueError, RecursionError):
            self._is_garbled = True
            return None
        self._is_garbled = not _is_message(answer)
        return None if self._is_garbled else answer

    def _read(self, timeout: float) -> None:
        if self._is_garbled:  # foreign code wrote into the pipe: nothing that follows can be trusted
            raise WorkerDied
        if not self._readable.poll(timeout * 1000):
            raise WorkerLate
        chunk = os.read(self._from, 65536)
        if not chunk:
            raise WorkerDied
        self._buffer += chunk

    def obituary(self) -> str:
        """How the process ended and the last of what it said."""
        if self._is_garbled:
            self.kill()
            return "something other than its answers came through the worker's pipe"
        for _ in range(100):  # its pipe is closed already: it is about to end by itself, and we want to know how
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.01)
        self.kill()
        status = self._process.returncode
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - STDERR_KEPT))
        said = self._stderr.read().decode("utf-8", "replace").strip()
        return f"{how}{'; it said: ' + said if said else ''}"

    def interrupt(self) -> None:
        """SIGKILL to the process and everything in its session, from any thread."""
        with self._ending:
            if self._process.returncode is None:  # not reaped: the group's id is still ours
                os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """`interrupt`, wait for the end, close the pipes. Safe to call twice, from the thread that talks to it."""
        self.interrupt()
        with self._ending:
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1

    def empty_stderr(self) -> None:
        """Keep a talkative verifier from filling the disk."""
        if os.fstat(self._stderr.fileno()).st_size > STDERR_LIMIT:
            os.ftruncate(self._stderr.fileno(), 0)

    @property
    def pid(self) -> int:
        """The process id, for people and tests."""
        return self._process.pid


_OUTCOMES = frozenset(Outcome)


def _is_message(message: Any) -> bool:
    """Whether a frame is one that our worker sends."""
    if not isinstance(message, dict):
        return False
    if message.keys() == {"score", "outcome", "detail", "seconds"}:
        return str(message["outcome"]) in _OUTCOMES and isinstance(message["detail"], dict)
    return not message.keys().isdisjoint(("ready", "failed", "skipped"))


_ENTRY = "import sys; sys.path.insert(0, sys.argv[1]); from rewards.worker import main; sys.exit(main())"


def _environment() -> dict[str, str]:
    """The parent's environment without what a launcher put there: a grader is no rank of the training job."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in LAUNCHER_VARIABLES and not key.startswith(LAUNCHER_PREFIXES)
    }
    return {**kept, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
