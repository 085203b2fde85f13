"""One test case: the untrusted program, confined, and its keeper, who watches it.

The keeper is the zygote itself, process 1 of the jail (at the lower levels: a subreaper). It forks the program, holds
the clock, counts memory and processor time of all the program's processes, and is the only one that can write the
report. At the end it kills everything below it and waits until nothing is left: one case at a time is in a jail, and
the next one finds it empty, with a new file system. The program lives in a user namespace of its own, so it may neither
trace nor read the keeper, and its process limit counts its own processes alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import math
import os
import resource
import secrets
import select
import signal
import time
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

from . import frames, landlock, linux, runner, seccomp
from .limits import Level, Limits

SAMPLE_SECONDS = 0.04
"""Seconds between two looks at the memory and processor time of a running tree."""
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SOCKET_BYTES = 416 << 10
"""The most that may lie in one socket: twice Linux's default of net.core.wmem_max."""
PAYLOAD, READY = 4, 5
"""Descriptors in the untrusted process, after 0, 1, 2 and the channel, 3; gone when foreign code runs."""
CLEANING_SECONDS = 1.0
"""How long the keeper of the next case may remove what former ones left; what remains is removed later."""
_SCRATCH_FLAGS = linux.MS_NOSUID | linux.MS_NODEV


@dataclass(frozen=True, slots=True)
class Host:
    """What the zygote knows and every case needs."""

    level: Level
    mounts: bool
    """True in a jail of our own making, where the zygote may mount and make user namespaces."""
    seccomp: bool
    """True where the kernel takes a filter of system calls."""
    host_sockets: bool
    """True where the program shares the host's files or network: the filter then keeps it from the host's sockets."""
    unscoped_signals: bool
    """True where only the filter can keep signals in: no pid namespace, and no Landlock, or one before ABI 6."""
    ruleset: int | None
    """Descriptor of the Landlock rules."""
    scratch: str
    """Where a case's files are: a mount point of the jail, or a directory of the host at the lower levels."""
    own_memory: int
    """Bytes of address space that the zygote itself has."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What the caller passes with a case, in this order."""

    payload: int
    stdin: int
    stdout: int
    stderr: int
    channel: int
    status: int
    life: int

    def all(self) -> tuple[int, ...]:
        """The seven numbers."""
        return self.payload, self.stdin, self.stdout, self.stderr, self.channel, self.status, self.life


def keep(host: Host, limits: Limits, given: Descriptors) -> None:
    """Run one case from its files to its report; afterwards the jail is empty again."""
    ready, ready_write = os.pipe()
    program = None
    report: dict[str, Any]
    try:
        _make_scratch(host, limits)
        program = os.fork()
        if program == 0:
            _become_program(host, limits, given, ready_write)
    except OSError as error:
        report = {"setup_error": str(error)}
    for descriptor in (ready_write, *given.all()[:5]):
        os.close(descriptor)
    if program is not None:
        said = os.read(ready, 4096)
        if said == b"R":
            report = _watch(host, limits, program, given.life)
        else:
            report = {"setup_error": said.decode("utf-8", "replace") or "the process died while it was confined"}
    os.close(ready)
    _kill_tree()
    with contextlib.suppress(frames.Closed):  # then the caller has gone: nobody is left to tell
        frames.send(given.status, report)
    os.close(given.status)
    os.close(given.life)
    _drop_scratch(host)


def _make_scratch(host: Host, limits: Limits) -> None:
    """A new, empty file system (where the zygote may not mount: an empty directory) for this case."""
    if host.mounts:
        options = f"size={limits.files_mb}m,nr_inodes=8192,mode=700"
        linux.mount("tmpfs", host.scratch, "tmpfs", _SCRATCH_FLAGS, options)
    else:
        os.mkdir(host.scratch, 0o700)
    for name in ("home", "code", "shm"):
        os.mkdir(f"{host.scratch}/{name}", 0o700)


def _drop_scratch(host: Host) -> None:
    if host.mounts:
        linux.unmount(host.scratch)
        return
    box = os.path.dirname(host.scratch)  # the program may write there too
    if host.level == Level.FULL:  # bubblewrap's jail: in memory
        empty_directory(box)
        return
    for name in os.listdir(box):
        path = f"{box}/{name}"
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)  # else it could not be moved
        os.rename(path, f"{trash_of(host.scratch)}/{secrets.token_hex(16)}")
    empty_directory(trash_of(host.scratch), CLEANING_SECONDS)


