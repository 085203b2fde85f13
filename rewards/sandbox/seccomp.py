"""The system calls that an untrusted program may not make, as a seccomp BPF program.

A denied call returns EPERM, so that a program that only tried goes on; a call newer than the list, and `clone3`,
whose flags a filter cannot read, return ENOSYS, so that the C library falls back. Sockets exist only as AF_UNIX.
Limits, scheduling and priority may be changed of the calling process alone; signals are sent by kill and its kin only.

Setting the action of SIGCHLD is answered as done, and is not done: the kernel counts the processor time of a child that
nobody waits for nowhere, and a program that ignores SIGCHLD has such children.
"""

from __future__ import annotations

import errno
import signal
import socket
import struct

from . import linux

# name -> (x86_64, aarch64); None where the machine has no such call
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "ioprio_set": (251, 30),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "perf_event_open": (298, 241),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # memory that RLIMIT_AS does not count, or that outlives its process
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # wide kernel surfaces that no judged program needs
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "vmsplice": (278, 75),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "uselib": (134, None),
    "_sysctl": (156, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # the machine itself
    "syslog": (103, 116),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
}
_SOCKET, _SOCKETPAIR, _CONNECT, _CLONE, _IOCTL, _FCNTL = (41, 198), (53, 199), (42, 203), (56, 220), (16, 29), (72, 25)
_SIGACTION, _SETPRIORITY, _CLONE3, _NEWEST_KNOWN = (13, 134), (141, 140), 435, 462
_KILLS = ((62, 129), (200, 130), (234, 131))  # kill, tkill, tgkill
_OF_A_PROCESS = ((302, 261), (142, 118), (144, 119), (203, 122), (314, 274))
"""prlimit64, sched_setparam, sched_setscheduler, sched_setaffinity, sched_setattr: of the process in argument 0."""
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_NAMESPACE_FLAGS = 0x7E020000
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_SIGNAL_OWNER = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP: whom a socket signals
_SIGNAL_BY_DESCRIPTOR = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
_SOCKET_TYPE = 0xF

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NR_OFFSET, _ARCH_OFFSET, _ARGUMENT_OFFSET = 0, 4, 16


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _refuse(number: int) -> bytes:
    return _op(_RETURN, _ERRNO | number)


def _argument(index: int, high_half: bool = False) -> bytes:
    """Load 32 bits of an argument: all that the kernel looks at where the argument is an int."""
    return _op(_LOAD, _ARGUMENT_OFFSET + 8 * index + 4 * high_half)


def _when_call(number: int, *body: bytes) -> bytes:
    """Run `body`, which must end in a return, for one call number; the accumulator holds the number."""
    code = b"".join(body)
    return _op(_JUMP_EQUAL, number, 0, len(code) // 8) + code


def _allow_only(index: int, values: tuple[int, ...], mask: int | None = None) -> bytes:
    """Go on where the argument (under the mask) is one of the values; else refuse the call."""
    masked = _op(_AND, mask) if mask is not None else b""
    tests = [_op(_JUMP_EQUAL, value, len(values) - place, 0) for place, value in enumerate(values)]
    return _argument(index) + masked + b"".join(tests) + _refuse(errno.EPERM)


def _allow_all_but(index: int, values: tuple[int, ...]) -> bytes:
    """Refuse the call where the argument is one of the values; else allow it."""
    tests = [_op(_JUMP_EQUAL, value, len(values) - place, 0) for place, value in enumerate(values)]
    return _argument(index) + b"".join(tests) + _op(_RETURN, _ALLOW) + _refuse(errno.EPERM)


def build_filter(only_signal: int | None = None, host_sockets: bool = False) -> bytes:
    """The BPF program for this machine.

    Args: only_signal: the one process that kill and its kin may reach, None for all but process 1; host_sockets: True
    where the program shares its file system or network with the host, so that an address could name a socket of the
    host's: then only pairs of sockets are connected.
    """
    column = linux.machine()
    allow = _op(_RETURN, _ALLOW)
    program = _op(_LOAD, _ARCH_OFFSET) + _op(_JUMP_EQUAL, _AUDIT_ARCH[column], 1, 0) + _op(_RETURN, _KILL_PROCESS)
    program += _op(_LOAD, _NR_OFFSET)
    program += _op(_JUMP_GREATER_EQUAL, _NEWEST_KNOWN + 1, 0, 1) + _refuse(errno.ENOSYS)  # x32 calls too
    program += _when_call(_CLONE3, _refuse(errno.ENOSYS))
    own_kind = _allow_only(0, (socket.AF_UNIX,))
    if host_sockets:  # a datagram socket needs no connection to send to an address
        own_kind += _allow_only(1, (socket.SOCK_STREAM, socket.SOCK_SEQPACKET), _SOCKET_TYPE)
        program += _when_call(_CONNECT[column], _refuse(errno.EPERM))
        program += _when_call(_SOCKETPAIR[column], own_kind, allow)
    program += _when_call(_SOCKET[column], own_kind, allow)
    program += _when_call(
        _CLONE[column],
        _argument(0),
        _op(_JUMP_SET, _NAMESPACE_FLAGS, 0, 1),
        _refuse(errno.EPERM),
        allow,
    )
    program += _when_call(_IOCTL[column], _allow_all_but(1, _TERMINAL_INPUT + _SIGNAL_OWNER))
    program += _when_call(_FCNTL[column], _allow_all_but(1, _SIGNAL_BY_DESCRIPTOR))
    for numbers in _OF_A_PROCESS:
        program += _when_call(numbers[column], _allow_only(0, (0,)), allow)
    program += _when_call(_SETPRIORITY[column], _allow_only(0, (0,)), _allow_only(1, (0,)), allow)
    program += _when_call(
        _SIGACTION[column],
        _argument(0),
        _op(_JUMP_EQUAL, signal.SIGCHLD, 0, 4),
        _argument(1),
        _op(_JUMP_EQUAL, 0, 0, 3),
        _argument(1, high_half=True),
        _op(_JUMP_EQUAL, 0, 0, 1),
        allow,  # another signal, or a call that only asks
        _refuse(0),
    )
    for numbers in _KILLS:
        if only_signal is not None:
            program += _when_call(numbers[column], _allow_only(0, (only_signal,)), allow)
        else:
            program += _when_call(numbers[column], _allow_all_but(0, (1,)))
    denied = [number for numbers in _DENIED.values() if (number := numbers[column]) is not None]
    for index, number in enumerate(denied):  # all jump to the one refusal at the end
        program += _op(_JUMP_EQUAL, number, len(denied) - index, 0)
    return program + allow + _refuse(errno.EPERM)
