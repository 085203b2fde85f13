"""One jail as its caller sees it: a guard process and a socket to the zygote. It runs one case at a time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from .limits import Level, SandboxError

START_SECONDS = 60.0
STOP_SECONDS = 10.0
_PACKAGE = Path(__file__).resolve().parent
_ENTRY = "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.zygote import main; main(int(sys.argv[2]))"


class Lane:
    """Start a jail of one level, by bubblewrap if its path is given.

    Raises `SandboxError` with the reason where the machine does not offer it.

    The guard is a fresh interpreter, so that nothing of the caller's memory is in any fork, and has a session of its
    own: whoever kills the caller's process group leaves the guard to clean up.
    """

    def __init__(
        self,
        level: Level,
        bubblewrap: str | None,
        memory_bytes: int,
        processes: int,
        import_paths: list[str],
        readable: list[str],
    ) -> None:
        configuration = {
            "level": int(level),
            "bubblewrap": bubblewrap,
            "prefixes": [sys.base_prefix, sys.base_exec_prefix, *readable],
            "import_paths": import_paths,
            "package_root": str(_PACKAGE.parent),
            "group_memory": memory_bytes,
            "group_processes": processes,
        }
        environment = {"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        python = [os.path.realpath(sys.executable), "-S", "-s", "-B", "-P", "-X", "utf8", "-c", _ENTRY]
        self._owner = os.getpid()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*python, str(_PACKAGE.parent), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.layers = self._wait_ready(configuration)

    def _wait_ready(self, configuration: dict[str, Any]) -> dict[str, str]:
        assert self._process.stderr is not None
        try:
            self.control.send(json.dumps(configuration).encode())
            self.control.settimeout(START_SECONDS)
            answer = json.loads(self.control.recv(1 << 16) or "{}")
        except (OSError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        if "ready" not in answer:
            self.control.close()
            said = self._process.stderr.read()[-500:].decode("utf-8", "replace")
            self.stop()
            raise SandboxError(answer.get("error") or f"the guard died: {said}")
        self._process.stderr.close()
        self.control.settimeout(None)
        layers: dict[str, str] = answer["ready"]
        return layers

    def stop(self) -> None:
        """End the jail and everything in it; of a jail that another process started, let go."""
        self.control.close()
        if self._owner != os.getpid():
            return
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # the intermediate and the jail follow the guard by their death signals
            self._process.kill()
            self._process.wait()