def trash_of(scratch: str) -> str:
    """Where the files of former cases wait to be removed, below the full level."""
    return f"{os.path.dirname(os.path.dirname(scratch))}/trash"


def empty_directory(path: str, seconds: float = math.inf) -> None:
    """Remove all that is in a directory, however deep: it goes down and up by one descriptor, and never by a path.

    After so many seconds the rest is left: some file systems need milliseconds for each directory.
    """
    end = time.monotonic() + seconds
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    here = os.open(path, flags)
    left = [_remove_files(here)]  # of each directory from `path` down to here: the directories in it
    try:
        while (left[-1] or len(left) > 1) and time.monotonic() < end:
            if left[-1]:
                there = os.open(left[-1][-1], flags, dir_fd=here)
                left.append(_remove_files(there))
            else:
                there = os.open("..", flags, dir_fd=here)
                left.pop()
                os.rmdir(left[-1].pop(), dir_fd=there)
            os.close(here)
            here = there
    finally:
        os.close(here)


def _remove_files(directory: int) -> list[str]:
    """Remove what is in a directory and is none itself; returns the directories in it, made accessible."""
    found = []
    for name in os.listdir(directory):
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            os.chmod(name, 0o700, dir_fd=directory)
            found.append(name)
    return found


def _watch(host: Host, limits: Limits, program: int, life: int) -> dict[str, Any]:
    start = time.monotonic()
    ended = os.pidfd_open(program)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(life, select.POLLIN)
    killed = None
    while killed is None:
        left = limits.wall_seconds - (time.monotonic() - start)
        events = poll.poll(max(0.0, min(left, SAMPLE_SECONDS)) * 1000)
        if any(descriptor == ended for descriptor, _ in events):
            break
        cpu, memory = _usage(limits.open_files)
        if events:
            killed = "caller"
        elif left <= 0:
            killed = "wall"
        elif cpu > limits.cpu_seconds:
            killed = "cpu"
        elif memory > limits.memory_mb << 20 and _proportional_memory(limits.open_files) > limits.memory_mb << 20:
            killed = "memory"
    wall = time.monotonic() - start
    if killed is not None:
        _signal_tree()
    os.close(ended)
    _, status, usage = os.wait4(program, 0)
    return {
        "killed": killed,
        "exit": os.waitstatus_to_exitcode(status),
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": wall,
        "memory_mb": usage.ru_maxrss / 1024,
    }


def _usage(open_files: int) -> tuple[float, int]:
    """Processor seconds and bytes of all processes below the keeper; pages that they share count in each of them.

    Bytes: what is resident, and what the buffers of their sockets can hold, which is in no process's own account.
    """
    cpu, memory, sockets = 0, 0, set()  # type: int, int, set[str]
    for name in descendants():
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                numbers = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        cpu += sum(map(int, numbers[11:15]))
        memory += int(numbers[21]) * _PAGE
        sockets |= _sockets_of(name, open_files)
    return cpu / _TICK, memory + len(sockets) * _SOCKET_BYTES


