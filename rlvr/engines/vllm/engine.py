"""vLLM as the engine: requests go through `VllmCore`, `Pauses` decides when they run, `WeightUpdates` replaces weights.

Tokens in, tokens out: ids go in and come out with the log-probabilities of the distribution they were drawn from
(`processed_logprobs`: after temperature, top-k, top-p and min-p) and with the weight version that the engine core
stamped on each. The model's generation_config.json is ignored.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rlvr.dtypes import DTYPES
from rlvr.engines.engine_stats import EngineStats
from rlvr.engines.protocol import NO_VERSION, EngineError
from rlvr.engines.stop_strings import check_fits, check_lengths
from rlvr.engines.vllm.core import VllmCore
from rlvr.engines.vllm.pauses import Pauses
from rlvr.engines.vllm.settings import (
    VllmOutput,
    VllmSettings,
    build_completion,
    prompt_logprobs_parameters,
    sampling_parameters,
)
from rlvr.engines.vllm.updates import WeightUpdates
from rlvr.engines.weights import read_manifest
from rlvr.records import Completion, Request


@dataclass(frozen=True, slots=True)
class _Life:
    """Everything that one start of the engine creates; the next start creates it anew."""

    core: VllmCore
    pauses: Pauses
    updates: WeightUpdates


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
        self.log_file = Path(log_file) if log_file else Path(tempfile.mkdtemp(prefix="rlvr-")) / "vllm.log"
        self._dtype = DTYPES[settings.dtype]
        self._settings = settings
        self._stats = EngineStats() if stats or settings.speculative is not None else None
        self._life: _Life | None = None

    @property
    def version(self) -> int:
        """The weight version that the engine core reported last."""
        return NO_VERSION if self._life is None else self._life.updates.version

    @property
    def model_len(self) -> int:
        """Most tokens, prompt and completion together, of one request."""
        return int(self._running().core.running().model_config.max_model_len)

    def _running(self) -> _Life:
        if self._life is None:
            raise EngineError("the vLLM engine is not running; call start() first, and nothing after close()")
        self._life.core.running()
        return self._life

    async def start(self) -> None:
        """Start the engine core and wait until it responds, 20 s on a CPU; the calling thread blocks meanwhile."""
        if self._life is not None and not self._life.core.is_closed:
            return
        manifest = read_manifest(self.model)
        core = VllmCore(self._settings, self.log_file, self._stats)
        pauses = Pauses(core, self._stats)
        self._life = _Life(core, pauses, WeightUpdates(core, pauses, manifest, self._dtype))
        await core.call(core.llm.get_supported_tasks())  # kept, so that admission never waits for the engine core
        await self._life.updates.set_version(NO_VERSION)

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
        sampled = VllmOutput(
            ids=tuple(output.token_ids),
            logprobs=tuple(output.logprobs.logprobs) if output.token_ids else (),
            versions=[(span.version, span.start, span.end) for span in output.weight_versions or []],
            finish_reason=output.finish_reason,
            is_stop_string=output.finish_reason == "stop" and isinstance(output.stop_reason, str),
        )
        return build_completion(request, sampled, self._running().core.running().get_tokenizer())

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

        life = self._running()
        core, llm = life.core, life.core.running()
        prompt = tokens_input(list(prompt_ids), cache_salt=str(life.updates.version))
        try:
            with life.pauses.request():
                with life.pauses.admission():
                    queue = await llm.add_request(name, prompt, parameters)
                try:
                    return await queue.get()
                except asyncio.CancelledError:
                    await llm.abort(queue.request_id, internal=True)
                    raise
        except VLLMClientError as error:
            raise EngineError(f"vLLM refused request {name!r}: {error}") from error
        except (EngineDeadError, EngineGenerateError) as error:
            raise core.died() from error

    def hold(self) -> AbstractAsyncContextManager[None]:
        """See `Pauses.hold`."""
        return self._running().pauses.hold()

    async def interrupt(self) -> None:
        """End every request in flight: each `generate` returns the tokens it has, with finish reason ``abort``."""
        await self._running().pauses.interrupt()

    async def release(self) -> None:
        """With `sleep`: see `WeightUpdates.sleep`."""
        if self._settings.sleep:
            await self._running().updates.sleep()

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights by Hugging Face parameter names; requests in flight wait and go on with the new ones."""
        await self._running().updates.load(tensors, version)

    def measured(self) -> dict[str, float]:
        """Speeds by batch size and what became of proposed tokens, since the last call."""
        return {} if self._stats is None else self._stats.take()

    async def close(self) -> None:
        """End the engine core; requests in flight raise `EngineError`."""
        if self._life is not None:
            self._life.core.close()
