"""What a program may use, the isolation levels, and what a sandbox says of itself."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum


class Level(IntEnum):
    """How far a program is kept from the machine."""

    RLIMIT_ONLY = 0
    """Resource limits, a scrubbed environment, and seccomp where the kernel takes it: no network and no signals or
    limits of other processes, but all files that the user may read or write."""
    LANDLOCK = 1
    """Landlock, seccomp and resource limits: no files, no network, no sockets but connected pairs, no other processes;
    no namespaces, so that the end of a whole process tree rests on the keeper and the guard, and not on the kernel, if
    somebody kills both."""
    FULL = 2
    """Own user, pid, mount, network, IPC and host-name namespaces, a private root, seccomp; Landlock where there is."""

    @classmethod
    def named(cls, name: str) -> Level:
        """The level called "full", "landlock" or "rlimit-only". Raises `ValueError`."""
        names = {level.label: level for level in cls}
        if name not in names:
            raise ValueError(f"min_level: {name!r} is not one of {', '.join(map(repr, names))}")
        return names[name]

    @property
    def label(self) -> str:
        """The name for people and recipes."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run of a program may use; passing a limit ends its whole process tree."""

    cpu_seconds: float = 4.0
    """Processor time of the whole process tree."""
    wall_seconds: float = 8.0
    """Time on the clock: what sleeps, or waits for processors, ends here."""
    memory_mb: int = 512
    """Address space of one process beyond the interpreter's own, and resident memory of the tree, in MiB."""
    processes: int = 32
    """Processes and threads at one time."""
    output_bytes: int = 4 << 20
    """Bytes of standard output, of standard error, and of a returned value, each."""
    files_mb: int = 64
    """Size of the private file system, in MiB, and of one file. Below `Level.FULL` it bounds single files only."""
    open_files: int = 128
    """Open descriptors of one process."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{field.name}: {value!r} must be a number above 0")


class SandboxError(RuntimeError):
    """The sandbox itself cannot work, or failed: nothing is known of the program that was to run."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a running sandbox offers."""

    level: Level
    layers: dict[str, str]
    """Each layer of isolation and what became of it: "on", "abi 7", or why it is off."""
