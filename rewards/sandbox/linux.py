"""The few Linux calls that the standard library does not have, through ctypes.

Every function raises `OSError` with the kernel's errno and the name of the call.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 38, 36
SECCOMP_MODE_FILTER = 2

# name -> (x86_64, aarch64)
_SYSCALLS = {"pivot_root": (155, 41), "capset": (126, 91), "mount_setattr": (442, 442)}
_MACHINES = {"x86_64": 0, "aarch64": 1}
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def machine() -> int:
    """The column of the syscall tables for this machine; raises `OSError` on one that has none."""
    name = platform.machine()
    if name not in _MACHINES:
        raise OSError(f"the sandbox knows the system calls of {sorted(_MACHINES)}, not of {name!r}")
    return _MACHINES[name]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None, what: str) -> int:
    """A raw system call; integers are passed as 64 bit values."""
    values = [ctypes.c_uint64(a & 0xFFFFFFFFFFFFFFFF) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *values), what)


def _named(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    return syscall(_SYSCALLS[name][machine()], *arguments, what=name)


def unshare(flags: int) -> None:
    """Move this process (for pids: its future children) into new namespaces."""
    _checked(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    arguments = source.encode(), target.encode(), kind.encode() if kind else None
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None)
    _checked(result, f"mount {source} on {target}")


def unmount(target: str) -> None:
    """Take a mount away, at once for new look-ups, and for good when nothing in it is in use."""
    _checked(_libc.umount2(target.encode(), MNT_DETACH), f"umount2 {target}")


def bind_read_only(source: str, target: str) -> None:
    """Show `source` with all that is mounted below it at `target`, read-only."""
    mount(source, target, None, MS_BIND | MS_REC)
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    try:
        _named("mount_setattr", -100, target.encode() + b"\0", _AT_RECURSIVE, attributes, len(attributes))
    except OSError:  # before Linux 5.12: the top mount only, with the flags that a user namespace may not drop
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | 1024 | 2048 | 4096)
        relatime = {1024: 1024, 2048: 2048, 4096: 1 << 21}  # statvfs bit -> mount bit
        flags = (kept & 14) | sum(bit for seen, bit in relatime.items() if kept & seen)
        mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | flags)


def become_root_of(directory: str) -> None:
    """Make a mount point the root of this mount namespace and let go of the old root."""
    os.chdir(directory)
    _named("pivot_root", b".\0", b".\0")
    unmount(".")
    os.chdir("/")


def prctl(option: int, *arguments: int) -> None:
    """prctl(2)."""
    values = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(ctypes.c_int(option), *values), f"prctl({option})")


def drop_capabilities() -> None:
    """Give up every capability of this thread."""
    header = struct.pack("Ii", 0x20080522, 0)
    _named("capset", header, bytes(24))


def set_seccomp_filter(program: bytes) -> None:
    """Install a classic BPF program (8 bytes an instruction); needs no_new_privs or CAP_SYS_ADMIN."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    buffer = ctypes.create_string_buffer(fprog, len(fprog))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(buffer))
