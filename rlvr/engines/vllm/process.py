"""Starts vLLM's processes: their environment, where their output goes, and why they failed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

_LAUNCHER = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE",
    "VLLM_CPU_KVCACHE_SPACE",
)  # fmt: skip
"""What `accelerate launch` tells its ranks, which engine processes would take for a group of their own; and a setting
of vLLM's that would silently win over the recipe's."""
_REASON = re.compile(r"\b((?:[A-Za-z_]+\.)*[A-Z][A-Za-z_]*(?:Error|Exception)): (.+)")
_SECONDARY = ("Engine core initialization failed", "EngineCore encountered an issue")


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy without what a launcher tells its ranks."""
    return {name: value for name, value in environment.items() if name not in _LAUNCHER}


class Scratch:
    """A private folder for what one engine leaves in the temporary folder: vLLM removes neither its rendezvous file nor
    its sockets. It is removed with the engine, or when this process ends."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def make(self) -> dict[str, str]:
        """An empty folder, as variables of the engine's processes; what was there is removed."""
        self.remove()
        compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}")
        self._folder = tempfile.TemporaryDirectory(prefix="rlvr-", ignore_cleanup_errors=True)
        place = self._folder.name
        return {"TMPDIR": place, "VLLM_RPC_BASE_PATH": place, "TORCHINDUCTOR_CACHE_DIR": compiled}

    def remove(self) -> None:
        """The folder is gone; safe to call twice."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


@contextlib.contextmanager
def child_environment(settings: Mapping[str, str]) -> Iterator[None]:
    """`os.environ` for processes started within: without the launcher's ranks, with `settings`; restored afterwards.

    vLLM itself writes to `os.environ` at start (LD_PRELOAD, LOCAL_WORLD_SIZE); that is undone as well, because later
    children of this process are not vLLM's.
    """
    before = dict(os.environ)
    for name in _LAUNCHER:
        os.environ.pop(name, None)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


@contextlib.contextmanager
def without_interrupt() -> Iterator[None]:
    """Processes started within do not see Ctrl-C and SIGTERM: they belong to the run, which ends them in order.

    The signals are blocked, which children inherit, whatever handler they set. multiprocessing's resource tracker would
    unblock it here when it starts, so it starts before.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Processes started within do not import the script that this process runs, as multiprocessing's would: engines
    need nothing of it, and a script without ``if __name__ == "__main__"`` would begin its run again in each of them."""
    main = sys.modules["__main__"].__dict__
    before: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(before)


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Processes started within write to `log`; this process's own Python output still reaches the console."""
    sys.stdout.flush()
    sys.stderr.flush()
    streams = sys.stdout, sys.stderr
    saved = os.dup(1), os.dup(2)
    console = [
        os.fdopen(os.dup(copy), "w", buffering=1) if _is_descriptor(stream, number) else stream
        for stream, number, copy in zip(streams, (1, 2), saved, strict=True)
    ]
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = console
        yield
    finally:
        for number, copy, stream, own in zip((1, 2), saved, console, streams, strict=True):
            stream.flush()
            os.dup2(copy, number)
            os.close(copy)
            if stream is not own:
                stream.close()
        sys.stdout, sys.stderr = streams
        os.close(target)


def _is_descriptor(stream: object, number: int) -> bool:
    try:
        return bool(stream.fileno() == number)  # type: ignore[attr-defined]  # what has no fileno raises here
    except (AttributeError, OSError, ValueError):
        return False


def log_to(log: Path) -> None:
    """Send the records of vLLM's loggers in this process to `log` and nowhere else."""
    logger = logging.getLogger("vllm")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False


def reason_in(log: Path, start: int) -> str:
    """The last exception in `log` after byte `start` that is a cause, not its echo; "" if there is none."""
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    reasons = [f"{kind}: {message.strip()}" for kind, message in _REASON.findall(text)]
    causes = [reason for reason in reasons if not any(echo in reason for echo in _SECONDARY)]
    return causes[-1] if causes else ""
