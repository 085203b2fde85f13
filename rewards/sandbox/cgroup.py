"""A control group around a sandbox, where this user may make one: a bound on the memory and processes of all in it.

Version 1 (a directory under the memory and the pids controllers) and version 2 (one directory, if the controllers are
delegated). Without one, the keeper of each case counts memory, and RLIMIT_NPROC bounds processes.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

PREFIX = "rewards-sandbox-"
ROOT = Path("/sys/fs/cgroup")


class ControlGroup:
    """The directories made for one sandbox; an empty list where none could be made."""

    def __init__(self, memory_bytes: int, processes: int) -> None:
        self._directories: list[Path] = []
        self.layers: list[str] = []
        """What is bounded, for the report: "memory v1", "pids v2", ..."""
        name = f"{PREFIX}{os.getpid()}"
        for version, controller, parent in _parents():
            if version == 1:
                values = {"memory": {"memory.limit_in_bytes": memory_bytes}, "pids": {"pids.max": processes}}[
                    controller
                ]
            else:
                values = {"memory.max": memory_bytes, "memory.swap.max": 0, "pids.max": processes}
            _remove_stale(parent)
            directory = parent / name
            try:
                directory.mkdir()
            except OSError:
                continue
            self._directories.append(directory)
            for file, value in values.items():
                try:
                    (directory / file).write_text(str(value))
                except OSError:
                    continue
                self.layers.append(f"{file.split('.')[0]} v{version}")

    def add(self, pid: int) -> None:
        """Put a process, and all that it will start, into the group."""
        for directory in self._directories:
            with contextlib.suppress(OSError):
                (directory / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Delete the group; its processes must have ended. The kernel may need a moment."""
        for directory in self._directories:
            for _ in range(100):
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)
                    continue
                break
        self._directories = []


def _parents() -> list[tuple[int, str, Path]]:
    """(version, controller, directory of our own group) of the hierarchies that count here."""
    found: list[tuple[int, str, Path]] = []
    with open("/proc/self/cgroup") as file:
        lines = [line.strip().split(":", 2) for line in file]
    for _, controllers, path in lines:
        for controller in ("memory", "pids"):
            if controller in controllers.split(","):
                found.append((1, controller, ROOT / controller / path.lstrip("/")))
    if not found:
        for _, controllers, path in lines:
            if controllers == "":
                found.append((2, "unified", ROOT / path.lstrip("/")))
    return [(version, controller, parent) for version, controller, parent in found if os.access(parent, os.W_OK)]


def _remove_stale(parent: Path) -> None:
    """Delete empty groups whose maker was killed before it could."""
    for directory in parent.glob(f"{PREFIX}*"):
        pid = directory.name.removeprefix(PREFIX)
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):
                directory.rmdir()
