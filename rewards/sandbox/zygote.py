"""The sandbox's own processes: a guard on the host, an intermediate, and the zygote, which forks the cases.

The guard (started by `client`) enters nothing: it waits until the client or the jail ends, kills what is left,
removes the control group, and goes. The intermediate has the namespaces and their death signal. The zygote is process 1
of the jail: interpreter and usual modules warm, nothing else in its memory: payloads arrive as descriptors that it
passes on unread, since what it had read its later children would find in their memory.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any, NoReturn

from . import case, cgroup, jail, landlock, linux, seccomp
from .limits import Level, Limits

_WARM = (
    "abc argparse array ast asyncio base64 bisect calendar cmath collections contextlib copy csv ctypes dataclasses "
    "datetime decimal enum fractions functools gc hashlib heapq importlib inspect io itertools json linecache math "
    "numbers operator os pathlib pprint queue random re secrets select shutil signal socket statistics string struct "
    "subprocess sys tempfile textwrap threading time timeit tokenize traceback types typing unicodedata unittest uuid "
    "weakref zlib"
).split()
DESCRIPTORS = 7


def main(control_descriptor: int) -> NoReturn:
    """The guard: set up, start the jail, outlive it."""
    control = socket.socket(fileno=control_descriptor)
    config = json.loads(control.recv(1 << 16))
    level = Level(config["level"])
    client = os.pidfd_open(os.getppid())
    for name in _WARM:
        importlib.import_module(name)
    importlib.import_module("site").setquit()  # exit() and quit(), as every program has them
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    group = cgroup.ControlGroup(config["group_memory"], config["group_processes"])
    scratch = jail.SCRATCH if level == Level.FULL else tempfile.mkdtemp(prefix=cgroup.PREFIX)
    go_read, go_write = os.pipe()
    intermediate = os.fork()
    if intermediate == 0:
        os.close(go_write)
        os.read(go_read, 1)
        _intermediate(control, config, level, scratch, " ".join(group.layers) or "off: no writable control group")
    control.close()
    group.add(intermediate)
    os.write(go_write, b"g")
    poll = select.poll()
    poll.register(client, select.POLLIN)
    poll.register(os.pidfd_open(intermediate), select.POLLIN)
    poll.poll()
    _end_everything(intermediate)
    group.remove()
    if level != Level.FULL:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)


def _end_everything(intermediate: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(intermediate, signal.SIGKILL)  # the zygote follows by its death signal, the cases with their namespace
    while True:
        for name in case.descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(name), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _intermediate(control: socket.socket, config: dict[str, Any], level: Level, scratch: str, group: str) -> NoReturn:
    parent = os.pidfd_open(os.getppid())
    try:
        if level == Level.FULL:
            jail.enter(config["prefixes"])
        elif os.geteuid() == 0:
            user = jail.unique_user()
            os.chown(scratch, user, user)
            jail.become_user(user)
        _die_with(parent)
        own = os.pidfd_open(os.getpid())
        zygote = os.fork()
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        os._exit(1)
    if zygote == 0:
        _zygote(control, config, level, scratch, own, group)
    control.close()
    os.waitpid(zygote, 0)
    os._exit(0)


def _die_with(parent: int) -> None:
    """Be killed when the parent (given as pidfd) ends; end now if it has."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([parent], [], [], 0)[0]:
        os._exit(1)


def _zygote(
    control: socket.socket, config: dict[str, Any], level: Level, scratch: str, parent: int, group: str
) -> NoReturn:
    try:
        layers = {"control group": group}
        _die_with(parent)
        if level == Level.FULL:
            socket.sethostname("sandbox")
            flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
            linux.mount("proc", "/proc", "proc", flags)
            layers["namespaces"] = "user pid mount net ipc uts cgroup"
        else:
            layers["namespaces"] = "off"
        host = _host(level, config, scratch, layers)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        control.send(json.dumps({"ready": layers}).encode())
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        os._exit(1)
    sys.path[:] = [path for path in sys.path if path != config["package_root"]] + config["import_paths"]
    gc.collect()
    gc.freeze()
    gc.disable()
    signal.signal(signal.SIGCHLD, _reap)
    _serve(control, host)


def _host(level: Level, config: dict[str, Any], scratch: str, layers: dict[str, str]) -> case.Host:
    abi = landlock.abi() if level > Level.RLIMIT_ONLY else 0
    layers["landlock"] = f"abi {abi}" if abi else "off"
    if level == Level.LANDLOCK and not abi:
        raise OSError("the kernel has no Landlock")
    seccomp_on = level > Level.RLIMIT_ONLY
    layers["seccomp"] = "on" if seccomp_on else "off"
    with open("/proc/self/statm") as file:
        own_memory = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    readable = (*jail.readable_paths(config["prefixes"]), "/dev/urandom", "/dev/random")
    return case.Host(level, abi, seccomp.build_filter() if seccomp_on else None, readable, scratch, own_memory)


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _serve(control: socket.socket, host: case.Host) -> NoReturn:
    """Fork a case for each request until the client closes its end."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, DESCRIPTORS)
        if not message:
            os._exit(0)
        limits = Limits(**json.loads(message))
        try:
            namespaces = linux.CLONE_NEWPID | linux.CLONE_NEWNS if host.level == Level.FULL else 0
            keeper = linux.clone(namespaces)
        except OSError as error:
            os.write(descriptors[5], case.refusal(str(error)))
            keeper = -1
        if keeper == 0:
            control.close()
            case.keep(host, limits, case.Descriptors(*descriptors))
        for descriptor in descriptors:
            os.close(descriptor)
