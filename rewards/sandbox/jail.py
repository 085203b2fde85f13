"""From a process of the host to a jail: new namespaces and a root that holds an interpreter and little else."""

from __future__ import annotations

import os
import stat

from . import linux

_OWN_NAMESPACES = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWCGROUP
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_FIRST_USER = 0x70000000
SCRATCH = "/box/tmp"
"""Where each case has a file system of its own in the jail; /tmp is another name of it. (It is the directory above it
that has the Landlock rule, since a rule does not cross from a mount point into the mount.)"""


def readable_paths(prefixes: list[str]) -> list[str]:
    """The directories and files that programs may read: the system's programs and libraries, and the interpreter."""
    found = [path for path in _SYSTEM if os.path.exists(path)]
    for prefix in prefixes:
        path = os.path.realpath(prefix)
        if not any(path == known or path.startswith(known.rstrip("/") + "/") for known in found):
            found.append(path)
    return found


def new_places(prefixes: list[str]) -> dict[str, str]:
    """Where the jail has what is outside the system's own directories: a path of the host would tell its users' names.

    Returns: path on the host -> path in the jail, for each such path and for the directory above it. Empty where the
    interpreter is told to look for libraries at their paths on the host.
    """
    moved: dict[str, str] = {}
    if "LD_LIBRARY_PATH" in os.environ:
        return moved
    for path in readable_paths(prefixes):
        if path not in _SYSTEM:
            above, name = os.path.split(path)
            moved.setdefault(above, f"/python/{len(moved)}")
            moved[path] = f"{moved[above]}/{name}"
    return moved


def moved_path(path: str, moved: dict[str, str]) -> str:
    """A path of the host as the jail has it."""
    for old in sorted(moved, key=len, reverse=True):
        if path == old or path.startswith(old + "/"):
            return moved[old] + path[len(old) :]
    return path


def unique_user() -> int:
    """A user id that no account has: so that limits counted by user count this sandbox alone."""
    return _FIRST_USER + os.getpid()


def become_user(user: int) -> None:
    """Give up root for good."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def enter(prefixes: list[str]) -> None:
    """Leave the host: afterwards this process's children are in the jail, the first one as its process 1.

    Root builds the jail's file system as root and then becomes a user without account; anybody else builds it inside
    a user namespace. Raises `OSError` where the kernel does not allow it.
    """
    paths = {path: moved_path(path, new_places(prefixes)) for path in readable_paths(prefixes)}
    if os.geteuid() == 0:
        linux.unshare(linux.CLONE_NEWNS)
        _build_root(paths)
        become_user(unique_user())
        linux.prctl(linux.PR_SET_DUMPABLE, 1)  # setresuid took it, and with it /proc/self/uid_map
        _unshare_with_map()
    else:
        _unshare_with_map()
        _build_root(paths)


def _unshare_with_map() -> None:
    user, group = os.geteuid(), os.getegid()
    linux.unshare(_OWN_NAMESPACES)
    for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def _build_root(paths: dict[str, str]) -> None:
    """Build and enter a root that has these paths of the host, each at its place, and a few devices."""
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    links = [path for path in paths if path in _SYSTEM and os.path.islink(path)]
    sources = {path: os.open(path, os.O_PATH) for path in paths if path not in links}
    sources |= {path: os.open(path, os.O_PATH) for path in ["/proc", *(f"/dev/{name}" for name in _DEVICES)]}
    base = "/tmp"
    linux.mount("tmpfs", base, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=1m")
    for path in links:
        os.symlink(os.readlink(path), base + path)
    for path, descriptor in sources.items():
        target = base + paths.get(path, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        source = f"/proc/self/fd/{descriptor}"
        if path in paths:
            linux.bind_read_only(source, target)
        else:
            linux.mount(source, target, None, linux.MS_BIND | linux.MS_REC)
    os.symlink("/proc/self/fd", f"{base}/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{base}/dev/{name}")
    os.symlink(f"{SCRATCH}/shm", f"{base}/dev/shm")
    os.makedirs(base + SCRATCH)
    os.symlink(SCRATCH, f"{base}/tmp")
    for descriptor in sources.values():
        os.close(descriptor)
    linux.become_root_of(base)
    flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", "/", None, flags)
