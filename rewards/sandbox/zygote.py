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
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from typing import Any, NoReturn

from . import bubblewrap, case, cgroup, jail, landlock, linux, seccomp
from .limits import Level, Limits

_WARM = (
    "abc array ast bisect cmath collections contextlib copy dataclasses datetime decimal enum fractions functools gc "
    "heapq importlib inspect io itertools json math operator os pathlib queue random re statistics string struct "
    "subprocess sys textwrap threading time traceback types typing"
)
DESCRIPTORS = 7
_WRITABLE_DEVICES = ("/dev/null", "/dev/zero", "/dev/full")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the cases of one jail run."""

    level: Level
    bubblewrap: str | None
    """The program that makes the jail, if it is not made here."""
    scratch: str
    group: list[str]
    """What the control group bounds."""


def main(control_descriptor: int) -> NoReturn:
    """The guard: set up, start the jail, outlive it."""
    control = socket.socket(fileno=control_descriptor)
    config = json.loads(control.recv(1 << 16))
    level = Level(config["level"])
    client = os.pidfd_open(os.getppid())
    _warm_up()
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    group = cgroup.ControlGroup(config["group_memory"], config["group_processes"])
    base = tempfile.mkdtemp(prefix=cgroup.PREFIX) if level != Level.FULL else None
    scratch = jail.SCRATCH if base is None else f"{base}/box/case"
    if base is not None:
        os.mkdir(os.path.dirname(scratch), 0o700)
        os.mkdir(case.trash_of(scratch), 0o700)
    place = Place(level, config["bubblewrap"], scratch, group.layers)
    go_read, go_write = os.pipe()
    intermediate = os.fork()
    if intermediate == 0:
        os.close(go_write)
        os.read(go_read, 1)
        _intermediate(control, config, place)
    control.close()
    group.add(intermediate)
    os.write(go_write, b"g")
    poll = select.poll()
    poll.register(client, select.POLLIN)
    poll.register(os.pidfd_open(intermediate), select.POLLIN)
    poll.poll()
    _end_everything(intermediate)
    group.remove()
    if base is not None:
        _remove(base)
    os._exit(0)


def _remove(base: str) -> None:
    """Remove the directory of the cases: at once, or by a process that outlives this one."""
    with contextlib.suppress(OSError):
        case.empty_directory(base, case.CLEANING_SECONDS)
        if os.listdir(base) and os.fork() != 0:
            return
        case.empty_directory(base)
        os.rmdir(base)


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


def _intermediate(control: socket.socket, config: dict[str, Any], place: Place) -> NoReturn:
    parent = os.pidfd_open(os.getppid())
    try:
        if place.bubblewrap is not None:
            if os.geteuid() == 0 and not any(layer.startswith("pids") for layer in place.group):
                raise OSError("as root, bubblewrap cannot bound processes without a pids control group")
            os.set_inheritable(control.fileno(), True)
            command = bubblewrap.command(place.bubblewrap, jail.readable_paths(config["prefixes"]))
            arguments = [str(control.fileno()), json.dumps(config), json.dumps(place.group)]
            os.execv(place.bubblewrap, [*command, *arguments])
        if place.level == Level.FULL:
            jail.enter(config["prefixes"])
        elif os.geteuid() == 0:
            user = jail.unique_user()
            for path in (os.path.dirname(place.scratch), case.trash_of(place.scratch)):
                os.chown(path, user, user)
            os.chmod(os.path.dirname(os.path.dirname(place.scratch)), 0o711)
            jail.become_user(user)
        _die_with(parent)
        own = os.pidfd_open(os.getpid())
        zygote = os.fork()
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        os._exit(1)
    if zygote == 0:
        _zygote(control, config, place, own)
    control.close()
    os.waitpid(zygote, 0)
    os._exit(0)


def inside_bubblewrap(control_descriptor: int, config: str, group: str) -> NoReturn:
    """The zygote as process 1 of a jail that bubblewrap made."""
    _warm_up()
    settings = json.loads(config)
    place = Place(Level.FULL, settings["bubblewrap"], jail.SCRATCH, json.loads(group))
    _zygote(socket.socket(fileno=control_descriptor), settings, place, None)


def _warm_up() -> None:
    for name in _WARM.split():
        importlib.import_module(name)
    importlib.import_module("site").setquit()  # exit() and quit(), as every program has them


def _die_with(parent: int) -> None:
    """Be killed when the parent (given as pidfd) ends; end now if it has."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([parent], [], [], 0)[0]:
        os._exit(1)