def _sockets_of(process: str, open_files: int) -> set[str]:
    """The sockets that a process has open, by their names in /proc; of a process that hides: as many as it may have."""
    found = set()
    try:
        with os.scandir(f"/proc/{process}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor.path)
                    if target.startswith("socket:"):
                        found.add(target)
    except PermissionError:
        return {f"hidden: {process} {index}" for index in range(open_files)}
    except OSError:  # it has ended
        pass
    return found


def _proportional_memory(open_files: int) -> int:
    """As `_usage`, but a page that n processes share counts as 1/n in each. A process that hides counts in full."""
    total, sockets = 0, set()  # type: int, set[str]
    for name in descendants():
        sockets |= _sockets_of(name, open_files)
        try:
            with open(f"/proc/{name}/smaps_rollup", "rb") as file:
                total += sum(int(line.split()[1]) << 10 for line in file if line.startswith(b"Pss:"))
        except PermissionError:
            with contextlib.suppress(OSError), open(f"/proc/{name}/statm", "rb") as file:
                total += int(file.read().split()[1]) * _PAGE
        except OSError:  # it has ended
            continue
    return total + len(sockets) * _SOCKET_BYTES


def descendants() -> list[str]:
    """Process ids below this process, as names in /proc: in a pid namespace of one's own, all that there are."""
    own = str(os.getpid())
    everyone = [name for name in os.listdir("/proc") if name.isdigit() and name != own]
    if own == "1":
        return everyone
    parents: dict[str, str] = {}
    for name in everyone:
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            parents[name] = file.read().rpartition(b")")[2].split()[1].decode()
    found = []
    for name in parents:
        above: str | None = name
        while above is not None and above != own:
            above = parents.get(above)
        if above == own:
            found.append(name)
    return found


def _signal_tree() -> None:
    """SIGKILL to everything below the keeper."""
    # -1, from process 1 of the pid namespace: all others, at once
    for target in [-1] if os.getpid() == 1 else map(int, descendants()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, signal.SIGKILL)


def _kill_tree() -> None:
    """SIGKILL to everything below the keeper, until nothing is left of it."""
    while True:
        _signal_tree()
        try:
            os.waitpid(-1, 0)  # orphans become the keeper's children: without children, nobody is left
        except ChildProcessError:
            return


def _become_program(host: Host, limits: Limits, given: Descriptors, ready: int) -> NoReturn:
    """In the child: take the descriptors, give up every right, say so, run the foreign code."""
    status = 127
    try:
        try:
            payload = _confine(host, limits, given, ready)
        except Exception as error:  # foreign code has not run yet: this is the machinery's own failure
            os.write(READY, f"{type(error).__name__}: {error}".encode())
            os._exit(127)
        os.write(READY, b"R")
        os.close(READY)
        gc.enable()
        status = runner.run(payload, host.scratch)
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(status)


def _arrange_descriptors(given: Descriptors, ready: int, ruleset: int | None) -> None:
    """0 to 5 as the program has them, 6 the Landlock rules; nothing else stays open."""
    wanted = [given.stdin, given.stdout, given.stderr, given.channel, given.payload, ready]
    if ruleset is not None:
        wanted.append(ruleset)
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64) for descriptor in wanted]
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, number, inheritable=number < 3)
    os.closerange(len(wanted), 1 << 20)


def _confine(host: Host, limits: Limits, given: Descriptors, ready: int) -> dict[str, Any]:
    """Give up every right but those of `limits`; returns the payload."""
    _arrange_descriptors(given, ready, host.ruleset)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the zygote has none
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # the keeper is not; the program may look at itself in /proc
    if host.mounts:
        user, group = os.geteuid(), os.getegid()
        linux.unshare(linux.CLONE_NEWUSER)
        for name, line in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
            write_file(f"/proc/self/{name}", line)
    write_file("/proc/self/oom_score_adj", "1000")  # out of memory, the kernel ends this process before any other
    os.chdir(f"{host.scratch}/home")
    _set_rlimits(host, limits)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if host.level == Level.FULL:
        linux.drop_capabilities()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if host.ruleset is not None:
        landlock.restrict(6)
        os.close(6)
    if host.seccomp:
        only_signal = os.getpid() if host.unscoped_signals else None
        linux.set_seccomp_filter(seccomp.build_filter(only_signal, host.host_sockets))
    with open(PAYLOAD, "rb", closefd=False) as file:
        payload: dict[str, Any] = json.loads(file.readline())
        payload["offset"] = file.tell()
    return payload


def write_file(path: str, text: str) -> None:
    """One write to a file of the kernel's."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _set_rlimits(host: Host, limits: Limits) -> None:
    wanted = {
        resource.RLIMIT_AS: host.own_memory + (limits.memory_mb << 20),
        resource.RLIMIT_CPU: int(limits.cpu_seconds) + 2,  # the keeper is first; this is for when it starves
        resource.RLIMIT_FSIZE: limits.files_mb << 20,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 1,  # 0 would still feed a core_pattern that is a pipe
        resource.RLIMIT_STACK: 64 << 20,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    others = 0 if host.mounts else _processes_of(os.getuid())
    wanted[resource.RLIMIT_NPROC] = limits.processes + others
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _processes_of(user: int) -> int:
    """Threads of this user on the machine: what RLIMIT_NPROC counts where there is no user namespace."""
    count = 0
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count
