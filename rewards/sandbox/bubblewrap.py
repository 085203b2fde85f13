"""A jail made by bubblewrap (bwrap), for machines that let it make namespaces and not us, by set-uid or a profile."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import jail

_PACKAGE = Path(__file__).resolve().parent
_DEVICES = ("null", "zero", "full", "random", "urandom")


def command(program: str, readable: list[str]) -> list[str]:
    """The command that starts the zygote in a new jail; its arguments, three of them, are to follow.

    The jail has the shape of `jail.enter`: a read-only root, one writable file system above `jail.SCRATCH`.
    """
    parts = [program, "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL"]
    parts += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--proc", "/proc"]
    for path in [*readable, str(_PACKAGE)]:
        parts += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for name in _DEVICES:
        parts += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    box = os.path.dirname(jail.SCRATCH)
    parts += ["--symlink", "/proc/self/fd", "/dev/fd", "--symlink", "/proc/self/fd/0", "/dev/stdin"]
    parts += ["--symlink", f"{jail.SCRATCH}/shm", "/dev/shm", "--size", str(256 << 20), "--tmpfs", box]
    parts += ["--symlink", jail.SCRATCH, "/tmp", "--remount-ro", "/", "--chdir", "/", "--"]
    python = [os.path.realpath(sys.executable), "-S", "-s", "-B", "-P", "-X", "utf8", "-c"]
    entry = "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.zygote import inside_bubblewrap as serve; "
    return [*parts, *python, f"{entry}serve(int(sys.argv[2]), *sys.argv[3:])", str(_PACKAGE.parent)]
