"""Landlock: what of the file system, of TCP and of other processes' signals a program may reach (Linux 5.13 on)."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from . import linux

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1, 2, 4, 8, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


def abi() -> int:
    """The version of Landlock that the kernel speaks; 0 where it has none."""
    try:
        return linux.syscall(_CREATE, None, 0, 1, what="landlock_create_ruleset")
    except OSError:
        return 0


def _handled(version: int) -> tuple[int, int, int]:
    """All the file-system rights, TCP rights and scopes that this version knows."""
    rights = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):
        rights |= (1 << bit) if version >= since else 0
    return rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0


def make_ruleset(version: int, readable: Iterable[str], listed: Iterable[str], writable: Iterable[str]) -> int:
    """A descriptor of rules: read and execute below `readable`, names only below `listed`, anything below `writable`.

    No TCP (ABI 4), no signal and no abstract socket to a process outside (ABI 6). Paths that do not exist are left
    out. A rule on a mount point does not reach what is mounted there; one on the directory above it does.
    """
    rights, tcp, scopes = _handled(version)
    size = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("QQQ", rights, tcp, scopes)[:size]
    ruleset = linux.syscall(_CREATE, attributes, size, 0, what="landlock_create_ruleset")
    read = _EXECUTE | _READ_FILE | _READ_DIR
    for paths, allowed in ((readable, read), (listed, _READ_DIR), (writable, rights)):
        for path in paths:
            _allow(ruleset, path, allowed & rights)
    return ruleset


def restrict(ruleset: int) -> None:
    """Put this process, and all that it starts, under the rules for good. Needs no_new_privs."""
    linux.syscall(_RESTRICT, ruleset, 0, what="landlock_restrict_self")


def _allow(ruleset: int, path: str, allowed: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(beneath).st_mode):
            allowed &= _FILE_RIGHTS
        rule = struct.pack("=Qi", allowed, beneath)
        linux.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0, what=f"landlock_add_rule {path}")
    finally:
        os.close(beneath)