def _zygote(control: socket.socket, config: dict[str, Any], place: Place, parent: int | None) -> NoReturn:
    layers = {"control group": " ".join(place.group) or "off: no writable control group"}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a handler would let the jail's programs interrupt its process 1
    try:
        if parent is not None:
            _die_with(parent)
        if place.bubblewrap is not None:
            layers["namespaces"] = "user pid mount net ipc uts cgroup, by bubblewrap"
        elif place.level == Level.FULL:
            socket.sethostname("sandbox")
            _mount_proc()
            _relocate(jail.new_places(config["prefixes"]))
            layers["namespaces"] = "user pid mount net ipc uts cgroup"
        else:
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
            layers["namespaces"] = "off"
        host = _host(place, config, layers)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        control.send(json.dumps({"ready": layers}).encode())
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        os._exit(1)
    places = jail.new_places(config["prefixes"]) if place.level == Level.FULL and place.bubblewrap is None else {}
    sys.path[:] = [path for path in sys.path if path != jail.moved_path(config["package_root"], places)]
    sys.path += [jail.moved_path(path, places) for path in config["import_paths"]]
    home = f"{host.scratch}/home"
    tempfile.tempdir = None  # chosen anew, by the program's own environment
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME=home, TMPDIR=home, LANG="C.UTF-8", OMP_NUM_THREADS="1")
    os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    gc.collect()
    gc.freeze()
    gc.disable()
    _serve(control, host)


def _relocate(places: dict[str, str]) -> None:
    """Tell the interpreter where its files are in the jail."""
    for name in ("prefix", "exec_prefix", "base_prefix", "base_exec_prefix", "executable", "_base_executable"):
        setattr(sys, name, jail.moved_path(getattr(sys, name), places))
    sys.path[:] = [jail.moved_path(path, places) for path in sys.path]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        for owner, name in ((module, "__file__"), (spec, "origin"), (getattr(spec, "loader", None), "path")):
            path = getattr(owner, name, None)
            if isinstance(path, str) and not isinstance(owner, type):
                setattr(owner, name, jail.moved_path(path, places))
        search = getattr(module, "__path__", None)
        if isinstance(search, list):
            search[:] = [jail.moved_path(path, places) for path in search]


def _mount_proc() -> None:
    """This pid namespace's own /proc; without what is no process, and for each process without those that it may not
    trace, where the kernel can leave them out (Linux 5.8)."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    try:
        linux.mount("proc", "/proc", "proc", flags, "subset=pid,hidepid=4")
    except OSError:
        linux.mount("proc", "/proc", "proc", flags)


def _host(place: Place, config: dict[str, Any], layers: dict[str, str]) -> case.Host:
    level, scratch = place.level, place.scratch
    abi = landlock.abi() if level > Level.RLIMIT_ONLY else 0
    layers["landlock"] = f"abi {abi}" if abi else "off"
    if not abi and (level == Level.LANDLOCK or place.bubblewrap is not None):
        raise OSError("the kernel has no Landlock")  # in a jail of bubblewrap's it is what shields the zygote
    seccomp_on = level > Level.RLIMIT_ONLY or _takes_filters()
    layers["seccomp"] = "on" if seccomp_on else "off: the kernel takes no filter"
    with open("/proc/self/statm") as file:
        own_memory = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    if level == Level.FULL:
        readable, listed = ["/"], []
    else:
        readable = [*jail.readable_paths(config["prefixes"]), "/dev/urandom", "/dev/random"]
        listed = config["import_paths"]
    return case.Host(
        level=level,
        mounts=level == Level.FULL and place.bubblewrap is None,
        seccomp=seccomp_on,
        host_sockets=level < Level.FULL,
        unscoped_signals=level < Level.FULL and abi < 6,
        ruleset=landlock.make_ruleset(abi, readable, listed, [os.path.dirname(scratch), *_WRITABLE_DEVICES])
        if abi
        else None,
        scratch=scratch,
        own_memory=own_memory,
    )


def _takes_filters() -> bool:
    """Whether this kernel and machine take the filter of system calls: tried in a child."""
    child = os.fork()
    if child == 0:
        try:
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            linux.set_seccomp_filter(seccomp.build_filter())
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _serve(control: socket.socket, host: case.Host) -> NoReturn:
    """Keep one case after another until the client closes its end."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, DESCRIPTORS)
        if not message:
            os._exit(0)
        case.keep(host, Limits(**json.loads(message)), case.Descriptors(*descriptors))
